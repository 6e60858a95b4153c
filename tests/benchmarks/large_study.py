"""Memory and time of the driver for an annotation of many questions, with an engine that only pretends to answer.

    python -m tests.benchmarks.large_study --questions 2000000 --out /tmp/large

Everything but the model is real: question files, plans, the pool of actors, files of answers, labels. The largest of 24
relations has 30 % of the questions. The command can be interrupted and repeated. It prints the highest resident memory
of the driver, which runs the command alone, and the seconds of each part.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from slick.storage import Folder
from slick.study import MANIFEST, complete_step
from slick.study_files import QUESTION_SCHEMA

NUM_RELATIONS = 24
ENGINE = """
import hashlib
from slick.inference.base import Answers, Engine, EngineStats, register_engine
from slick.precision import Runtime


@register_engine("pretend", capabilities={"answers"})
class PretendEngine(Engine):
    def __init__(self, config):
        self.stats = EngineStats()
        self.runtime = Runtime(device="cpu", dtype="float32", attention="none")

    def generate(self, batch, sampling, targets=None):
        rows = []
        for question_id in batch.question_ids:
            level = hashlib.blake2b(question_id.encode(), digest_size=1).digest()[0] % 4
            name = "answer " + question_id.rpartition("-")[2]
            row = []
            for number in range(len(batch.prefixes)):
                greedy = name if level == 3 or (level == 2 and number == 0) else "wrong"
                sampled = [name if level == 1 and number == i else "wrong" for i in range(sampling.num_samples)]
                row.append(Answers(greedy_text=greedy, sampled_text=tuple(sampled), num_tokens=3))
            rows.append(tuple(row))
            self.stats.generations += len(row) * (1 + sampling.num_samples)
        return rows
"""
"""An engine whose answers depend on the question_id, so that each category has a quarter of the questions."""


def write_questions(study: Folder, num: int) -> None:
    """A finished questions folder, without the checks of the questions step."""
    folder = study.child("questions")
    if folder.exists(MANIFEST):
        return
    shares = [0.3, *[0.7 / (NUM_RELATIONS - 1)] * (NUM_RELATIONS - 1)]
    for relation, share in enumerate(shares):
        numbers = range(round(num * share))
        name = f"P{relation:02d}"
        splits = [("dev", "test", "train")[min(i % 50, 2)] for i in numbers]
        columns = {
            "question_id": [f"{name}-{split}-{i:09d}" for i, split in zip(numbers, splits, strict=True)],
            "relation": [name] * len(numbers),
            "domain": ["id"] * len(numbers),
            "split": splits,
            "subject": [f"well-known person number {i}" for i in numbers],
            "question": [f"Where was the well-known person number {i} born?" for i in numbers],
            "answers": [[f"answer {i:09d}"] for i in numbers],
        }
        folder.write_table(f"part-{name}.parquet", pa.table(columns, schema=QUESTION_SCHEMA))
    complete_step(folder, "questions", f"{num:016d}", settings={}, inputs={}, counts={}, started_at=time.monotonic())


def write_engine(folder: Path) -> None:
    """A distribution with the engine, which every process finds by its entry point."""
    info = folder / "pretend_engine-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / "pretend_engine.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pretend-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slick.components]\npretend = pretend_engine\n")


def log_memory(started_at: float, every_s: float = 10.0) -> None:
    """Print the resident memory of this process again and again."""
    while True:
        print(f"{time.monotonic() - started_at:.0f} s: {psutil.Process().memory_info().rss / 1e6:.0f} MB", flush=True)
        time.sleep(every_s)


def run_driver(out: str, model: str) -> None:
    """Annotate in this process, and print its highest memory in bytes and its CPU seconds."""
    from slick.annotation import AnnotateConfig, annotate
    from slick.inference.base import SamplingConfig

    started_at = time.monotonic()
    threading.Thread(target=log_memory, args=(started_at,), daemon=True).start()
    annotate(
        Folder(out),
        AnnotateConfig(
            model=model,
            engine="pretend",
            num_exemplar_sets=3,
            sampling=SamplingConfig(num_samples=4, max_new_tokens=8),
            batches_per_file=16,
        ),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {"wall_s": round(time.monotonic() - started_at, 1), "cpu_s": round(time.process_time(), 1)}
    print(json.dumps({"peak_bytes": peak, "resident_bytes": psutil.Process().memory_info().rss, **seconds}))


def summary(out: str) -> dict[str, object]:
    """What identifies the labels of a study, read row group by row group."""
    folder = Folder(out).child("annotate")
    digest, num = hashlib.blake2b(digest_size=8), 0
    with pq.ParquetFile(f"{folder.local_path}/knowledge.parquet") as file:
        for batch in file.iter_batches(columns=["question_id", "category", "chance_known"], use_threads=False):
            num += batch.num_rows
            digest.update(repr(batch.to_pydict()).encode())
    return {"questions": num, "labels": digest.hexdigest(), "parts": len(folder.child("generations").names())}


def main() -> None:
    """Write questions and engine, run the driver in a process of its own, and print its measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=2_000_000)
    parser.add_argument("--out", required=True)
    parser.add_argument("--driver", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        run_driver(arguments.out, arguments.driver)
        return
    from tests.local.tiny import save_tiny_model

    work = Path(arguments.out).resolve()
    model = work / "model"
    if not model.exists():
        save_tiny_model(model, steps=1)
    write_engine(work / "engine")
    study = work / "study"
    write_questions(Folder(str(study)), arguments.questions)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(work / "engine"), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "tests.benchmarks.large_study", "--out", str(study), "--driver", str(model)]
    subprocess.run(command, env=environment, check=True)
    print(json.dumps(summary(str(study))))


if __name__ == "__main__":
    main()
