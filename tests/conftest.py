"""Fixtures of all tests. Tests are marked with the name of their folder; a Ray cluster starts once per test run."""

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.common import configure_logging
from tests.environment import EQUAL_PRIORITY

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # oversubscribed cores are ten times slower
os.environ.update(EQUAL_PRIORITY)
# A shell makes background jobs ignore Ctrl-C, and child processes inherit that; tests send it to some.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parts = item.path.relative_to(ROOT).parts
        if parts[0] == "tests" and len(parts) > 2:
            item.add_marker(parts[1])


@pytest.fixture(autouse=True)
def _logging() -> None:
    """Configure logging as the commands do, so that `capsys` captures messages, and propagate them to `caplog`."""
    configure_logging()
    for name in ("slick", "tuning"):
        logging.getLogger(name).propagate = True


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with a dashboard."""
    import ray

    from slick.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # the default of 10 s would slow tests of metrics down
        connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def entity_questions() -> str:
    """Path of the real EntityQuestions archive."""
    path = Path(os.environ.get("SLICK_ENTITY_QUESTIONS", ROOT.parent / "shared" / "data" / "entity_questions.zip"))
    if not path.exists():
        pytest.skip(f"the EntityQuestions archive is not at {path}; set SLICK_ENTITY_QUESTIONS to its path")
    return str(path)


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory with an adjustable size."""

    path: Path

    def set_free_space(self, kib: int) -> None:
        """Resize it so that `kib` KiB are free."""
        size = shutil.disk_usage(self.path).used // 1024 + kib
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(self.path)], check=True)

    def files(self) -> list[str]:
        """Paths of all files and folders, sorted."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 256 KiB; skips if the user may not mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield SmallDisk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)
