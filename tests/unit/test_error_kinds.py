"""Kinds of wrong answers: classification, refusals, tables and figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slick.report.answers import collected
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.page import Exhibit
from slick.report.sections import error_kinds
from slick.report.sections.error_kinds import (
    DOMINANCE_THRESHOLD,
    EMPTY,
    ERROR_KINDS,
    REFUSED,
    SCATTERED,
    SINGLE_ANSWER,
    TOO_FEW,
    TWO_ANSWERS,
    ErrorKindCollector,
    ErrorKinds,
    collect_error_kinds,
    make_refusal_detector,
    threshold_sensitivity,
)
from slick.report.sections.planted import load_planted
from slick.report.statistics.planted import PlantedFacts
from tests.study_builder import AnsweredQuestion, write_answered_study


def question(
    question_id: str, *texts: tuple[str, int], category: str = "Unknown", relation: str = "P19"
) -> AnsweredQuestion:
    """A question with these sampled answers and counts; the gold answer is Oslo."""
    sampled = tuple((text,) for text, num in texts for _ in range(num))
    greedy = (texts[0][0],) * 10
    return AnsweredQuestion(
        question_id=question_id, gold=("Oslo",), greedy=greedy, sampled=sampled, category=category, relation=relation
    )


def classify_questions(answered: list[AnsweredQuestion], *phrases: str) -> ErrorKinds:
    tally = ErrorKindCollector("sampled", phrases)
    for item in answered:
        tally.add(item.row)
    return tally.result()


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ([("Rome", 160)], SINGLE_ANSWER),
        ([("Rome", 8), ("Paris", 2)], SINGLE_ANSWER),  # four fifths, to the answer
        ([("Rome", 79), ("Paris", 21)], TWO_ANSWERS),
        ([("Rome", 6), ("Paris", 2), ("Bergen", 1), ("Bonn", 1)], TWO_ANSWERS),
        ([("Rome", 5), ("Paris", 5)], TWO_ANSWERS),
        ([("Rome", 79), ("Paris", 1), *[(f"Town {i}", 1) for i in range(20)]], SCATTERED),
        ([("Rome", 4), ("Paris", 3), ("Bonn", 3)], SCATTERED),
        ([(f"Town {i}", 1) for i in range(10)], SCATTERED),
        ([("The Rome", 3), ("rome.", 3), ("ROME", 2)], SINGLE_ANSWER),  # one answer however it is spelt
        ([("Oslo", 150), ("Rome", 10)], SINGLE_ANSWER),  # what is right does not count
        ([("Oslo", 156), ("Rome", 4)], TOO_FEW),
        ([("I don't know", 5), ("Rome", 5)], REFUSED),
        ([("I don't know", 4), ("I am not sure.", 3), ("Rome", 3)], REFUSED),
        ([("I don't know", 1), ("Rome", 9)], SINGLE_ANSWER),
        ([("", 4), (".", 1), ("Rome", 5)], EMPTY),
        ([("", 160)], EMPTY),
        ([("", 1), ("Rome", 9)], SINGLE_ANSWER),
    ],
)
def test_classification_of_wrong_answers(texts: list[tuple[str, int]], kind: str) -> None:
    assert classify_questions([question("q", *texts)]).kinds().tolist() == [kind]


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I don't know", True),
        ("i don\u2019t know", True),
        ("Sorry, I do not know that.", True),
        ("I am unsure.", True),
        ("No clue at all", True),
        ("Unknown", True),
        ("N/A", True),
        ("Unknown Mortal Orchestra", False),
        ("None Such Records", False),
        ("Idontknow", False),
        ("Knowle", False),
        ("", False),
    ],
)
def test_refusal_detection(answer: str, refuses: bool) -> None:
    assert make_refusal_detector(["no clue"])(answer) is refuses


def test_phrase_of_the_study_is_a_refusal(tmp_path: Path) -> None:
    study = write_answered_study(tmp_path, [question("q", ("Ask me not", 10))])
    for phrase, kind in (("Ask me not!", REFUSED), ("I don't know", SINGLE_ANSWER)):
        kinds = collected(StudyData(study=study, idk_phrase=phrase), collect_error_kinds)
        assert kinds is not None
        assert kinds.kinds().tolist() == [kind]


def some() -> list[AnsweredQuestion]:
    rome, mixed = [("Rome", 10)], [(f"Town {i}", 1) for i in range(10)]
    return [
        *(question(f"a{i}", *rome, category="WeaklyKnown") for i in range(5)),
        *(question(f"b{i}", *mixed, category="WeaklyKnown", relation="P36") for i in range(5)),
        *(question(f"c{i}", *mixed, relation="P36") for i in range(9)),
        question("d", ("I don't know", 10)),
        *(question(f"k{i}", *rome, category="HighlyKnown") for i in range(20)),
    ]


def test_shares_are_of_the_category_and_of_all_questions() -> None:
    result = classify_questions(some())
    rows = {row[0]: row[1:] for row in error_kinds.error_kinds_table(result).rows}
    assert list(rows) == [*ERROR_KINDS, "total"]
    assert rows[SINGLE_ANSWER] == (5, 50.0, 0, 0.0, 12.5)
    assert rows[SCATTERED] == (5, 50.0, 9, 90.0, 35.0)
    assert rows[REFUSED] == (0, 0.0, 1, 10.0, 2.5)
    assert rows["total"] == (10, 100.0, 10, 100.0, 50.0)
    by_relation = {row[:2]: row[2:] for row in error_kinds.error_kinds_by_relation_table(result).rows}
    assert by_relation["P36", "Unknown"] == (9, 0.0, 0.0, 100.0, 0.0, 0.0, 0.0, 10.0)
    assert by_relation["P19", "WeaklyKnown"] == (5, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert by_relation["all", "Unknown"][:4] == (10, 0.0, 0.0, 90.0)
    assert ("P36", "HighlyKnown") not in by_relation


def test_result_does_not_depend_on_question_order() -> None:
    item, other = classify_questions(some()), classify_questions(some()[::-1])
    assert np.array_equal(item.counts_Q6, other.counts_Q6)
    assert np.array_equal(item.relations, other.relations)
    assert item.examples == other.examples
    assert [sum(e.kind == kind for e in item.examples) for kind in (SINGLE_ANSWER, SCATTERED, REFUSED)] == [3, 6, 1]


def test_examples_show_the_most_frequent_answers() -> None:
    rows = error_kinds.error_examples_table(classify_questions([question("q", ("Rome", 3), ("rome", 4), ("", 2))])).rows
    assert rows == ((SCATTERED, "Unknown", "P19", "Where was q born?", "Oslo", "rome (7), (empty) (2), of 9"),)


def test_higher_threshold_gives_fewer_single_answers() -> None:
    rng = np.random.default_rng(0)
    answered = [
        question(f"q{i}", *[(f"Town {k}", int(n)) for k, n in enumerate(rng.geometric(0.2, 4) ** 2)]) for i in range(80)
    ]
    by_limit = threshold_sensitivity(classify_questions(answered))
    ones = [of_kind[SINGLE_ANSWER] for of_kind in by_limit.values()]
    assert ones == sorted(ones, reverse=True)
    assert ones[0] > ones[-1]
    assert all(sum(of_kind.values()) == 80 for of_kind in by_limit.values())
    assert by_limit[DOMINANCE_THRESHOLD][TWO_ANSWERS] == int(
        (classify_questions(answered).kinds() == TWO_ANSWERS).sum()
    )


def test_labels_mode_uses_greedy_answers(tmp_path: Path) -> None:
    answered = [replace(question("q", ("Rome", 10)), sampled=((None, "Paris"),) * 10)]
    data = StudyData(study=write_answered_study(tmp_path, answered, mode="labels"), idk_phrase="")
    kinds = collected(data, collect_error_kinds)
    assert kinds is not None
    assert kinds.decoding == "greedy"
    assert [item.answers for item in kinds.examples] == [(("Rome", 10),)]
    assert "labels mode" in error_kinds.error_kinds_section(StudyData(loaded={collect_error_kinds: kinds})).text


def test_missing_data_is_reported_instead_of_empty_figures() -> None:
    error_kinds_section = error_kinds.error_kinds_section(StudyData())
    assert error_kinds_section.is_empty
    assert "--estimator sampled" in str(error_kinds_section.exhibits[0].missing)
    known = classify_questions([question("k", ("Oslo", 10), category="HighlyKnown")])
    exhibits = error_kinds.error_kinds_section(StudyData(loaded={collect_error_kinds: known})).exhibits
    assert [exhibit.missing for exhibit in exhibits[:2]] == [
        "there are no WeaklyKnown or Unknown questions",
        "there are no Unknown questions",
    ]
    with pytest.raises(InsufficientDataError, match="no WeaklyKnown or Unknown"):
        error_kinds.error_examples_table(known)


def test_figures_label_exactly_the_kinds_present() -> None:
    error_kinds_section = error_kinds.error_kinds_section(
        StudyData(loaded={collect_error_kinds: classify_questions(some())})
    )
    assert not [exhibit.missing for exhibit in error_kinds_section.exhibits if exhibit.missing]
    svg = drawing(error_kinds_section.exhibits[0])
    assert all(f">{name}<" in svg for name in (SINGLE_ANSWER, SCATTERED, REFUSED, "WeaklyKnown", "Unknown"))
    assert f">{TWO_ANSWERS}<" not in svg
    assert ">90<" in svg
    assert all(f">{name}<" in drawing(error_kinds_section.exhibits[1]) for name in ("P19", "P36", REFUSED))
    assert "Of 10 Unknown questions, 0 % have one answer" in error_kinds_section.result


def test_kinds_by_planted_strength() -> None:
    result = classify_questions(some())
    ids = ["zz", *(f"a{i}" for i in range(5)), *(f"c{i}" for i in range(4))]
    num = len(ids)
    planted = PlantedFacts(
        question_ids=np.array(ids),
        strength=np.array(["firm", *["minority"] * 5, *["never"] * 4]),
        **dict.fromkeys(("num_gold", "num_rival"), np.zeros(num, dtype=np.int64)),
        **dict.fromkeys(("category", "cause"), np.array([""] * num)),
        **dict.fromkeys(("greedy", "sampled"), np.zeros(num)),
    )
    assert error_kinds.error_kinds_by_strength_table(result, planted).rows == (
        ("minority", 5, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("never", 4, 0.0, 0.0, 100.0, 0.0, 0.0, 0.0),
    )
    captions = [
        exhibit.caption
        for exhibit in error_kinds.error_kinds_section(
            StudyData(loaded={collect_error_kinds: result, load_planted: planted})
        ).exhibits
    ]
    assert sum("planted" in caption for caption in captions) == 1
    assert not [
        item
        for item in error_kinds.error_kinds_section(StudyData(loaded={collect_error_kinds: result})).exhibits
        if "planted" in item.caption
    ]


def drawing(exhibit: Exhibit) -> str:
    assert exhibit.figure is not None
    return exhibit.figure.svg
