"""A sweep with shared trajectories compared with the same grid as plain Ray Tune trials, one training per point.

python -m tests.benchmarks.sweep --study STUDY [--variants unknown-000,unknown-100] [--epochs 2,6,10]

STUDY is a finished study of the preset `demo`; it is copied, not written to. Both sweeps train with its settings on all
cores, and their points are compared. The time until the first training begins and the idle share of the cores are
reported too.

python -m tests.benchmarks.sweep --study STUDY --start

reports only the time until the first training begins, and the CPU seconds of all processes until then.
"""

import argparse
import contextlib
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil

from jobs.presets import demo_sweep
from slick.storage import Folder
from tuning.grid import GridConfig
from tuning.sweep import SweepConfig, sweep

STEPS = ("world", "questions", "annotate", "variants")


class SweepMonitor:
    """Measures the seconds until the first training begins and the idle share of the cores from then on."""

    def __init__(self, study: Folder) -> None:
        self._runs, self._idle, self._done = Path(study.local_path, "runs"), [], threading.Event()
        self._began, self.start_s, self.start_cpu_s = time.monotonic(), 0.0, 0.0
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._done.wait(0.5):
            if any(self._runs.glob("*/started.json")):
                if not self.start_s:
                    self.start_s, self.start_cpu_s = time.monotonic() - self._began, cpu_seconds()
                self._idle.append(psutil.cpu_times_percent(None).idle / 100)

    def stop(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        idle = sum(self._idle[1:]) / max(1, len(self._idle) - 1)
        result = {"seconds": time.monotonic() - self._began, "idle_share": idle}
        return result | {"start_s": self.start_s, "start_cpu_s": self.start_cpu_s}


def cpu_seconds() -> float:
    """CPU seconds of this process and its live descendants."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def copy(study: str, folder: Path) -> Folder:
    """Copy the steps before the sweep."""
    for step in STEPS:
        shutil.copytree(Path(study, step), folder / step)
    return Folder(str(folder))


def points(study: Folder) -> set[tuple[tuple[str, object], ...]]:
    rows = study.child("sweep").read_table("points.parquet").drop_columns(["run_id"]).to_pylist()
    return {tuple(sorted(row.items())) for row in rows}


def run(study: Folder, config: SweepConfig) -> dict[str, float]:
    watch = SweepMonitor(study)
    manifest = sweep(study, config)
    return watch.stop() | {"epochs": manifest.counts["epochs_trained"], "trainings": manifest.counts["trainings"]}


def main() -> None:
    """Compare both sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True)
    parser.add_argument("--variants", default="unknown-000,unknown-100")
    parser.add_argument("--epochs", default="2,6,10")
    parser.add_argument("--start", action="store_true")
    arguments = parser.parse_args()
    budgets = tuple(int(epochs) for epochs in arguments.epochs.split(","))
    grid = GridConfig(
        variants=tuple(arguments.variants.split(",")), epochs=budgets, policies=("fixed", "best_dev", "patience(3)")
    )
    config = replace(demo_sweep(), grid=grid)
    with tempfile.TemporaryDirectory() as folder:
        shared_study = copy(arguments.study, Path(folder, "shared"))
        if arguments.start:
            first = run(shared_study, replace(config, grid=replace(grid, epochs=(1,))))
            print(f"the first training began after {first['start_s']:.1f} s and {first['start_cpu_s']:.1f} CPU s")
            return
        shared = run(shared_study, config)
        plain = {"seconds": 0.0, "epochs": 0.0, "trainings": 0.0}
        separate_points: set[tuple[tuple[str, object], ...]] = set()
        for policy in grid.policies:
            study = copy(arguments.study, Path(folder, policy))
            separate = replace(
                config, grid=replace(grid, policies=(policy,)), independent=True, trajectories_per_trial=1
            )
            result = run(study, separate)
            plain = {name: plain[name] + result[name] for name in plain}
            separate_points |= points(study)
        same = separate_points == points(shared_study)
    print(
        f"shared: {shared['trainings']} trainings, {shared['epochs']} epochs, {shared['seconds']:.0f} s; the first "
        f"began after {shared['start_s']:.1f} s; from then on {100 * shared['idle_share']:.0f} % of the cores were idle"
    )
    print(f"plain: {plain['trainings']:.0f} trainings, {plain['epochs']:.0f} epochs, {plain['seconds']:.0f} s")
    epochs, seconds = plain["epochs"] / shared["epochs"], plain["seconds"] / shared["seconds"]
    verdict = "identical" if same else "DIFFERENT"
    print(f"{epochs:.1f} times the epochs, {seconds:.1f} times the time; {len(separate_points)} points, {verdict}")


if __name__ == "__main__":
    main()
