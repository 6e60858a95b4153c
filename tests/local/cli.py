"""`slick` as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.waiting import TIMEOUT_S

ROOT = Path(__file__).parents[2]


def slick(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end; `environ` is added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
