"""How far annotation scales: what its driver takes, measured; 1,000 GPUs and 100 M questions, simulated.

    python -m tests.benchmarks.scaling --study studies/demo [--answers-per-second 1000]

The simulation knows actors, each with a start, a speed and two units in flight, and one driver that hands out units
one after another. Measured here: the driver's time a unit (real Ray Data pool on a tiny model), its time and memory a
question before and after (cutting units, reading answers to labels). Assumed: answers a second and GPU, and the start
of an actor.
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
"""From asking for an actor to its first answer: a node that boots, a model that loads. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the driver takes."""

    dispatch_s: float
    """Of its one thread, a unit."""
    plan_s: float
    """A question, before the first unit is handed out."""
    plan_bytes: float
    """A question, for as long as the pool runs."""
    label_s: float
    """A question, when all answers are there."""
    label_bytes: float


def simulate(num_batches: int, num_gpus: int, most: int, batch_s: float, start_s: float, dispatch_s: float) -> float:
    """Seconds until all batches are answered.

    Args:
        most: batches of a unit.
        batch_s: that an actor takes for one.
        start_s: of an actor.
        dispatch_s: of the driver, for each unit: it hands out one after another.
    """
    left = num_batches
    driver = 0.0
    # An actor asks for a unit when one of its two places is free: twice at its start, then whenever one is done.
    asks = [(start_s, actor) for actor in range(num_gpus) for _ in range(2)]
    heapq.heapify(asks)
    free = [start_s] * num_gpus
    end = 0.0
    while left:
        at, actor = heapq.heappop(asks)
        driver = max(driver, at) + dispatch_s
        size = unit_size(left, most, num_gpus)
        free[actor] = max(free[actor], driver) + size * batch_s
        end = max(end, free[actor])
        heapq.heappush(asks, (free[actor], actor))
        left -= size
    return end


def questions_table(num: int) -> pa.Table:
    """Invented questions in 12 relations, of the length of real ones."""
    return pa.table(
        {
            "question_id": [f"P{i * 12 // num:03d}-train-{i:09d}" for i in range(num)],
            "relation": [f"P{i * 12 // num:03d}" for i in range(num)],
            "question": [f"Where was the well-known person number {i} born?" for i in range(num)],
            "answers": [[f"the city of number {i % 999}"] for i in range(num)],
        }
    )


def plan_cost(num: int) -> tuple[float, float]:
    """(seconds, bytes) a question of cutting the work into units."""
    config = AnnotateConfig()
    before = rss()
    table = questions_table(num)
    began = time.monotonic()
    batches = {"generations": cut_batches(table, config.batch_questions)}
    units = make_units(batches, max_batches=config.batches_per_file * GPU_BATCH_FACTOR, num_actors=8, num_turns=8)
    assert sum(len(unit["question_id"][0]) for unit in units) == num
    return (time.monotonic() - began) / num, (rss() - before) / num


def label_cost(study: str) -> tuple[float, float]:
    """(seconds, bytes) a question of reading stored answers into labels."""
    folder = Folder(study).child("annotate")
    made = folder.read_json("manifest.json")["settings"]
    scoring = Scoring(
        matcher=made["matcher"],
        num_exemplar_sets=made["num_exemplar_sets"],
        num_samples=made["sampling"]["num_samples"],
    )
    began = time.monotonic()
    collect_evidence(read_parts(folder.child("generations")), scoring)
    spent = time.monotonic() - began
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()  # once more, since it slows Python down; what libraries need once is not counted
    evidence = collect_evidence(read_parts(folder.child("generations")), scoring)
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    num = len(evidence.rows)
    asked = folder.read_table("knowledge.parquet", ["question_id", "relation", "domain", "split"])
    began = time.monotonic()
    table = knowledge_table(asked, evidence.rows)
    assert table.num_rows == num
    return (spent + time.monotonic() - began) / num, held / num


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


def dispatch_cost() -> float:
    """Seconds of the driver's processor a unit, from two runs of a real pool on a tiny model."""
    from tests.local.tiny import save_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder) / "model", steps=1)
        found = [run_in_fresh_process(DISPATCH, f"{folder}/{num}", model, str(num)) for num in (40, 400)]
    (units, seconds), (more, longer) = found
    return (longer - seconds) / (more - units)


def run_in_fresh_process(code: str, *words: str) -> list[float]:
    """What code prints last, as JSON, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rss() -> float:
    """Bytes of memory that this process holds now."""
    import psutil

    return float(psutil.Process().memory_info().rss)


MEASURE_CODE = "import json, sys; from tests.benchmarks import scaling; print(json.dumps(scaling.{}))"


def measure(study: str) -> Measured:
    """All of it, each in a process of its own."""
    plan_s, plan_bytes = run_in_fresh_process(MEASURE_CODE.format("plan_cost(300_000)"))
    label_s, label_bytes = run_in_fresh_process(MEASURE_CODE.format(f"label_cost({study!r})"))
    return Measured(
        dispatch_s=dispatch_cost(), plan_s=plan_s, plan_bytes=plan_bytes, label_s=label_s, label_bytes=label_bytes
    )


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a finished annotation in full mode")
    parser.add_argument("--answers-per-second", type=float, default=1000.0, help="of one GPU; 170 a question")
    parser.add_argument("--driver-gb", type=float, default=32.0, help="memory of the machine of the driver")
    asked = parser.parse_args()
    found = measure(str(Path(asked.study).resolve()))
    config = AnnotateConfig()
    question_s = 170 / asked.answers_per_second
    most = config.batches_per_file * GPU_BATCH_FACTOR
    print(f"measured: {found}")
    print(f"{'questions':>12}" + "".join(f"{gpus:>8} GPU" for gpus in GPUS) + "   hours (share of the ideal speed-up)")
    for num in QUESTIONS:
        cells = []
        for gpus in GPUS:
            batches, batch_s = -(-num // config.batch_questions), config.batch_questions * question_s
            seconds = simulate(batches, gpus, most, batch_s, START_S, found.dispatch_s)
            cells.append(f"{seconds / 3600:>7.1f} {num * question_s / gpus / seconds:>3.0%}")
        print(f"{num:>12,}" + " ".join(cells))
    unit = config.batch_questions * most
    print(
        f"the driver alone hands out {unit / found.dispatch_s:,.0f} questions/s in units of {unit}, enough for "
        f"{unit * question_s / found.dispatch_s:,.0f} GPUs"
    )
    for name, seconds, size in (
        ("before", found.plan_s, found.plan_bytes),
        ("labels", found.label_s, found.label_bytes),
    ):
        print(
            f"{name}: 100 M questions take {1e8 * seconds / 3600:.1f} hours and {1e8 * size / 1e9:.0f} GB; "
            f"{asked.driver_gb:g} GB are full at {asked.driver_gb * 1e9 / size / 1e6:,.0f} M questions"
        )


if __name__ == "__main__":
    main()
