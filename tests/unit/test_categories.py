"""Categories of hits, and the bound of P_Correct without a hit."""

import numpy as np
import pytest

from slick.errors import DataError
from slick.types import KNOWN_CATEGORIES, Category, categories, clopper_pearson_upper


@pytest.mark.parametrize(
    ("greedy", "sampled", "expected"),
    [
        (10, 160, Category.HIGHLY_KNOWN),
        (10, 0, Category.HIGHLY_KNOWN),  # greedy answers determine the category, whatever the samples
        (9, 160, Category.MAYBE_KNOWN),
        (1, 0, Category.MAYBE_KNOWN),
        (0, 160, Category.WEAKLY_KNOWN),
        (0, 1, Category.WEAKLY_KNOWN),
        (0, 0, Category.UNKNOWN),
    ],
)
def test_categories_of_figure_2_of_the_paper(greedy: int, sampled: int, expected: Category) -> None:
    assert categories(np.array([greedy]), np.array([10]), np.array([sampled])) == [expected]


def test_categories_are_monotone_in_hits() -> None:
    strength = {category: -rank for rank, category in enumerate(map(str, Category))}
    greedy, sampled = np.mgrid[:5, :7]
    names = categories(greedy.ravel(), np.full(greedy.size, 4), sampled.ravel())
    table = np.array([strength[name] for name in names]).reshape(greedy.shape)
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.diff(table, axis=1) >= 0).all()


def test_known_categories_are_all_but_unknown() -> None:
    assert set(KNOWN_CATEGORIES) == set(Category) - {Category.UNKNOWN}
    assert [str(category) for category in Category] == ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]


@pytest.mark.parametrize("num_answers", [1, 10, 160, 170, 1000])
def test_p_upper_is_the_clopper_pearson_bound(num_answers: int) -> None:
    assert (1 - clopper_pearson_upper(num_answers)) ** num_answers == pytest.approx(0.05)
    assert (1 - clopper_pearson_upper(num_answers, 0.99)) ** num_answers == pytest.approx(0.01)


def test_p_upper_falls_with_more_answers_and_needs_one() -> None:
    bounds = [clopper_pearson_upper(num) for num in range(1, 200)]
    assert bounds == sorted(bounds, reverse=True)
    assert 0 < bounds[-1] < bounds[0] < 1
    with pytest.raises(DataError, match="at least one answer"):
        clopper_pearson_upper(0)
