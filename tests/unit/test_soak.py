"""The soak benchmark: what counts as growth, resuming, and what is measured."""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.benchmarks import soak as benchmark
from tests.benchmarks.soak import BOUNDS_PER_HOUR, FLAT, GROWS, UNDECIDED, Soak, fit, measure, plot, process_kind, table
from tests.faults.leftovers import Process

CURVES = dict.fromkeys([*BOUNDS_PER_HOUR, "log MB"], 1.0)


def make_samples(per_hour: float, noise: float, minutes: int = 60, run: int = 0, level: float = 500) -> list[dict]:
    """Measurements of a curve that jumps in the first quarter, and then grows by `per_hour` with some noise."""
    rng = random.Random(0)
    return [
        CURVES
        | {"run": run, "seconds": 10.0 * i}
        | {"driver MB": level * (i >= minutes * 1.5) + per_hour * i / 360 + rng.gauss(0, noise)}
        for i in range(1, 6 * minutes + 1)
    ]


@pytest.mark.parametrize(
    ("per_hour", "noise", "minutes", "expected"),
    [
        (0, 5, 60, FLAT),
        (20, 1, 60, FLAT),  # it grows, by less than the bound of 50
        (300, 5, 60, GROWS),
        (60, 0.1, 60, GROWS),
        (40, 200, 60, UNDECIDED),  # the interval holds 0 and the bound
        (300, 0.1, 15, UNDECIDED),  # too short
    ],
)
def test_growth_is_judged_by_its_interval_and_a_bound(
    per_hour: float, noise: float, minutes: int, expected: str
) -> None:
    slope = fit(make_samples(per_hour, noise, minutes), "driver MB", BOUNDS_PER_HOUR["driver MB"])
    assert slope is not None
    assert slope.low < per_hour < slope.high
    assert slope.verdict == expected


def test_runs_have_their_own_level() -> None:
    samples = make_samples(10, 1, 30) + make_samples(10, 1, 30, run=1, level=3000)
    slope = fit(samples, "driver MB", 50)
    assert slope is not None
    assert slope.per_hour == pytest.approx(10, abs=5)
    assert slope.verdict == FLAT
    assert fit(samples[:3], "driver MB", 50) is None, "too few measurements"


def test_table_and_curves(tmp_path: Path) -> None:
    soak = Soak(part="train", samples=make_samples(300, 5), repetitions=[30.0, 40.0], kills={"trial": 3})
    lines = table(soak)
    (driver,) = [line for line in lines if line.startswith("| driver MB |")]
    assert driver.endswith("| 50 | grows |")
    assert "60 minutes of `train`: 2 repetitions, median 35 s; faults: 3 trial." in lines
    plot(soak, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert all(name in drawn for name in CURVES)


def test_finished_time_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "soak.json"
    finished = Soak(part="train", samples=make_samples(0, 1, 10))
    out.write_text(json.dumps(asdict(finished)))

    def refuse(*_: object) -> None:
        raise AssertionError("no run is needed")

    monkeypatch.setattr(benchmark, "Driver", refuse)
    assert benchmark.run("train", 10, out, tmp_path / "work", 0) == finished
    with pytest.raises(SystemExit, match="results of --part train"):
        benchmark.run("annotate", 10, out, tmp_path / "work", 0)
    with pytest.raises(AssertionError, match="no run is needed"):
        benchmark.run("train", 11, out, tmp_path / "work", 0)


def test_resources_of_a_session_are_measured(tmp_path: Path) -> None:
    (tmp_path / "t" / "ray").mkdir(parents=True)
    (tmp_path / "t" / "ray" / "log").write_bytes(bytes(1 << 20))
    code = (
        "import sys, threading, time; kept = b'x' * (64 << 20)\n"
        "files = [open(sys.argv[1] + str(i), 'w') for i in range(20)]\n"
        "for _ in range(7): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "t" / "file")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout
        process.stdout.readline()
        values = measure(process.pid, tmp_path / "t", set(os.listdir("/dev/shm")))
    finally:
        process.kill()
        process.wait()
    assert values.keys() == CURVES.keys()
    assert 64 < values["driver MB"] < 128
    assert values["driver files"] == values["files"] == 23
    assert values["driver threads"] == 8
    assert values["processes"] == 1
    assert values["temporary files"] == 20
    assert values["log MB"] == 1
    assert values["workers MB"] == values["services MB"] == 0


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("python -m tests.benchmarks.soak", "services"),
        ("/x/raylet/raylet --a", "services"),
        ("ray::DashboardAgent", "services"),
        ("ray::RuntimeEnvAgent", "services"),
        ("ray::MapWorker(MapBatches(AnnotationWorker)).submit", "workers"),
        ("ray::IDLE", "workers"),
    ],
)
def test_kinds_of_processes(title: str, kind: str) -> None:
    assert process_kind(Process(7, "1", title), driver=1) == kind
    assert process_kind(Process(1, "1", title), driver=1) == "driver"
