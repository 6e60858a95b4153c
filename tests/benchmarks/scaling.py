"""Scaling of annotation: measured cost of the driver, simulated run time on up to 1,000 GPUs and 100 M questions.

    python -m tests.benchmarks.scaling --study studies/demo [--answers-per-second 1000]

The simulation has one driver, which dispatches units sequentially, and actors with a start-up time, a speed and two
units in flight. Measured: the driver's time per unit (a real Ray Data pool on a tiny model), and its time and memory
per question before dispatch (cutting units) and afterwards (computing labels from answers). Assumed: answers per second
and GPU, and the start-up time of an actor.
"""

import argparse
import heapq
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from slick.annotation import AnnotateConfig
from slick.annotation.labels import knowledge_table
from slick.annotation.store import cut_batches, make_units, read_parts, unit_size
from slick.annotation.uncertainty import Scoring, collect_evidence
from slick.annotation.worker import GPU_BATCH_FACTOR
from slick.storage import Folder

GPUS = (1, 8, 64, 250, 1000)
QUESTIONS = (98_029, 1_000_000, 10_000_000, 100_000_000)
START_S = 120.0
"""Assumed seconds from the request of an actor to its first answer: node start and model loading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverCost:
    """Measured cost of the driver."""

    dispatch_s: float
    """Seconds of its single thread per unit."""
    plan_s: float
    """Seconds per question before the first unit is dispatched."""
    plan_bytes: float
    """Memory per question while the pool runs."""
    label_s: float
    """Seconds per question to compute labels from all answers."""
    label_bytes: float
    """Memory per question of the labels."""


def simulate(
    num_batches: int, num_gpus: int, max_batches: int, batch_s: float, start_s: float, dispatch_s: float
) -> float:
    """Simulated seconds until all batches are answered.

    Args:
        num_batches: batches of questions in total.
        num_gpus: actors, one per GPU.
        max_batches: maximum number of batches per unit.
        batch_s: seconds of an actor per batch.
        start_s: seconds until an actor is ready.
        dispatch_s: seconds of the driver per unit; units are dispatched sequentially.
    """
    remaining = num_batches
    driver_free_at = 0.0
    # An actor requests two units when it starts, then another one whenever it has finished one.
    requests = [(start_s, actor) for actor in range(num_gpus) for _ in range(2)]
    heapq.heapify(requests)
    free_at = [start_s] * num_gpus
    end = 0.0
    while remaining:
        time_s, actor = heapq.heappop(requests)
        driver_free_at = max(driver_free_at, time_s) + dispatch_s
        num_in_unit = unit_size(remaining, max_batches, num_gpus)
        free_at[actor] = max(free_at[actor], driver_free_at) + num_in_unit * batch_s
        end = max(end, free_at[actor])
        heapq.heappush(requests, (free_at[actor], actor))
        remaining -= num_in_unit
    return end


def questions_table(num: int) -> pa.Table:
    """Synthetic questions in 12 relations with the length of real ones."""
    return pa.table(
        {
            "question_id": [f"P{i * 12 // num:03d}-train-{i:09d}" for i in range(num)],
            "relation": [f"P{i * 12 // num:03d}" for i in range(num)],
            "question": [f"Where was the well-known person number {i} born?" for i in range(num)],
            "answers": [[f"the city of number {i % 999}"] for i in range(num)],
        }
    )


def measure_planning(num: int) -> tuple[float, float]:
    """Seconds and bytes per question to cut the work into units."""
    config = AnnotateConfig()
    rss_before = resident_bytes()
    table = questions_table(num)
    started_at = time.monotonic()
    batches = {"generations": cut_batches(table, config.batch_questions)}
    units = make_units(batches, max_batches=config.batches_per_file * GPU_BATCH_FACTOR, num_actors=8, num_turns=8)
    assert sum(len(unit["question_id"][0]) for unit in units) == num
    return (time.monotonic() - started_at) / num, (resident_bytes() - rss_before) / num


def measure_labelling(study: str) -> tuple[float, float]:
    """Seconds and bytes per question to compute labels from stored answers."""
    folder = Folder(study).child("annotate")
    settings = folder.read_json("manifest.json")["settings"]
    scoring = Scoring(
        matcher=settings["matcher"],
        num_exemplar_sets=settings["num_exemplar_sets"],
        num_samples=settings["sampling"]["num_samples"],
    )
    started_at = time.monotonic()
    collect_evidence(read_parts(folder.child("generations")), scoring)
    read_s = time.monotonic() - started_at
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()  # repeated, because tracing slows Python down; first-call allocations are excluded
    evidence = collect_evidence(read_parts(folder.child("generations")), scoring)
    num_bytes = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow_before
    tracemalloc.stop()
    num = len(evidence.rows)
    questions = folder.read_table("knowledge.parquet", ["question_id", "relation", "domain", "split"])
    started_at = time.monotonic()
    table = knowledge_table(questions, evidence.rows)
    assert table.num_rows == num
    return (read_s + time.monotonic() - started_at) / num, num_bytes / num


DISPATCH = """
import json, sys, time
from dataclasses import replace
from slick.annotation import AnnotateConfig, annotate
from slick.inference.base import SamplingConfig
from slick.storage import Folder
from tests.local.tiny import write_birthplace_questions
folder, model, num = sys.argv[1], sys.argv[2], int(sys.argv[3])
study = Folder(folder)
write_birthplace_questions(study, num_train=num)
shape = dict(num_exemplar_sets=1, num_shots=1, batch_questions=1, batches_per_file=1, max_actors=1)
config = AnnotateConfig(model=model, sampling=SamplingConfig(num_samples=1, max_new_tokens=1), **shape,
                        repeats_per_relation=0, controls_per_relation=0)
began = time.process_time()
annotate(study, config)
print(json.dumps([len(study.child("annotate", "generations").names(".parquet")), time.process_time() - began]))
"""


def measure_dispatch() -> float:
    """CPU seconds of the driver per unit, from two runs of a real pool on a tiny model."""
    from tests.local.tiny import save_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder) / "model", steps=1)
        runs = [run_in_subprocess(DISPATCH, f"{folder}/{num}", model, str(num)) for num in (40, 400)]
    (units, seconds), (more_units, more_seconds) = runs
    return (more_seconds - seconds) / (more_units - units)


def run_in_subprocess(code: str, *arguments: str) -> list[float]:
    """Run Python code in a subprocess; returns its last line of output, parsed as JSON."""
    completed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    values: list[float] = json.loads(completed.stdout.splitlines()[-1])
    return values


def resident_bytes() -> float:
    """Resident memory of this process in bytes."""
    import psutil

    return float(psutil.Process().memory_info().rss)


_MEASURE_CODE = "import json, sys; from tests.benchmarks import scaling; print(json.dumps(scaling.{}))"


def measure(study: str) -> DriverCost:
    """Measure every cost in its own process."""
    plan_s, plan_bytes = run_in_subprocess(_MEASURE_CODE.format("measure_planning(300_000)"))
    label_s, label_bytes = run_in_subprocess(_MEASURE_CODE.format(f"measure_labelling({study!r})"))
    return DriverCost(
        dispatch_s=measure_dispatch(), plan_s=plan_s, plan_bytes=plan_bytes, label_s=label_s, label_bytes=label_bytes
    )


def main() -> None:
    """Measure, simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a study with a finished annotation in full mode")
    parser.add_argument("--answers-per-second", type=float, default=1000.0, help="per GPU; 170 answers per question")
    parser.add_argument("--driver-gb", type=float, default=32.0, help="memory of the driver's machine, in GB")
    arguments = parser.parse_args()
    costs = measure(str(Path(arguments.study).resolve()))
    config = AnnotateConfig()
    question_s = 170 / arguments.answers_per_second
    max_batches = config.batches_per_file * GPU_BATCH_FACTOR
    print(f"measured: {costs}")
    print(f"{'questions':>12}" + "".join(f"{gpus:>8} GPU" for gpus in GPUS) + "   hours (share of ideal speed-up)")
    for num in QUESTIONS:
        cells = []
        for gpus in GPUS:
            batches, batch_s = -(-num // config.batch_questions), config.batch_questions * question_s
            seconds = simulate(batches, gpus, max_batches, batch_s, START_S, costs.dispatch_s)
            cells.append(f"{seconds / 3600:>7.1f} {num * question_s / gpus / seconds:>3.0%}")
        print(f"{num:>12,}" + " ".join(cells))
    unit = config.batch_questions * max_batches
    print(
        f"the driver dispatches up to {unit / costs.dispatch_s:,.0f} questions/s in units of {unit}, enough for "
        f"{unit * question_s / costs.dispatch_s:,.0f} GPUs"
    )
    for name, seconds, size in (
        ("planning", costs.plan_s, costs.plan_bytes),
        ("labels", costs.label_s, costs.label_bytes),
    ):
        print(
            f"{name}: 100 M questions take {1e8 * seconds / 3600:.1f} hours and {1e8 * size / 1e9:.0f} GB; "
            f"{arguments.driver_gb:g} GB hold {arguments.driver_gb * 1e9 / size / 1e6:,.0f} M questions"
        )


if __name__ == "__main__":
    main()
