"""Checks of label stability: flips, controls and convergence of labels; malformed files are refused."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slick.errors import StudyError
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.sections.stability import (
    ConfidenceRecord,
    LabelStability,
    control_known_rate,
    control_table,
    flip_rate,
    flip_table,
    known_unknown_flip_rate,
    last_step_change,
    load_stability,
    parse_confidence,
    settling_table,
    stability_section,
)
from slick.storage import Folder
from slick.stored_files import convert
from slick.study import begin_step, complete_step, fingerprint
from slick.types import Category

HIGHLY, MAYBE, WEAKLY, UNKNOWN = Category


def counts(*numbers: int) -> dict[str, int]:
    return {str(category): num for category, num in zip(Category, numbers, strict=True)}


def confidence() -> dict[str, Any]:
    """confidence.json with 40 questions, 20 repeated of which 5 flip, and 10 controls of which 2 are labelled Known."""
    steps = [
        (1, 4, (20, 0, 4, 16)),
        (2, 4, (14, 8, 6, 12)),
        (3, 4, (12, 10, 8, 10)),
        (3, 1, (12, 10, 2, 16)),
        (3, 2, (12, 10, 6, 12)),
    ]
    rows = [counts(6, 1, 0, 0), counts(1, 2, 0, 0), counts(0, 1, 3, 1), counts(0, 0, 1, 4)]
    return {
        "settling": [
            {"exemplar_sets": sets, "samples": samples, "categories": counts(*found)} for sets, samples, found in steps
        ],
        "repeats": {
            "questions": 20,
            "flipped": 5,
            "flip_rate": 0.25,
            "from_to": {str(category): row for category, row in zip(Category, rows, strict=True)},
        },
        "controls": {
            "questions": 10,
            "categories": {"P17": {"test": counts(0, 1, 1, 3)}, "P19": {"test": counts(0, 0, 0, 5)}},
        },
    }


def annotated(root: Path, content: Any = None, chances: list[float | None] | None = None) -> Folder:
    """A study with a finished annotation of three Unknown questions and a WeaklyKnown one."""
    study = Folder(str(root))
    folder = study.child("annotate")
    table = {"question_id": ["a", "b", "c", "d"], "category": [str(UNKNOWN)] * 3 + [str(WEAKLY)]}
    if chances is not None:
        table["chance_known"] = chances  # type: ignore[assignment]
    identity = fingerprint(str(root))
    begin_step(folder, "annotate", identity, {})
    folder.write_table("knowledge.parquet", pa.table(table))
    if content is not None:
        folder.write_bytes("confidence.json", content if isinstance(content, bytes) else json.dumps(content).encode())
    complete_step(folder, "annotate", identity, settings={}, inputs={}, counts={}, started_at=time.monotonic())
    return study


def parsed(content: dict[str, Any]) -> LabelStability:
    return parse_confidence(convert(content, ConfidenceRecord))


def test_flip_rates_by_category_and_between_known_and_unknown() -> None:
    found = parsed(confidence())
    assert (flip_rate(found).share, flip_rate(found).total) == (0.25, 20)
    assert (flip_rate(found, MAYBE).share, flip_rate(found, MAYBE).total) == (pytest.approx(1 / 3), 3)
    assert flip_rate(found, UNKNOWN).share == pytest.approx(0.2)
    assert known_unknown_flip_rate(found).share == pytest.approx(2 / 20)
    # Wilson's interval of 5 in 20, by his formula.
    z, p, n = 1.959964, 0.25, 20
    middle, reach = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    wanted = ((middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n))
    assert flip_rate(found)[2:] == pytest.approx(wanted, abs=1e-5)
    rows = {row[0]: row for row in flip_table(found).rows}
    assert rows["WeaklyKnown"][1:6] == (0, 1, 3, 1, 5)
    assert rows["all"][1:6] == (7, 4, 4, 5, 20)
    assert str(rows["all"][6]).startswith("25.0 (")


def test_known_controls_are_counted_as_guesses() -> None:
    found = parsed(confidence())
    assert (control_known_rate(found).share, control_known_rate(found).total) == (0.2, 10)
    rows = control_table(found).rows
    assert [row[:2] for row in rows] == [*zip(map(str, Category), (0, 1, 1, 8), strict=True), ("Known, so guessed", 2)]


def test_steps_are_split_by_exemplar_sets_and_samples() -> None:
    found = parsed(confidence())
    assert [(step.exemplar_sets, step.samples) for step in found.by_sets()] == [(1, 4), (2, 4), (3, 4)]
    assert [(step.exemplar_sets, step.samples) for step in found.by_samples()] == [(3, 1), (3, 2), (3, 4)]
    assert [step.share(UNKNOWN) for step in found.by_samples()] == [0.4, 0.3, 0.25]
    assert last_step_change(found.by_sets(), UNKNOWN) == pytest.approx(-5)
    assert last_step_change(found.by_sets(), MAYBE) == pytest.approx(5)
    assert settling_table(found).rows[0] == (1, 4, 20, 0, 4, 16)
    assert len(settling_table(found).rows) == 5


def test_section_summarises_all_checks(tmp_path: Path) -> None:
    found = load_stability(annotated(tmp_path, confidence(), [0.1, 0.3, 0.2, 0.9]))
    assert found is not None
    assert (found.chance_known, found.num_unknown) == (pytest.approx(0.2), 3)
    shown = stability_section(StudyData(loaded={load_stability: found}))
    assert not [exhibit.missing for exhibit in shown.exhibits if exhibit.missing]
    assert "25.0 % (11.2 to 46.9) of 20 questions change their category, and 10.0 % (" in shown.result
    assert "The last exemplar set moves 5.0 % of the questions out of Unknown, the last 2 samples 5.0 %." in shown.text
    assert "a correct one for 20.0 % of the 3 Unknown questions" in shown.text
    assert "Of 10 questions about invented subjects, 20.0 % (" in shown.text


def test_skipped_checks_are_missing_and_not_zero(tmp_path: Path) -> None:
    found = load_stability(annotated(tmp_path, {"settling": []}))
    assert found == LabelStability()
    shown = stability_section(StudyData(loaded={load_stability: found}))
    assert shown.is_empty
    reasons = [str(exhibit.missing) for exhibit in shown.exhibits]
    assert [("--mode full" in why, "--repeats" in why, "--controls" in why) for why in reasons] == [
        (True, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, False),
    ]
    assert shown.text.startswith("Labels depend on")


def test_missing_confidence_file_names_the_remedy(tmp_path: Path) -> None:
    assert load_stability(Folder(str(tmp_path / "nothing"))) is None
    assert load_stability(annotated(tmp_path / "old")) is None
    shown = stability_section(StudyData())
    assert shown.is_empty
    assert all("--rescore" in str(exhibit.missing) for exhibit in shown.exhibits)


def test_single_exemplar_set_or_sample_is_insufficient() -> None:
    content = confidence()
    content["settling"] = [content["settling"][0]]
    found = parsed(content)
    for steps in (found.by_sets, found.by_samples):
        with pytest.raises(InsufficientDataError, match="a single value for the number of"):
            steps()


def test_category_without_repeats_has_no_flip_rate() -> None:
    content = confidence()
    content["repeats"] |= {"questions": 12, "flipped": 3}
    content["repeats"]["from_to"] |= {str(MAYBE): counts(0, 0, 0, 0), str(UNKNOWN): counts(0, 0, 0, 0)}
    found = parsed(content)
    with pytest.raises(InsufficientDataError, match="no question"):
        flip_rate(found, UNKNOWN)
    assert {row[0]: row[-1] for row in flip_table(found).rows}["Unknown"] is None


def without(*path: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for name in path[:-1]:
            content = content[name]
        del content[path[-1]]

    return change


def with_value(value: Any, *path: Any) -> Callable[[dict], None]:
    def change(content: Any) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("settling"), "lacks settling"),
        (with_value({}, "settling"), "settling is an object, expected a list"),
        (with_value(0, "settling", 0, "samples"), "samples is the number 0, expected 1 or more"),
        (with_value("16", "settling", 0, "samples"), "samples is the text '16', expected a whole number"),
        (with_value(True, "settling", 0, "exemplar_sets"), "exemplar_sets is true, expected a whole number"),
        (without("settling", 0, "categories", "Unknown"), "expected HighlyKnown, MaybeKnown"),
        (with_value(17, "settling", 0, "categories", "Unknown"), "steps of .40, 41. questions"),
        (with_value(2, "settling", 0, "exemplar_sets"), "two steps for the same"),
        (with_value([], "repeats"), "repeats is a list, expected an object"),
        (with_value(21, "repeats", "questions"), "questions is 21, repeats.from_to has 20"),
        (with_value(4, "repeats", "flipped"), "flipped is 4, repeats.from_to has 5"),
        (without("repeats", "from_to", "Unknown"), "from_to has HighlyKnown, MaybeKnown, WeaklyKnown, expected"),
        (with_value(-1, "repeats", "from_to", "Unknown", "Unknown"), "is the number -1, expected 0 or more"),
        (with_value(2.5, "controls", "questions"), "questions is the number 2.5"),
        (with_value(11, "controls", "questions"), "questions is 11, its categories have 10"),
        (with_value(None, "controls", "categories", "P17"), "categories.P17 is null, expected an object"),
    ],
)
def test_malformed_confidence_file_is_refused(tmp_path: Path, change: Callable, message: str) -> None:
    content = confidence()
    change(content)
    with pytest.raises(StudyError, match=rf"confidence\.json: .*{message}.*--rescore"):
        load_stability(annotated(tmp_path, content))


def test_truncated_confidence_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not JSON"):
        load_stability(annotated(tmp_path, b'{"settling": ['))
