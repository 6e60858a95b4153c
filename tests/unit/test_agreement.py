"""Cohen's kappa of answer matchers with a person's grades."""

import pytest

from slick.report.measurements import InsufficientDataError
from slick.report.statistics.agreement import GradedAnswer, Kappa, cohens_kappa, matcher_kappas


def ratings(both: int, first_alone: int, second_alone: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * first_alone
    pairs += [(False, True)] * second_alone + [(False, False)] * neither
    return [first for first, _ in pairs], [second for _, second in pairs]


def test_kappa_and_interval_equal_hand_computed_values() -> None:
    kappa = cohens_kappa(*ratings(20, 5, 10, 15))
    # Observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    assert kappa.kappa == pytest.approx(0.4)
    # Fleiss et al. 1969: variance (0.10972 + 0.10188 - 0.01) / (50 * 0.25) = 0.016128.
    half = 1.959964 * 0.016128**0.5
    assert (kappa.low, kappa.high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-6)
    assert (kappa.num, kappa.agreement) == (50, pytest.approx(0.7))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((10, 0, 0, 10), 1.0),
        ((0, 10, 10, 0), -1.0),
        ((25, 25, 25, 25), 0.0),
        ((0, 0, 4, 16), 0.0),  # one rater calls all answers incorrect
        ((45, 15, 25, 15), (0.60 - 0.54) / (1 - 0.54)),
    ],
)
def test_kappa_of_simple_cases(counts: tuple[int, int, int, int], expected: float) -> None:
    kappa = cohens_kappa(*ratings(*counts))
    assert kappa.kappa == pytest.approx(expected)
    assert -1 <= kappa.low <= kappa.kappa <= kappa.high <= 1


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((0, 0, 0, 0), "no answers"),
        ((7, 0, 0, 0), "both call all 7 answers correct"),
        ((0, 0, 0, 7), "both call all 7 answers incorrect"),
    ],
)
def test_undefined_kappa_is_refused(counts: tuple[int, int, int, int], reason: str) -> None:
    with pytest.raises(InsufficientDataError, match=reason):
        cohens_kappa(*ratings(*counts))


def test_matchers_are_compared_with_grades() -> None:
    def graded(answer: str, is_correct: bool, judged: bool | None) -> GradedAnswer:
        return GradedAnswer("Where?", ["New York"], answer, is_correct, judged)

    answers = [
        graded("New York", True, True),
        graded("It is New York, in the state of that name", True, True),
        graded("Boston", False, False),
        graded("not in New York", False, None),
    ]
    kappas = matcher_kappas(answers)
    assert kappas.keys() == {"exact", "contains", "f1", "judge"}
    exact, contains, judge = kappas["exact"], kappas["contains"], kappas["judge"]
    assert isinstance(exact, Kappa)
    assert isinstance(contains, Kappa)
    assert isinstance(judge, Kappa)
    assert (exact.agreement, contains.agreement) == (0.75, 0.75)
    assert (judge.kappa, judge.num) == (1.0, 3), "an answer without an outcome is not compared"
    assert "judge" not in matcher_kappas([row._replace(judged=None) for row in answers])
    assert matcher_kappas(answers[:1])["exact"] == "both call all 1 answers correct, so kappa is not defined"
