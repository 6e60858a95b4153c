"""What a model forgot in training: answers right at the best dev epoch and wrong after the last one. Pure.

Of each the answer given now is looked for among the targets of the fine-tuning set. That alone says little, since many
answers recur within a relation; so the same is counted, relation by relation, of the wrong answers to questions that
were wrong at both epochs: those are the chance rate.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from slick.matching import normalize
from slick.report.measurements import InsufficientDataError
from slick.types import Category

TargetScope = Literal["any_row", "same_relation", "unknown_row"]
TARGET_SCOPES: tuple[TargetScope, ...] = ("any_row", "same_relation", "unknown_row")
"""Where in the fine-tuning set an answer stands: as the target of any row, of a row of the question's relation, or of
an Unknown row."""


class TargetCounts(NamedTuple):
    """Where an answer stands; or, summed, how many answers do."""

    num: int
    any_row: int
    same_relation: int
    unknown_row: int


class TargetIndex:
    """The targets of one fine-tuning set, compared as exact match compares."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Take (relation, category, target) of every row."""
        self._any: set[str] = set()
        self._by_relation: defaultdict[str, set[str]] = defaultdict(set)
        self._unknown: set[str] = set()
        for relation, category, target in rows:
            text = normalize(target)
            self._any.add(text)
            self._by_relation[relation].add(text)
            if category == Category.UNKNOWN:
                self._unknown.add(text)

    def target_counts(self, answer: str, relation: str) -> TargetCounts:
        """Where an answer to a question of that relation stands; an empty answer stands nowhere.

        >>> TargetIndex([("P19", "Unknown", "Oslo")]).target_counts("oslo.", "P36")
        TargetCounts(num=1, any_row=1, same_relation=0, unknown_row=1)
        """
        text = normalize(answer)
        if not text:
            return TargetCounts(1, 0, 0, 0)
        same = text in self._by_relation.get(relation, ())
        return TargetCounts(1, int(text in self._any), int(same), int(text in self._unknown))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenFact:
    """One question that was answered right, and is not any more."""

    question_id: str
    relation: str
    category: str
    """Empty where the question was not annotated."""
    question: str
    gold: tuple[str, ...]
    before: str
    """The right answer, at the best dev epoch."""
    after: str
    """The wrong one, after the last epoch."""
    target_counts: TargetCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForgetting:
    """What one training lost on one split."""

    run_id: str
    variant: str
    seed: int
    split: str
    """`test` or `ood`."""
    epoch_before: int
    """The best dev epoch."""
    epoch_after: int
    """The last epoch; the same, where dev accuracy was best at the end: then nothing can be lost."""
    num_correct_before: int
    num_correct_after: int
    lost: tuple[ForgottenFact, ...]
    baseline_after: Mapping[str, TargetCounts]
    """relation to the answers given at the end to questions wrong at both epochs, summed; empty if the predictions of
    these epochs were not kept."""
    baseline_before: Mapping[str, TargetCounts]
    """The same of the answers given to these questions at the best dev epoch."""

    @property
    def num_gained(self) -> int:
        """Questions answered wrong at the best dev epoch and right after the last."""
        return self.num_correct_after - self.num_correct_before + len(self.lost)


class MatchRate(NamedTuple):
    """Lost facts whose new answer stands in the set; percentages."""

    num: int
    total: int
    percent: float
    low: float
    """End of Wilson's 95 % interval."""
    high: float
    chance: float | None
    """What the answers to questions wrong at both epochs give, had they the relations of the lost ones."""
    p_value: float | None
    """Two-sided, of the rate against chance (binomial test)."""
    earlier: float | None
    """As `chance`, of the answers given to those questions at the best dev epoch."""


def sum_by_relation(answers: Iterable[tuple[str, TargetCounts]]) -> dict[str, TargetCounts]:
    """Sums by relation, of (relation, standing) of each answer."""
    found: dict[str, TargetCounts] = {}
    for relation, one in answers:
        before = found.get(relation, TargetCounts(0, 0, 0, 0))
        found[relation] = TargetCounts(*(a + b for a, b in zip(before, one, strict=True)))
    return found


def select_runs_forgetting(found: Sequence[RunForgetting], variant: str, split: str) -> list[RunForgetting]:
    """Those of one variant and split, one a seed.

    Raises:
        NotTestable: there is none.
    """
    chosen = [one for one in found if (one.variant, one.split) == (variant, split)]
    if not chosen:
        raise InsufficientDataError(
            f"needs a finished run of variant {variant} with its right_to_wrong.parquet and {split} rows"
        )
    return chosen


def match_rate(losses: Sequence[RunForgetting], where: TargetScope) -> MatchRate:
    """How many of the lost facts' new answers stand in the set, beside chance; seeds pooled.

    Raises:
        NotTestable: nothing was lost.
    """
    from scipy.stats import binomtest

    total = sum(len(one.lost) for one in losses)
    if not total:
        raise InsufficientDataError("no answer that was right at the best dev epoch is wrong after the last")
    num = sum(getattr(lost.target_counts, where) for one in losses for lost in one.lost)
    low, high = binomtest(num, total).proportion_ci(confidence_level=0.95, method="wilson")
    after = chance_rate([(one.lost, one.baseline_after) for one in losses], where)
    before = chance_rate([(one.lost, one.baseline_before) for one in losses], where)
    p_value = None if after is None else float(binomtest(num, total, after).pvalue)
    chance, earlier = (None if share is None else 100 * share for share in (after, before))
    return MatchRate(num, total, 100 * num / total, 100 * float(low), 100 * float(high), chance, p_value, earlier)


def chance_rate(
    losses: Iterable[tuple[Sequence[ForgottenFact], Mapping[str, TargetCounts]]], where: TargetScope
) -> float | None:
    """The rate among other answers, weighted by the relations of the lost ones; None if not known.

    A relation without other answers counts by the rate over all relations of its run.

    Args:
        losses: of each run, what it lost, and relation to the sum of its other answers.
        where: they are to stand.

    Returns:
        A share in [0, 1].
    """
    expected, total = 0.0, 0
    for all_lost, others in losses:
        if not all_lost:
            continue
        pooled = TargetCounts(*(sum(one[i] for one in others.values()) for i in range(4)))
        if not pooled.num:
            return None
        for relation, num in Counter(lost.relation for lost in all_lost).items():
            of_relation = others.get(relation, pooled)
            expected += num * getattr(of_relation, where) / of_relation.num
            total += num
    return expected / total if total else None


def forgetting_rate(losses: Sequence[RunForgetting]) -> tuple[float, float, float]:
    """Percent of the answers right at the best dev epoch that were lost, with Wilson's 95 % interval; seeds pooled.

    Raises:
        NotTestable: no answer was right then.
    """
    from scipy.stats import binomtest

    before, num = sum(one.num_correct_before for one in losses), sum(len(one.lost) for one in losses)
    if not before:
        raise InsufficientDataError("no question was answered right at the best dev epoch")
    low, high = binomtest(num, before).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * num / before, 100 * float(low), 100 * float(high)


class Replacement(NamedTuple):
    """An answer that took the place of right ones."""

    relation: str
    answer: str
    num: int
    """Times it did, over all these runs."""
    num_facts: int
    """Different questions it answers so."""
    num_gold: int
    """Different right answers it took the place of."""
    in_set: int
    """Times it stood in the run's own fine-tuning set."""


def replacements(losses: Iterable[RunForgetting], most: int = 20) -> list[Replacement]:
    """The answers that took the place of most right ones, most frequent first."""
    groups: defaultdict[tuple[str, str], list[ForgottenFact]] = defaultdict(list)
    for one in losses:
        for lost in one.lost:
            groups[lost.relation, normalize(lost.after)].append(lost)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    return [
        Replacement(
            relation,
            Counter(lost.after for lost in group).most_common(1)[0][0],
            len(group),
            len({lost.question_id for lost in group}),
            len({normalize(lost.before) for lost in group}),
            sum(lost.target_counts.any_row for lost in group),
        )
        for (relation, _), group in ordered
    ]
