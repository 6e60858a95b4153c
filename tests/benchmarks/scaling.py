"""Scaling of annotation: the measured cost of dispatching a unit, and simulated run time on up to 1,000 GPUs.

    python -m tests.benchmarks.scaling [--answers-per-second 1000]

The simulation has one driver, which dispatches units sequentially, and actors with a start-up time, a speed and two
units in flight. Measured: the driver's time per unit (a real Ray Data pool on a tiny model). Assumed: answers per
second and GPU, and the start-up time of an actor. `tests.benchmarks.large_study` measures the rest of a large study.
"""

import argparse
import heapq
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from slick.annotation import AnnotateConfig
from slick.annotation.plan import unit_size
from slick.annotation.worker import GPU_BATCH_FACTOR

GPUS = (1, 8, 64, 250, 1000)
QUESTIONS = (98_029, 1_000_000, 10_000_000, 100_000_000)
START_S = 120.0
"""Assumed seconds from the request of an actor to its first answer: node start and model loading."""


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


def main() -> None:
    """Measure, simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers-per-second", type=float, default=1000.0, help="per GPU; 170 answers per question")
    arguments = parser.parse_args()
    dispatch_s = measure_dispatch()
    config = AnnotateConfig()
    question_s = 170 / arguments.answers_per_second
    max_batches = config.batches_per_file * GPU_BATCH_FACTOR
    print(f"measured: {dispatch_s * 1000:.1f} ms of the driver per unit")
    print(f"{'questions':>12}" + "".join(f"{gpus:>8} GPU" for gpus in GPUS) + "   hours (share of ideal speed-up)")
    for num in QUESTIONS:
        cells = []
        for gpus in GPUS:
            batches, batch_s = -(-num // config.batch_questions), config.batch_questions * question_s
            seconds = simulate(batches, gpus, max_batches, batch_s, START_S, dispatch_s)
            cells.append(f"{seconds / 3600:>7.1f} {num * question_s / gpus / seconds:>3.0%}")
        print(f"{num:>12,}" + " ".join(cells))
    unit = config.batch_questions * max_batches
    print(
        f"the driver dispatches up to {unit / dispatch_s:,.0f} questions/s in units of {unit}, enough for "
        f"{unit * question_s / dispatch_s:,.0f} GPUs"
    )


if __name__ == "__main__":
    main()
