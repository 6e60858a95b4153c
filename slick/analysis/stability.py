"""How firm the labels are: fewer answers, the same questions asked again, and questions that nobody can know. Pure.

Sources: the categories are those of Gekhman et al. 2024, arXiv:2405.05904, section 3; intervals of shares are Wilson's
(1927, https://doi.org/10.1080/01621459.1927.10502953).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from slick.analysis.terms import InsufficientDataError
from slick.types import KNOWN_CATEGORIES, Category


class ShareEstimate(NamedTuple):
    """A share of questions with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    num: int
    """The questions that it is a share of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsampledLabels:
    """How the questions of the study would be sorted, had less been asked."""

    exemplar_sets: int
    samples: int
    """Of each prompt."""
    categories: Mapping[Category, int]
    """Questions in each."""

    def share(self, category: Category) -> float:
        """Share of the questions, in [0, 1]."""
        return self.categories[category] / sum(self.categories.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStability:
    """What annotate/confidence.json and the knowledge table say of the labels; what is not there is empty or None."""

    steps: tuple[SubsampledLabels, ...] = ()
    """For each number of exemplar sets with all samples, and for 1, 2, 4, ... samples with all exemplar sets."""
    from_to: Mapping[tuple[Category, Category], int] | None = None
    """(category, category when asked again with other exemplar sets and draws) to questions; None if none were."""
    controls: Mapping[Category, int] | None = None
    """Questions about invented subjects by category; None if none were asked."""
    chance_known: float | None = None
    """Mean chance of the Unknown questions that as many answers again would hit at least once; None if not told."""
    num_unknown: int = 0
    """Unknown questions that this is the mean of."""

    def by_sets(self) -> tuple[SubsampledLabels, ...]:
        """Steps of growing exemplar sets, all with the samples of the study.

        Raises:
            NotTestable: not all samples were drawn, or there is one set alone.
        """
        samples = self._largest_step().samples
        return self._sorted_steps("exemplar sets", [step for step in self.steps if step.samples == samples])

    def by_samples(self) -> tuple[SubsampledLabels, ...]:
        """Steps of growing samples, all with the exemplar sets of the study.

        Raises:
            NotTestable: not all samples were drawn, or there is one sample alone.
        """
        sets = self._largest_step().exemplar_sets
        return self._sorted_steps("samples", [step for step in self.steps if step.exemplar_sets == sets])

    def _largest_step(self) -> SubsampledLabels:
        if not self.steps:
            raise InsufficientDataError(
                "needs all samples of every question: annotate with --mode full and --estimator sampled"
            )
        return max(self.steps, key=lambda step: (step.exemplar_sets, step.samples))

    def _sorted_steps(self, what: str, found: list[SubsampledLabels]) -> tuple[SubsampledLabels, ...]:
        if len(found) < 2:
            raise InsufficientDataError(f"the study has one of the {what} alone, so there is nothing to see grow")
        return tuple(sorted(found, key=lambda step: (step.exemplar_sets, step.samples)))


def flip_rate(stability: LabelStability, category: Category | None = None) -> ShareEstimate:
    """Share of questions, of one category or of all, that another category is found for when they are asked again.

    Raises:
        NotTestable: none were asked again.
    """
    pairs = _require_repeats(stability)
    chosen = {pair: num for pair, num in pairs.items() if category in (None, pair[0])}
    return share_with_interval(sum(num for (one, other), num in chosen.items() if one != other), sum(chosen.values()))


def known_unknown_flip_rate(stability: LabelStability) -> ShareEstimate:
    """Share of all questions asked again that go from Known to Unknown, or back: those that change the variants.

    Raises:
        NotTestable: none were asked again.
    """
    pairs = _require_repeats(stability)
    across = sum(num for (one, other), num in pairs.items() if (one in KNOWN_CATEGORIES) != (other in KNOWN_CATEGORIES))
    return share_with_interval(across, sum(pairs.values()))


def control_known_rate(stability: LabelStability) -> ShareEstimate:
    """Share of questions about invented subjects that count as Known: what is answered right there is guessed.

    Raises:
        NotTestable: none were asked.
    """
    if not stability.controls or not sum(stability.controls.values()):
        raise InsufficientDataError("needs questions about invented subjects: annotate with --controls-per-relation 4")
    known = sum(num for category, num in stability.controls.items() if category in KNOWN_CATEGORIES)
    return share_with_interval(known, sum(stability.controls.values()))


def last_step_change(steps: tuple[SubsampledLabels, ...], category: Category) -> float:
    """By how much the last step of a growing number moves the share of a category, in points."""
    return 100.0 * (steps[-1].share(category) - steps[-2].share(category))


def share_with_interval(num: int, total: int) -> ShareEstimate:
    """A share with Wilson's interval.

    Raises:
        NotTestable: it is a share of nothing.

    >>> [round(value, 3) for value in share_with_interval(1, 5)]
    [0.2, 0.036, 0.624, 5]
    """
    if not total:
        raise InsufficientDataError("there is no question to take a share of")
    from scipy.stats import binomtest

    interval = binomtest(num, total).proportion_ci(method="wilson")
    return ShareEstimate(num / total, float(interval.low), float(interval.high), total)


def _require_repeats(stability: LabelStability) -> Mapping[tuple[Category, Category], int]:
    if stability.from_to is None:
        raise InsufficientDataError("needs questions asked twice: annotate with --repeats-per-relation 4")
    return stability.from_to
