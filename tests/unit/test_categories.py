"""Hits to P_Correct, categories and the bound for what was never hit."""

import numpy as np
import pytest

from slick.errors import DataError
from slick.types import KNOWN_CATEGORIES, Category, categorize, clopper_pearson_upper, p_correct


@pytest.mark.parametrize(
    ("greedy", "sampled", "expected"),
    [
        (10, 160, Category.HIGHLY_KNOWN),
        (10, 0, Category.HIGHLY_KNOWN),  # greedy decides, whatever the samples say
        (9, 160, Category.MAYBE_KNOWN),
        (1, 0, Category.MAYBE_KNOWN),
        (0, 160, Category.WEAKLY_KNOWN),
        (0, 1, Category.WEAKLY_KNOWN),
        (0, 0, Category.UNKNOWN),
    ],
)
def test_figure_2_of_the_paper(greedy: int, sampled: int, expected: Category) -> None:
    assert categorize(greedy, 10, sampled, 160) is expected


def test_samples_may_be_missing_only_where_they_cannot_change_the_category() -> None:
    assert categorize(10, 10, 0, 0) is Category.HIGHLY_KNOWN
    assert categorize(3, 10, 0, 0) is Category.MAYBE_KNOWN
    with pytest.raises(DataError, match="samples are needed"):
        categorize(0, 10, 0, 0)


def test_every_count_has_one_category_and_it_never_weakens_with_more_hits() -> None:
    strength = {category: -rank for rank, category in enumerate(Category)}
    table = [[strength[categorize(g, 4, s, 6)] for s in range(7)] for g in range(5)]
    assert all(row == sorted(row) for row in table)
    assert all(list(column) == sorted(column) for column in zip(*table, strict=True))


@pytest.mark.parametrize(
    "counts", [(11, 10, 0, 160), (-1, 10, 0, 160), (0, 10, 161, 160), (0, 10, -1, 160), (0, 0, 0, 160), (0, 0, 0, 0)]
)
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="inconsistent counts"):
        categorize(*counts)


def test_known_is_all_but_unknown() -> None:
    assert set(KNOWN_CATEGORIES) == set(Category) - {Category.UNKNOWN}
    assert [str(category) for category in Category] == ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]


def test_p_correct_is_the_share_over_prompts_and_answers() -> None:
    hits = np.zeros((3, 10, 16), dtype=bool)
    hits[1] = True
    hits[2, :3, 0] = True
    assert p_correct(hits).tolist() == [0.0, 1.0, 3 / 160]
    assert p_correct(hits[:0]).shape == (0,)


@pytest.mark.parametrize("shape", [(2, 0, 16), (2, 10, 0)])
def test_p_correct_of_no_answers_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="at least one prompt and one answer"):
        p_correct(np.zeros(shape, dtype=bool))


@pytest.mark.parametrize("num_answers", [1, 10, 160, 170, 1000])
def test_p_upper_is_where_no_hit_becomes_too_unlikely(num_answers: int) -> None:
    assert (1 - clopper_pearson_upper(num_answers)) ** num_answers == pytest.approx(0.05)
    assert (1 - clopper_pearson_upper(num_answers, 0.99)) ** num_answers == pytest.approx(0.01)


def test_p_upper_falls_with_more_answers_and_needs_one() -> None:
    bounds = [clopper_pearson_upper(num) for num in range(1, 200)]
    assert bounds == sorted(bounds, reverse=True)
    assert 0 < bounds[-1] < bounds[0] < 1
    with pytest.raises(DataError, match="at least one answer"):
        clopper_pearson_upper(0)
