"""Temporary folders of killed processes are deleted by the next process; those of live processes stay."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from slick.private_folders import new_private_folder, private_folder
from slick.process_identity import process_identity

MAKE_AND_DIE = """
import os, signal, sys
from slick.private_folders import new_private_folder
print(new_private_folder("slick-x-", sys.argv[1]), flush=True)
if sys.argv[2] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def start(parent: Path, then: str) -> tuple["subprocess.Popen[str]", Path]:
    command = [sys.executable, "-c", MAKE_AND_DIE, str(parent), then]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_folder_of_a_killed_process_is_deleted(tmp_path: Path) -> None:
    dead, abandoned = start(tmp_path, "die")
    dead.wait()
    (abandoned / "checkpoint").mkdir()
    alive, used = start(tmp_path, "wait")
    other = tmp_path / "slick-x-without-owner"
    other.mkdir()
    own = Path(new_private_folder("slick-x-", str(tmp_path)))
    assert not abandoned.exists()
    assert used.exists()
    assert other.exists()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    alive.communicate("")


def test_folder_of_another_machine_stays(tmp_path: Path) -> None:
    folder = Path(new_private_folder("slick-x-", str(tmp_path)))
    identity = process_identity(os.getpid())
    assert identity
    (folder / "owner").write_text(f"other-boot {identity.partition(' ')[2]}")
    new_private_folder("slick-x-", str(tmp_path))
    assert folder.exists()


def test_folder_is_deleted_after_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder("slick-x-") as folder:
        assert Path(folder).parent == tmp_path
        Path(folder, "file").touch()
    assert not any(tmp_path.iterdir())
