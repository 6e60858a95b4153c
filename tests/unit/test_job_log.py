"""The output of submitted jobs is kept in the study folder."""

import json
import os
import sys
from pathlib import Path

import pytest

from jobs import job_log
from jobs.common import run_main
from jobs.job_log import JobLog, keep_job_log
from slick.errors import SettingsError
from slick.storage import Folder


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"metadata": {"job_submission_id": "slick-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(metadata))


@pytest.mark.usefixtures("submitted")
def test_output_and_errors_of_a_job_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with keep_job_log(["study", "demo", "--out", str(tmp_path)]):
        print("finetune: 1 of 2 epochs")
        print("slick: stopped", file=sys.stderr)
    assert (tmp_path / "logs" / "slick-1.log").read_text() == "finetune: 1 of 2 epochs\nslick: stopped\n"
    assert capsys.readouterr() == ("finetune: 1 of 2 epochs\n", "slick: stopped\n")


@pytest.mark.usefixtures("submitted")
def test_the_message_of_a_failed_command_is_kept(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise SettingsError("no preset demoo")

    with pytest.raises(SystemExit) as stop:
        run_main(fail, [f"--out={tmp_path}"])
    assert stop.value.code == 2
    assert "no preset demoo" in (tmp_path / "logs" / "slick-1.log").read_text()


@pytest.mark.usefixtures("submitted")
def test_the_log_is_saved_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.waiting import wait_for

    monkeypatch.setattr(job_log, "SAVE_INTERVAL_S", 0.01)
    path = tmp_path / "logs" / "slick-1.log"
    with keep_job_log(["--out", str(tmp_path)]):
        print("first")
        wait_for(lambda: path.exists() and path.read_text() == "first\n", lambda: "not saved")
        print("second")
    assert path.read_text() == "first\nsecond\n"


@pytest.mark.usefixtures("submitted")
@pytest.mark.parametrize("argv", [[], ["status"], ["study", "--out"]])
def test_commands_without_a_study_keep_no_log(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with keep_job_log(argv):
        print("x")
    assert capsys.readouterr() == ("x\n", "")


def test_commands_on_a_laptop_keep_no_log(tmp_path: Path) -> None:
    assert "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
    with keep_job_log(["--out", str(tmp_path)]):
        print("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("submitted")
def test_a_log_that_cannot_be_written_does_not_stop_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study").write_text("a file")
    with keep_job_log(["--out", str(tmp_path / "study")]):
        print("done")
    out, err = capsys.readouterr()
    assert out == "done\n"
    assert err.count("is not kept") == 1


def test_the_middle_of_a_long_log_is_cut(tmp_path: Path) -> None:
    log = JobLog(Folder(str(tmp_path)), "a.log", max_characters=20)
    for i in range(10):
        log.add(f"line {i}\n")
    log.save()
    assert (tmp_path / "a.log").read_text() == "line 0\nlin\n[... 50 characters ...]\n 8\nline 9\n"
