"""Repeat a small annotation or small trainings for an hour, with random kills: do memory, files and threads stay flat?

python -m tests.benchmarks.soak --part annotate --minutes 60 --out soak-annotate.json
python -m tests.benchmarks.soak --part train --minutes 60 --out soak-train.json

One process repeats the work in one Ray cluster. Every 10 s, the resources of all processes of its session are measured.
The file of results is written after each measurement; the same command goes on until the minutes of all its runs add
up. FILE.svg has the curves. The status is 1 if a curve grows, a repetition failed, or something remained.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slick.errors import SlickError
from tests.faults.kinds import KINDS, Target
from tests.faults.leftovers import Process, Watch, kill_session, session_processes, shared_memory, unused_shared_memory

ROOT = Path(__file__).parents[2]
WORK = Path("/tmp/slick-soak")
"""Default folder of the study and the logs. Its path is short, since Ray keeps sockets in it."""
SAMPLE_S = 10.0
MEAN_SECONDS_BETWEEN_KILLS = 45.0
FAULTS = {
    "annotate": ("actor", "hung actor"),
    "train": ("train worker", "trial", "controller", "hung train worker"),
}
"""Part -> kinds of faults, see docs/reliability.md."""
WARM_UP = 0.5
"""Share of each run that is not judged: caches fill, and libraries are loaded."""
NUM_BLOCKS = 10
"""Means over so many blocks of the judged time are regressed, since neighboring measurements depend on each other."""
MIN_BLOCK_S = 60.0
"""Shorter blocks hold parts of a repetition, and nothing is judged."""

BOUNDS_PER_HOUR = {
    "driver MB": 50.0,
    "driver files": 10.0,
    "driver threads": 5.0,
    "services MB": 100.0,
    "workers MB": 100.0,
    "processes": 2.0,
    "files": 50.0,
    "threads": 50.0,
    "object store MB": 10.0,
    "shared memory files": 1.0,
    "temporary files": 5.0,
}
"""Curve -> growth per hour that counts as flat. Services are Ray's processes without those of actors."""
FLAT, GROWS, UNDECIDED = "flat", "grows", "undecided"


@dataclass(kw_only=True)
class Soak:
    """The results of all runs with the same file."""

    part: str
    samples: list[dict[str, float]] = field(default_factory=list)
    """Measurements: `run` (its number), `seconds` since its start, the curves and `log MB`."""
    repetitions: list[float] = field(default_factory=list)
    """Seconds that each repetition of the work took."""
    errors: list[str] = field(default_factory=list)
    """Messages of repetitions that failed."""
    kills: dict[str, int] = field(default_factory=dict)
    """Kind of fault -> number."""
    left: list[str] = field(default_factory=list)
    """Processes, temporary files and shared memory that remained after a run."""

    def minutes(self) -> float:
        """Measured minutes of all runs."""
        last: dict[float, float] = {}
        for sample in self.samples:
            last[sample["run"]] = sample["seconds"]
        return sum(last.values()) / 60


@dataclass(frozen=True)
class Slope:
    """The growth of a curve over the judged part of the runs."""

    per_hour: float
    low: float
    """Lower end of the 95 % interval, per hour."""
    high: float
    verdict: str


def process_kind(process: Process, driver: int) -> str:
    """`driver`, `workers` (actors and trainings) or `services` (other processes of Ray)."""
    if process.pid == driver:
        return "driver"
    is_agent = any(name in process.title for name in ("DashboardAgent", "RuntimeEnvAgent"))
    return "workers" if process.title.startswith("ray::") and not is_agent else "services"


def measure(session: int, temporary: Path, memory_before: set[str]) -> dict[str, float]:
    """The present value of each curve.

    Args:
        session: id of the session, and of the driver.
        temporary: TMPDIR of the processes.
        memory_before: names in /dev/shm before the run.
    """
    sums: Counter[str] = Counter()
    for process in session_processes(session):
        kind = process_kind(process, session)
        try:
            fields = _status(process.pid)
            num_files = len(os.listdir(f"/proc/{process.pid}/fd"))
        except (OSError, ValueError):
            continue  # it has ended
        sums[f"{kind} MB"] += fields["RssAnon"] + fields["RssFile"]
        sums["object store MB"] += fields["RssShmem"] if "/raylet/raylet" in process.title else 0
        for name, value in (("files", num_files), ("threads", fields["Threads"]), ("processes", 1)):
            sums[name] += value
            if kind == "driver" and name != "processes":
                sums[f"driver {name}"] += value
    sums["shared memory files"] = len(shared_memory() - memory_before)
    sums["temporary files"] = sum(len(files) for _, files in _walk(temporary, skip="ray"))
    sizes = (_size(path / name) for path, files in _walk(temporary / "ray") for name in files)
    values = {name: float(value) for name, value in sums.items()}
    for name in [name for name in values if name.endswith(" MB")]:
        values[name] /= 1024
    return dict.fromkeys(BOUNDS_PER_HOUR, 0.0) | values | {"log MB": sum(sizes) / 2**20}


def _status(pid: int) -> dict[str, int]:
    """Numbers of /proc/PID/status; sizes in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem", "Threads")}


def _walk(folder: Path, skip: str = "") -> Iterator[tuple[Path, list[str]]]:
    for path, folders, files in os.walk(folder):
        if skip and path == str(folder) and skip in folders:
            folders.remove(skip)
        yield Path(path), files


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def slopes(soak: Soak) -> dict[str, Slope]:
    """The growth of each curve; empty if there are too few measurements."""
    return {name: slope for name, bound in BOUNDS_PER_HOUR.items() if (slope := fit(soak.samples, name, bound))}


def fit(samples: Sequence[Mapping[str, float]], name: str, bound: float) -> Slope | None:
    """The growth of a curve over the later part of each run, by regression; None if there are too few measurements.

    Each run has its own level, since it has its own processes.
    """
    from scipy import stats

    times, values, num_runs, shortest_s = [], [], 0, np.inf
    for run in sorted({sample["run"] for sample in samples}):
        own = [sample for sample in samples if sample["run"] == run]
        judged = [sample for sample in own if sample["seconds"] >= WARM_UP * own[-1]["seconds"]]
        if len(judged) < NUM_BLOCKS:
            continue
        num_runs += 1
        shortest_s = min(shortest_s, (1 - WARM_UP) * own[-1]["seconds"] / NUM_BLOCKS)
        blocks = np.array_split(np.array([(sample["seconds"] / 3600, sample[name]) for sample in judged]), NUM_BLOCKS)
        means = np.array([block.mean(axis=0) for block in blocks])
        means -= means.mean(axis=0)
        times += list(means[:, 0])
        values += list(means[:, 1])
    if not num_runs:
        return None
    x, y = np.array(times), np.array(values)
    slope = float(x @ y / (x @ x))
    degrees = len(x) - num_runs - 1
    error = float(np.sqrt(((y - slope * x) ** 2).sum() / degrees / (x @ x)))
    low, high = (slope + side * float(stats.t.ppf(0.975, degrees)) * error for side in (-1, 1))
    verdict = FLAT if slope <= bound and (low > 0 or high <= bound) else UNDECIDED
    if low > 0 and slope > bound:
        verdict = GROWS
    return Slope(slope, low, high, verdict if shortest_s >= MIN_BLOCK_S else UNDECIDED)


def table(soak: Soak) -> list[str]:
    """Lines of a Markdown table of the curves, and sentences on the runs."""
    lines = [
        "| curve | first | last | growth per hour (95 % interval) | bound | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, slope in slopes(soak).items():
        first, last = (np.mean([sample[name] for sample in part]) for part in (soak.samples[:6], soak.samples[-6:]))
        growth = f"{slope.per_hour:+.1f} ({slope.low:+.1f} to {slope.high:+.1f})"
        lines.append(
            f"| {name} | {first:.0f} | {last:.0f} | {growth} | {BOUNDS_PER_HOUR[name]:.0f} | {slope.verdict} |"
        )
    kills = ", ".join(f"{number} {name}" for name, number in sorted(soak.kills.items())) or "none"
    typical = f", median {np.median(soak.repetitions):.0f} s" if soak.repetitions else ""
    logs = soak.samples[-1]["log MB"] if soak.samples else 0.0
    repetitions = f"{len(soak.repetitions)} repetitions{typical}"
    return [
        *lines,
        "",
        f"{soak.minutes():.0f} minutes of `{soak.part}`: {repetitions}; faults: {kills}.",
        f"Failed repetitions: {len(soak.errors)}. Left after the runs: {', '.join(soak.left) or 'nothing'}.",
        f"Ray's logs have {logs:.0f} MB. They grow with the number of actors, and are kept for the user.",
    ]


def plot(soak: Soak, path: Path) -> None:
    """Draw all curves into an SVG file; runs follow each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text as text
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 3, figsize=(11, 9), sharex=True, layout="constrained")
    for name, axis in zip([*BOUNDS_PER_HOUR, "log MB"], axes.flat, strict=True):
        before = 0.0
        for run in sorted({sample["run"] for sample in soak.samples}):
            own = [sample for sample in soak.samples if sample["run"] == run]
            axis.plot([before + sample["seconds"] / 60 for sample in own], [sample[name] for sample in own], lw=0.8)
            before += own[-1]["seconds"] / 60
        axis.set_title(name, fontsize=9)
        axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    figure.savefig(path)
    pyplot.close(figure)


class Driver:
    """The process that repeats the work, in a session of its own."""

    def __init__(self, part: str, work: Path) -> None:
        self.temporary, self._stop, self.log = work / "t", work / "stop", work / "log"
        shutil.rmtree(work, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "TMPDIR": str(self.temporary)}
        environ |= {"PYTHONPATH": str(ROOT), "SLICK_CACHE": str(work / "cache")}
        environ |= {"TORCHINDUCTOR_CACHE_DIR": str(work / "cache" / "kernels")}
        command = [sys.executable, "-m", "tests.benchmarks.soak", "--drive", "--part", part, "--work", str(work)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.session = self._process.pid

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def stop(self) -> int:
        """End after the present repetition; returns the exit status."""
        self._stop.touch()
        return self._process.wait()

    def results(self) -> tuple[list[float], list[str]]:
        """Seconds of the finished repetitions, and messages of those that failed."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith('{"seconds"')]
        return [row["seconds"] for row in rows], [row["error"] for row in rows if row["error"]]


def run(part: str, minutes: float, out: Path, work: Path, seed: int) -> Soak:
    """Soak until the runs of the file have the given length; ends early if the driver ends."""
    soak = Soak(**json.loads(out.read_text())) if out.exists() else Soak(part=part)
    if soak.part != part:
        sys.exit(f"{out} has results of --part {soak.part}; give another file")
    number = max((int(sample["run"]) for sample in soak.samples), default=-1) + 1
    seconds = 60 * (minutes - soak.minutes())
    if seconds <= 0:
        return soak
    memory = shared_memory()
    driver = Driver(part, work)
    began, earlier = time.monotonic(), Soak(**asdict(soak))
    killer = Killer(part, driver, random.Random(f"{seed}/{number}"))
    try:
        while time.monotonic() - began < seconds and not driver.has_ended():
            time.sleep(SAMPLE_S)
            sample = measure(driver.session, driver.temporary, memory)
            soak.samples.append({"run": number, "seconds": time.monotonic() - began, **sample})
            durations, errors = driver.results()
            soak.repetitions, soak.errors = earlier.repetitions + durations, earlier.errors + errors
            soak.kills = dict(Counter(earlier.kills) + killer.kills)
            _write(soak, out)
        killer.stop()
        if status := driver.stop():
            soak.errors.append(f"the driver ended with status {status}: {driver.log.read_text()[-1500:]}")
        watch = Watch(driver.session)
        watch.join()
        soak.left += watch.late
    finally:
        killer.stop()
        kill_session(driver.session)
    soak.left += [f"TMPDIR/{path.name}" for path in driver.temporary.iterdir() if path.name != "ray"]
    soak.left += [f"/dev/shm/{name}" for name in unused_shared_memory(memory)]
    _write(soak, out)
    return soak


class Killer:
    """Injects faults at random moments, in a thread."""

    def __init__(self, part: str, driver: Driver, rng: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self._part, self._driver, self._rng = part, driver, rng
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Inject no more faults, and wait for the end of the present one."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._rng.expovariate(1 / MEAN_SECONDS_BETWEEN_KILLS)):
            name = self._rng.choice(FAULTS[self._part])
            end = time.monotonic() + MEAN_SECONDS_BETWEEN_KILLS
            target = Target(
                session=self._driver.session,
                disk=Path(),
                store=None,
                hooks=Path(),
                has_ended=lambda: self._ended.is_set() or self._driver.has_ended(),
                is_in_step=lambda end=end: time.monotonic() < end,
                rng=self._rng,
            )
            if KINDS[name].inject(target):
                self.kills[name] += 1


def _write(soak: Soak, out: Path) -> None:
    part = out.with_suffix(".part")
    part.write_text(json.dumps(asdict(soak)))
    part.replace(out)


def drive(part: str, work: Path) -> None:
    """Repeat the work until the file `stop` exists; prints a line of JSON after each repetition."""
    repeat = WORKLOADS[part](work / "study")
    while not (work / "stop").exists():
        began, error = time.monotonic(), ""
        try:
            repeat()
        except SlickError as raised:
            error = str(raised)
        print(json.dumps({"seconds": round(time.monotonic() - began, 1), "error": error}), flush=True)


def _annotation(path: Path) -> Callable[[], Any]:
    from slick.annotation import AnnotateConfig, annotate
    from slick.inference.base import SamplingConfig
    from tests.local.tiny import tiny_model, tiny_tokenizer
    from tests.study_builder import write_trainable_study

    study = write_trainable_study(path, tiny_model("llama"), tiny_tokenizer(), train=200, ood=0)
    config = AnnotateConfig(
        model=str(path / "world" / "model"),
        num_exemplar_sets=3,
        num_shots=2,
        sampling=SamplingConfig(num_samples=4),
        batch_questions=4,
        batches_per_file=1,
        max_actors=2,
    )

    def repeat() -> None:
        study.child("annotate").delete()
        annotate(study, config)

    return repeat


def _training(path: Path) -> Callable[[], Any]:
    from tests.local.tiny import tiny_model, tiny_tokenizer
    from tests.study_builder import write_trainable_study
    from tuning.config import TrainConfig
    from tuning.grid import GridConfig
    from tuning.sweep import SweepConfig, sweep

    study = write_trainable_study(path, tiny_model("llama", spread=0.1), tiny_tokenizer())
    train = TrainConfig(learning_rate=5e-3, batch_size=4, max_new_tokens=6, keep_checkpoints="none", state_share=1.0)
    grid = GridConfig(variants=("half", "known"), epochs=(12,), policies=("fixed",))
    config = SweepConfig(grid=grid, train=train, trajectories_per_trial=None, max_concurrent=1, retries=10)

    def repeat() -> None:
        for name in ("runs", "sweep"):
            study.child(name).delete()
        sweep(study, config)

    return repeat


WORKLOADS: dict[str, Callable[[Path], Callable[[], Any]]] = {"annotate": _annotation, "train": _training}


def main(argv: list[str] | None = None) -> int:
    """Run a part for some minutes, print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=WORKLOADS, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.drive:
        drive(options.part, options.work)
        return 0
    out = options.out or Path(f"soak-{options.part}.json")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the session of the driver is killed
    soak = run(options.part, options.minutes, out, options.work / options.part, options.seed)
    plot(soak, out.with_suffix(".svg"))
    print("\n".join(table(soak)))
    return 1 if soak.left or soak.errors or any(slope.verdict == GROWS for slope in slopes(soak).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
