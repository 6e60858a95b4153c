"""Run the command `slick` in a subprocess."""

import os
import subprocess
import sys
from pathlib import Path

from tests.waiting import TIMEOUT_S

ROOT = Path(__file__).parents[2]


def run_slick(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends; `environ` is added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
