"""Overhead of Ray in annotation, speed-up by a second actor, and memory for different numbers of questions.

python -m tests.benchmarks.pipeline --model FOLDER --questions entity_questions.zip --num-questions 2000 --turns 3
python -m tests.benchmarks.pipeline --model FOLDER --questions entity_questions.zip --beside-ray --turns 3
python -m tests.benchmarks.pipeline --model WORLD/model --questions entity_questions.zip --memory

The first command answers the same questions with one engine, with two engines in parallel without Ray (the maximum of
the machine), and with pools of one and two actors, one thread each. The time of a pool runs from the moment when every
engine has answered its first unit until the last answer. `--beside-ray` runs one and two engines without Ray while an
idle pool is up, to measure the load of Ray's processes. `--memory` reports the peak resident memory of driver and actor
for 1,000 and 10,000 questions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slick.annotation import AnnotateConfig, annotate
from slick.cluster import LOCAL_CLUSTER_ENV
from slick.datasets import QuestionsConfig, prepare_questions
from slick.inference.base import SamplingConfig
from slick.storage import Folder

SAMPLING = SamplingConfig(max_new_tokens=8)


def prepare_study(folder: str, source: str, num_questions: int) -> Folder:
    """A study with about `num_questions` train and test questions of 19 relations."""
    study = Folder(folder)
    limit = max(10, num_questions // 31)  # 12 relations with train and test questions, 7 with test questions
    prepare_questions(study, QuestionsConfig(questions=source, limit_per_relation=limit + 10))
    return study


def run_pool(model: str, source: str, num_questions: int, actors: int, dtype: str, mode: str) -> dict[str, float]:
    """Questions per second from when every actor has answered its first unit until the last answer is stored."""
    with tempfile.TemporaryDirectory() as folder:
        study = prepare_study(folder, source, num_questions)
        config = AnnotateConfig(
            model=model,
            dtype=dtype,
            mode=mode,
            sampling=SAMPLING,
            limit_per_relation=max(1, num_questions // 31),
            min_actors=actors,
            max_actors=actors,
            cpus_per_actor=0.5,
        )
        manifest = annotate(study, config)
        units = sorted(map(read_unit, Path(folder, "annotate", "generations").glob("*.parquet")))
        started_at = max(first_unit_ends(units))
        num_timed = sum(num * min(1.0, max(0.0, (end - started_at) / (end - start))) for start, end, num in units)
        num_answered = manifest.counts["questions"]
        return {
            "questions": num_answered,
            "questions_per_second": num_timed / (max(end for _, end, _ in units) - started_at),
            "engine_questions_per_second": actors * num_answered / manifest.counts["engine_seconds"],
        }


def read_unit(path: Path) -> tuple[float, float, int]:
    """Start time of a unit in the engine, modification time of its file, and number of questions."""
    metadata = pq.read_metadata(path)
    spent = json.loads(metadata.metadata[b"slick.spent"])
    end = path.stat().st_mtime
    return end - spent["seconds"], end, metadata.num_rows


def first_unit_ends(units: Sequence[tuple[float, float, int]]) -> list[float]:
    """End of the first unit of each actor; a unit that began while all known actors were busy is from a new one.

    >>> first_unit_ends([(0.0, 1.0, 64), (0.5, 1.6, 64), (1.1, 2.0, 64)])
    [1.0, 1.6]
    """
    ends: list[float] = []
    busy: list[float] = []
    for start, end, _ in units:
        if busy and min(busy) <= start:
            busy.remove(min(busy))
        else:
            ends.append(end)
        busy.append(end)
    return ends


def run_engine(model: str, source: str, num_questions: int, dtype: str, mode: str) -> dict[str, float]:
    """The same batches in this process, without Ray."""
    import torch

    from slick.annotation.plan import cut_batches
    from slick.annotation.store import select_questions
    from slick.datasets import read_questions
    from slick.inference.base import PromptBatch
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.matching import make_matcher
    from slick.models import load_model, load_tokenizer
    from slick.prompts import draw_exemplar_sets, few_shot_prefix, few_shot_suffix

    torch.set_num_threads(1)
    loaded = load_model(model, dtype)
    prepack_linears(loaded)
    with tempfile.TemporaryDirectory() as folder:
        questions = read_questions(prepare_study(folder, source, num_questions))
    rows = questions.to_pylist()
    dev = {}
    for row in rows:
        if row["split"] == "dev":
            dev.setdefault(row["relation"], {})[row["question_id"]] = row
    sets = draw_exemplar_sets({relation: list(rows_by_id) for relation, rows_by_id in dev.items()})
    selected = select_questions(questions, dev=False, exemplars=sets, limit=max(1, num_questions // 31))
    engine = TransformersEngine(loaded, load_tokenizer(model))
    started_at, num_timed, total = 0.0, 0, 0
    batches, _ = cut_batches(selected["relation"], AnnotateConfig().batch_questions)
    for number in range(batches[-1] + 1):
        if number == 1:
            started_at = time.monotonic()
        part = selected.filter(pa.array(batches == number)).to_pylist()
        shots = [[dev[part[0]["relation"]][i] for i in ids] for ids in sets[part[0]["relation"]]]
        prefixes = [few_shot_prefix([(row["question"], row["answers"][0]) for row in rows]) for rows in shots]
        engine.generate(
            PromptBatch(
                prefixes=prefixes,
                question_ids=[row["question_id"] for row in part],
                suffixes=[few_shot_suffix(row["question"]) for row in part],
            ),
            SAMPLING,
            [make_matcher(row["answers"]) for row in part] if mode == "labels" else None,
        )
        num_timed += len(part) * (number > 0)
        total += len(part)
    return {"questions": total, "questions_per_second": num_timed / (time.monotonic() - started_at)}


def run_engines(*arguments: Any) -> dict[str, float]:
    """`run_engine` in two parallel processes; returns the sum of their questions per second."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(run_engine, *zip(*[arguments] * 2, strict=True)))
    return {"questions_per_second": sum(result["questions_per_second"] for result in results)}


def run_beside_idle_pool(engines: int, *arguments: Any) -> dict[str, float]:
    """Engines without Ray while an idle pool of one actor, with all of Ray's processes, is up."""
    with tempfile.TemporaryDirectory() as folder:
        sign_file = Path(folder, "asleep")
        command = [sys.executable, "-m", "tests.benchmarks.pipeline", "--model", "-", "--questions", "-"]
        with subprocess.Popen(
            [*command, "--run", "sleep", "--sign", str(sign_file)], stdout=subprocess.DEVNULL
        ) as pool:
            try:
                while not sign_file.exists():
                    assert pool.poll() is None, "the pool ended"
                    time.sleep(0.1)
                return run_engine(*arguments) if engines == 1 else run_engines(*arguments)
            finally:
                pool.terminate()


def sleep_in_pool(sign: str) -> None:
    """Start a pool of one actor that creates the file `sign` and sleeps until this process is killed."""
    import ray.data

    from slick.cluster import connect

    class Sleeper:
        def __call__(self, table: Any) -> Any:
            Path(sign).touch()
            time.sleep(3600)
            return table

    connect()
    units = ray.data.range(1).map_batches(Sleeper, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5)
    for _ in units.iter_batches(batch_size=None, prefetch_batches=0):
        pass


def run_memory(model: str, source: str, num_questions: int) -> dict[str, float]:
    """Peak resident memory of this driver and its actors, in MB."""
    import psutil

    peaks = {"driver": 0.0, "actor": 0.0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            peaks["driver"] = max(peaks["driver"], psutil.Process().memory_info().rss / 2**20)
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if "AnnotationWorker" in " ".join(process.info["cmdline"] or []) and process.info["memory_info"]:
                    peaks["actor"] = max(peaks["actor"], process.info["memory_info"].rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        study = prepare_study(folder, source, num_questions)
        limit = max(1, num_questions // 31)
        config = AnnotateConfig(model=model, sampling=SAMPLING, limit_per_relation=limit, max_actors=1)
        num_answered = annotate(study, config).counts["questions"]
        parts = Folder(folder).child("annotate", "generations")
        size = sum(len(parts.read_bytes(name)) for name in parts.names(".parquet"))
        bytes_per_question = size / num_answered
    stop.set()
    watcher.join()
    return {
        "questions": num_answered,
        **{f"{name}_mb": round(peak) for name, peak in peaks.items()},
        "bytes_per_question": round(bytes_per_question),
    }


def main() -> None:
    """Run every case in its own process and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--questions", required=True, help="EntityQuestions as zip or folder")
    parser.add_argument("--num-questions", type=int, default=300)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--mode", default="full", choices=["full", "labels"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--beside-ray", action="store_true", help="engines without Ray beside an idle pool")
    parser.add_argument("--turns", type=int, default=1, help="number of runs of each case")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--sign", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    common = (arguments.model, arguments.questions, arguments.num_questions)
    if arguments.run == "engine":
        print(run_engine(*common, arguments.dtype, arguments.mode))
    elif arguments.run == "engines":
        print(run_engines(*common, arguments.dtype, arguments.mode))
    elif arguments.run in ("beside-1", "beside-2"):
        print(run_beside_idle_pool(int(arguments.run[-1]), *common, arguments.dtype, arguments.mode))
    elif arguments.run == "sleep":
        sleep_in_pool(arguments.sign)
    elif arguments.run == "memory":
        print(run_memory(*common))
    elif arguments.run:
        print(run_pool(*common, int(arguments.run), arguments.dtype, arguments.mode))
    else:
        cases = ("beside-1", "beside-2") if arguments.beside_ray else ("engine", "engines", "1", "2")
        runs = [(case, arguments.num_questions) for case in cases]
        if arguments.memory:
            runs = [("memory", 1000), ("memory", 10_000)]
        for case, num in runs * arguments.turns:
            command = [sys.executable, "-m", "tests.benchmarks.pipeline", *sys.argv[1:]]
            command += ["--run", case, "--num-questions", str(num)]
            environment = os.environ | LOCAL_CLUSTER_ENV | {"OMP_NUM_THREADS": "1"}
            completed = subprocess.run(command, capture_output=True, text=True, env=environment)
            if completed.returncode:
                raise SystemExit(completed.stderr[-3000:])
            print(f"{case}: {completed.stdout.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
