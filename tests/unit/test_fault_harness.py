"""The harness of random faults: it finds changed rows, judges how a run ended, and counts faults by kind and step."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.comparison import find_differences
from tests.faults.harness import next_number, read_results, write_results
from tests.faults.kinds import KINDS
from tests.faults.leftovers import Watch, leftover_files, session_processes, unused_shared_memory
from tests.faults.results import summary, table
from tests.faults.rounds import CONTINUED, RESUMED, WRONG, Applied, Round, _judge_end, plan_round
from tests.waiting import wait_for

ANSWERS = {
    "question_id": ["a", "b", "c", "d"],
    "greedy": ["Paris", "Rome", "", "Oslo"],
    "hits": [[True], [False], [False], [True]],
    "loss": [0.25, 1.5, float("nan"), 3.0],
}


def write_study(path: Path, parts: tuple[slice, ...] = (slice(0, 4),), **changes: list[object]) -> Path:
    folder = path / "annotate" / "generations"
    folder.mkdir(parents=True)
    table = pa.table(ANSWERS | changes)
    for number, rows in enumerate(parts):
        pq.write_table(table.slice(rows.start, rows.stop - rows.start), folder / f"part-{number:06}.parquet")
    (path / "report").mkdir()
    findings = [{"id": "E1", "verdict": "holds", "own": "0.5", "power": 0.75}]
    (path / "report" / "outcomes.json").write_text(json.dumps(findings))
    return path


def test_equal_studies_may_have_their_rows_in_other_files(tmp_path: Path) -> None:
    first = write_study(tmp_path / "first")
    assert find_differences(first, write_study(tmp_path / "same", (slice(2, 4), slice(0, 2)))) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"greedy": ["Paris", "Rome", " ", "Oslo"]}, "annotate/generations/part-*: column greedy differs in 1 rows"),
        ({"hits": [[True], [True], [False], [True]]}, "column hits differs in 1 rows; row 1: [True], not [False]"),
        ({"loss": [0.26, 1.5, float("nan"), 3.0]}, "column loss differs in 1 rows; row 0: 0.26, not 0.25"),
        ({"loss": [0.25, 1.5, 0.0, 3.0]}, "column loss differs in 1 rows; row 2: 0.0, not nan"),
        ({"question_id": ["a", "b", "c", "c"]}, "column question_id differs in 1 rows"),
        ({"more": [1, 2, 3, 4]}, "columns ["),
    ],
)
def test_a_changed_row_is_found(tmp_path: Path, changes: dict[str, list[object]], expected: str) -> None:
    first, second = write_study(tmp_path / "first"), write_study(tmp_path / "second", **changes)
    (difference,) = find_differences(first, second)
    assert expected in difference


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    second = write_study(tmp_path / "second", loss=[0.25000001, 1.5, float("nan"), 3.0])
    assert find_differences(write_study(tmp_path / "first"), second) == []


def test_missing_rows_files_and_verdicts_are_found(tmp_path: Path) -> None:
    first = write_study(tmp_path / "first")
    fewer = write_study(tmp_path / "fewer", (slice(0, 3),))
    assert find_differences(first, fewer) == ["annotate/generations/part-*: 3 rows, expected 4"]

    (fewer / "annotate" / "generations" / "part-000000.parquet").unlink()
    (fewer / "report" / "outcomes.json").write_text('[{"id": "E1", "verdict": "fails", "own": "0.5", "power": 0.75}]')
    assert find_differences(first, fewer) == [
        "annotate/generations/part-*: missing",
        "report/outcomes.json: E1 differs in verdict",
    ]


def test_table_counts_faults_by_kind_and_step() -> None:
    rounds = [
        Round(
            number=0,
            applied=[
                Applied(kind="driver", step="sweep", action="", outcome=RESUMED),
                Applied(kind="actor", step="annotate", action="", outcome=CONTINUED),
            ],
            statuses=[-9, 0],
        ),
        Round(
            number=1,
            applied=[
                Applied(kind="driver", step="sweep", action="", outcome=RESUMED),
                Applied(kind="driver", step="report", action="", outcome=WRONG),
            ],
            differences=["points.parquet: 1 row"],
            late=["raylet"],
            longest_s=31.4,
        ),
    ]
    assert table(rounds)[2:] == [
        "| actor | annotate | 1 | 1 | 0 | 0 | 0 |",
        "| driver | report | 1 | 0 | 0 | 0 | 1 |",
        "| driver | sweep | 2 | 0 | 1 | 1 | 0 |",
        "| all |  | 4 | 1 | 1 | 1 | 1 |",
    ]
    assert "differ from the undisturbed one: 1" in summary(rounds)[1]
    assert "more than 20 s: 1; the longest life was 31 s" in summary(rounds)[2]


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (-9, "", RESUMED),
        (2, "\nslick: the disk is full; run the same command again\n", RESUMED),
        (2, "\nslick: the disk is full\n", WRONG),
        (2, "slick: one, run it again\nslick: two\n", WRONG),
        (1, "Traceback (most recent call last):\nValueError: slick\n", WRONG),
        (-999, "", WRONG),
    ],
)
def test_a_run_must_end_with_one_message_that_says_how_to_resume(status: int, output: str, expected: str) -> None:
    result = Round(number=0, applied=[Applied(kind="driver" if status == -9 else "raylet", step="sweep", action="")])
    _judge_end(result, status, output, is_disturbed=True)
    assert [fault.outcome for fault in result.applied] == [expected]


def test_plans_depend_on_the_seed_alone_and_are_in_order_of_the_steps() -> None:
    plans = [plan_round(0, number, list(KINDS)) for number in range(60)]
    assert plans == [plan_round(0, number, list(KINDS)) for number in range(60)]
    assert plans != [plan_round(1, number, list(KINDS)) for number in range(60)]
    assert {fault.kind for plan in plans for fault in plan} == set(KINDS)
    assert all(fault.step in KINDS[fault.kind].steps for plan in plans for fault in plan)


def test_finished_rounds_are_read_and_not_repeated(tmp_path: Path) -> None:
    rounds = [Round(number=0, applied=[Applied(kind="driver", step="sweep", action="")], statuses=[0])]
    write_results(tmp_path / "results.json", rounds)
    assert read_results(tmp_path / "results.json") == rounds
    assert next_number(0, rounds) == 1


def test_processes_and_files_that_remain_are_found(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    driver.wait()
    (orphan,) = session_processes(driver.pid)
    assert "time.sleep(600)" in orphan.title
    watch = Watch(driver.pid)
    wait_for(lambda: watch.longest_s > 0)
    subprocess.run(["kill", "-9", str(orphan.pid)], check=True)
    watch.join()
    assert session_processes(driver.pid) == []

    reference, study, temporary = (tmp_path / name for name in ("reference", "study", "t"))
    for path in ("reference/annotate", "study/annotate", "study/.locks", "t/ray", "t/slick-x"):
        (tmp_path / path).mkdir(parents=True)
    (study / "annotate" / ".knowledge.parquet.0.part").touch()
    assert leftover_files(study, reference, temporary) == [
        "annotate/.knowledge.parquet.0.part",
        ".locks",
        "TMPDIR/slick-x",
    ]
    assert "slick-not-there" not in unused_shared_memory(set())
