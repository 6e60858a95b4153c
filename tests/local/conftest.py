"""Fixtures of local tests: an empty cache, and a smoke study that is built once per test run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.cli import ROOT, run_slick
from tests.waiting import TIMEOUT_S, wait_for


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for this test run; the smoke world is pretrained once."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICK_CACHE", str(path))
        yield path


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke study that was interrupted by Ctrl-C during its sweep, and resumed."""
    out = tmp_path_factory.mktemp("study") / "smoke"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "study", "smoke", "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(
        lambda: process.poll() is not None or list(out.glob("runs/*/manifest.json")), lambda: "no training finished"
    )
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 130, text
    assert not (out / "report").exists()

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/manifest.json")}
    kept = (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns
    result = run_slick("study", "smoke", "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    assert (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns == kept
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, f"{path} was trained again"
    return out
