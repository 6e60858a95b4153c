"""Tables, percentages, intervals, durations and progress lines that commands and reports share."""

import ast
import itertools
import time
from pathlib import Path

import pytest

from slick.formatting import MAX_INTERVAL_S, ProgressReporter, format_duration, format_rate, format_table
from slick.report.statistics.intervals import wilson_interval

ROOT = Path(__file__).parents[2]


def test_table_columns_are_aligned() -> None:
    rows = [("variant", "rows", "state"), ("unknown-050", "1,024", ""), ("natural", "7", "done")]
    assert format_table(rows, right=[1]) == [
        "variant       rows  state",
        "unknown-050  1,024",
        "natural          7  done",
    ]


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        format_table([("a", "b"), ("c",)])


@pytest.mark.parametrize("total", [1, 2, 3, 5, 7, 100, 12_345])
def test_wilson_intervals_equal_those_of_scipy(total: int) -> None:
    from scipy.stats import binomtest

    for num in {0, total // 3, total - 1, total}:
        expected = binomtest(num, total).proportion_ci(confidence_level=0.95, method="wilson")
        low, high = wilson_interval(num, total)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert low <= num / total <= high  # else an error bar would be negative


@pytest.mark.parametrize("package", ["jobs", "slick", "tuning"])
def test_only_one_module_aligns_tables(package: str) -> None:
    padding = {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("ljust", "rjust")
    }
    assert padding <= {"slick/formatting.py"}


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
def test_format_duration(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_log_has_a_line_per_interval_and_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter("annotate", 1500, "questions", interval_s=3600)
    for _ in range(3):
        progress.add(500)
    out = capsys.readouterr()
    assert out.out == ""
    lines = out.err.splitlines()
    assert len(lines) == 1, "only the last line"
    assert lines[0].startswith("annotate: 1,500 of 1,500 questions, ")
    assert lines[0].endswith("/s, 0 s left")
    assert "\x1b" not in out.err, "no terminal codes in a log"


def test_on_update_is_called_at_intervals_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    updates: list[str] = []
    progress = ProgressReporter("annotate", 100, "questions", interval_s=3600, quiet=True, on_update=updates.append)
    for _ in range(10):
        progress.add(10)
    (line,) = updates
    assert line.startswith("annotate: 100 of 100 questions, ")
    assert capsys.readouterr().err == ""


def test_speed_excludes_units_of_earlier_runs(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter("annotate", 2000, "questions", interval_s=0.0)
    progress.resume_at(1000)
    time.sleep(0.2)
    progress.add(10, "7 failed")
    line = capsys.readouterr().err.strip()
    assert line.startswith("annotate: 1,010 of 2,000 questions, ")
    assert line.endswith(" left, 7 failed")
    assert float(line.split("questions, ")[1].split("/s")[0]) <= 50, "units of an earlier run must not count"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("per_second", "expected"),
    [
        (1234.5, "1,234.5/s"),
        (1.0, "1.0/s"),
        (0.99, "1.0 s each"),
        (1 / 2.3, "2.3 s each"),
        (1 / 45, "45 s each"),
        (1 / 250, "4 min 10 s each"),
        (0.0, ""),
        (-0.0, ""),
        (-1.0, ""),
    ],
)
def test_rates_below_one_per_second_are_times_per_unit(per_second: float, expected: str) -> None:
    assert format_rate(per_second) == expected


def test_no_rate_and_time_left_before_the_first_unit(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressReporter("sweep", 10, "epochs", interval_s=0.0).add(0)
    assert capsys.readouterr().err == "sweep: 0 of 10 epochs\n"


def test_repeated_work_resets_the_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter("finetune", 1, "epochs")
    progress.resume_at(1)
    clock.now += 20
    progress.add(-1)
    clock.now += 4
    progress.add(1, "run epoch 1 of 1")
    assert capsys.readouterr().err.splitlines() == [
        "finetune: 0 of 1 epochs",
        "finetune: 1 of 1 epochs, 4.0 s each, 0 s left, run epoch 1 of 1",
    ]


def test_log_lines_have_growing_intervals(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    updates: list[str] = []
    hours = 10
    progress = ProgressReporter("finetune", hours * 3600, "epochs", on_update=updates.append)
    times = []
    for _ in range(hours * 3600 - 1):
        clock.now += 1
        progress.add(1)
        if capsys.readouterr().err:
            times.append(clock.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == 10
    assert gaps == sorted(gaps), "intervals must not shrink"
    assert gaps[-1] == MAX_INTERVAL_S
    assert len(times) < 200
    assert len(updates) == (hours * 3600 - 1) // 10, "updates keep the initial interval"


def test_last_line_is_printed_if_fewer_units_are_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter("finetune", 10, "epochs")
    clock.now += 2
    progress.add(4, "ended early")
    assert capsys.readouterr().err == ""
    progress.finish()
    progress.finish()
    assert capsys.readouterr().err == "finetune: 4 of 10 epochs, 2.0/s, 3 s left, ended early\n"
