"""Prompt formats and exemplar sets."""

import math
import unicodedata
from collections import Counter

import pytest

from slick.errors import DataError
from slick.prompts import (
    CLOSED_BOOK_INSTRUCTION,
    closed_book_prompt,
    closed_book_suffix,
    draw_exemplar_sets,
    few_shot_prefix,
    few_shot_suffix,
    p_true_suffix,
)

DEV = {"P19": [f"a{i}" for i in range(30)], "P17": [f"b{i}" for i in range(9)]}


def test_few_shot_prompt_is_that_of_the_paper() -> None:
    exemplars = [
        ("What kind of work does Nicolas Roeg do?", "film director"),
        ("What kind of work does Crystal Geoffré do?", "actor"),
    ]
    assert few_shot_prefix(exemplars) + few_shot_suffix("What kind of work does Ron Konopka do?") == (
        "Q: What kind of work does Nicolas Roeg do?\nA: film director\n"
        "Q: What kind of work does Crystal Geoffré do?\nA: actor\n"
        "Q: What kind of work does Ron Konopka do?\nA:"
    )


def test_prefix_without_exemplars_is_empty() -> None:
    assert few_shot_prefix([]) == ""


def test_closed_book_prompt_is_instruction_and_suffix() -> None:
    question = "Where was Ada born?"
    assert closed_book_prompt(question) == "Answer the following question.\nWhere was Ada born?\n"
    assert closed_book_prompt(question) == CLOSED_BOOK_INSTRUCTION + closed_book_suffix(question)


def test_prompts_do_not_depend_on_the_unicode_form() -> None:
    prompts = []
    for form in ("NFC", "NFD"):
        question, answer = (unicodedata.normalize(form, text) for text in ("Né où, José?", "Málaga"))
        prompts.append(
            (
                few_shot_prefix([(question, answer)]),
                few_shot_suffix(question),
                closed_book_prompt(question),
                closed_book_suffix(question),
                p_true_suffix(question, answer),
            )
        )
    assert prompts[0] == prompts[1]
    assert all(unicodedata.is_normalized("NFC", prompt) for prompt in prompts[0])


def test_exemplar_sets_have_the_shape_of_the_paper() -> None:
    sets = draw_exemplar_sets(DEV)
    assert list(sets) == ["P17", "P19"]
    for relation, drawn in sets.items():
        assert [len(ids) for ids in drawn] == [4] * 10
        for ids in drawn:
            assert len(set(ids)) == 4
            assert set(ids) <= set(DEV[relation])
        assert len({tuple(ids) for ids in drawn}) == 10


def test_exemplar_sets_depend_on_seed_and_relation_only() -> None:
    sets = draw_exemplar_sets(DEV)
    assert draw_exemplar_sets({"P19": DEV["P19"][::-1]}) == {"P19": sets["P19"]}
    assert draw_exemplar_sets(DEV, seed=1)["P19"] != sets["P19"]  # equal by chance below 1e-50
    renamed = draw_exemplar_sets({"P20": DEV["P19"]})
    assert renamed["P20"] != sets["P19"]


def test_exemplars_are_drawn_uniformly() -> None:
    # 2,000 sets of 4 from 8: each question in half of them, standard error 22.4; 5 of them, odds below 8 x 6e-7.
    dev = {"P1": [f"q{i}" for i in range(8)]}
    counts = Counter(
        i for seed in range(200) for ids in draw_exemplar_sets(dev, seed=seed, num_sets=10)["P1"] for i in ids
    )
    assert all(abs(num - 1000) < 5 * math.sqrt(2000 * 0.25) for num in counts.values())


def test_too_few_dev_questions_are_refused() -> None:
    with pytest.raises(DataError, match="relation P17 has 4 dev questions; 10 exemplar sets of 4 need at least 5"):
        draw_exemplar_sets({"P17": ["a", "b", "c", "d"]})
    assert draw_exemplar_sets({"P17": ["a", "b", "c", "d"]}, num_sets=1)["P17"][0]


def test_exemplar_sets_are_distinct_even_from_few_questions() -> None:
    drawn = draw_exemplar_sets({"P17": ["a", "b"]}, num_sets=2, num_shots=1)["P17"]
    assert sorted(drawn) == [["a"], ["b"]]
    all_pairs = draw_exemplar_sets({"P1": list("abc")}, num_sets=6, num_shots=2)["P1"]  # all 6 ordered pairs
    assert len({tuple(ids) for ids in all_pairs}) == 6


def test_more_sets_than_combinations_are_refused() -> None:
    with pytest.raises(DataError, match="3 exemplar sets of 1 need at least 3"):
        draw_exemplar_sets({"P17": ["a", "b"]}, num_sets=3, num_shots=1)
