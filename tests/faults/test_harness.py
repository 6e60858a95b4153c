"""Studies that random faults disturb equal the undisturbed one; `make faults` does the same for an hour."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.kinds import KINDS

MINUTES = float(os.environ.get("SLICK_FAULT_MINUTES", "10"))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    path = Path(tempfile.mkdtemp(prefix="slick-faults-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
def test_disturbed_studies_equal_the_undisturbed_one(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = short_path / "results.json"
    arguments = ["--minutes", str(MINUTES), "--out", str(out), "--work", str(short_path), "--kinds", *KINDS]
    status = harness.main(arguments)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert sum(len(result.applied) for result in harness.read_results(out)) > 0, printed
