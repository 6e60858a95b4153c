"""`slick` as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def slick(*words: str, timeout_s: float = 600, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end; `environ` is added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
