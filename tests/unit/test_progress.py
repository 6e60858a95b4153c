"""The progress line of a long step."""

import time

import pytest

from slick.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7260, "2 h 1 min"),
        (360_000, "100 h 0 min"),
        (float("inf"), "unknown time"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_log_gets_a_line_each_interval_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("annotate", 1500, "questions", interval_s=3600)
    for _ in range(3):
        progress.add(500)
    out = capsys.readouterr()
    assert out.out == ""
    lines = out.err.splitlines()
    assert len(lines) == 1, "not each of the three"
    assert lines[0].startswith("annotate: 1,500 of 1,500 questions, ")
    assert lines[0].endswith("/s, 0 s left")
    assert "\x1b" not in out.err, "no terminal codes in a log"


def test_who_listens_is_told_as_often_as_a_log_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    progress = Progress("annotate", 100, "questions", interval_s=3600, quiet=True, tell=told.append)
    for _ in range(10):
        progress.add(10)
    (line,) = told
    assert line.startswith("annotate: 100 of 100 questions, ")
    assert capsys.readouterr().err == ""


def test_the_speed_is_that_of_this_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("annotate", 2000, "questions", interval_s=0.0)
    progress.resume_at(1000)
    time.sleep(0.2)
    progress.add(10, "7 failed")
    line = capsys.readouterr().err.strip()
    assert line.startswith("annotate: 1,010 of 2,000 questions, ")
    assert line.endswith(" left, 7 failed")
    speed = float(line.split("questions, ")[1].split("/s")[0])
    assert 0 < speed <= 50, "10 in at least 0.2 s, whatever an earlier run did"


def test_nothing_done_yet_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("sweep", 10, "epochs", interval_s=0.0).add(0)
    assert "unknown time left" in capsys.readouterr().err
