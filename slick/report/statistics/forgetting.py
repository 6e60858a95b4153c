"""Forgotten facts: questions answered correctly at the best dev epoch and incorrectly after the last epoch. Pure.

The new wrong answer is looked up among the targets of the fine-tuning set. The match rate alone says little, because
answers recur within a relation. The chance rate is therefore the match rate of answers to questions that were wrong at
both epochs, weighted by the relations of the forgotten facts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from slick.matching import normalize
from slick.report.measurements import InsufficientDataError
from slick.report.statistics.intervals import Proportion, proportion, wilson_interval
from slick.types import Category

TargetScope = Literal["any_row", "same_relation", "unknown_row"]
TARGET_SCOPES: tuple[TargetScope, ...] = ("any_row", "same_relation", "unknown_row")
"""Which rows of the fine-tuning set are searched: all, those of the question's relation, or the Unknown ones."""


class TargetCounts(NamedTuple):
    """Number of answers, and how many of them are the target of a row in each scope."""

    num: int
    any_row: int
    same_relation: int
    unknown_row: int


class TargetIndex:
    """The targets of one fine-tuning set, normalised as for exact match."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Index the rows, each a (relation, category, target)."""
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
        """The scopes in which an answer to a question of that relation is a target; an empty answer never is.

        >>> TargetIndex([("P19", "Unknown", "Oslo")]).target_counts("oslo.", "P36")
        TargetCounts(num=1, any_row=1, same_relation=0, unknown_row=1)
        """
        text = normalize(answer)
        if not text:
            return TargetCounts(1, 0, 0, 0)
        in_relation = text in self._by_relation.get(relation, ())
        return TargetCounts(1, int(text in self._any), int(in_relation), int(text in self._unknown))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenFact:
    """One question that was answered correctly and no longer is."""

    question_id: str
    relation: str
    category: str
    """Empty where the question was not annotated."""
    question: str
    gold: tuple[str, ...]
    before: str
    """The correct answer, at the best dev epoch."""
    after: str
    """The wrong answer, after the last epoch."""
    target_counts: TargetCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForgetting:
    """The forgotten facts of one run on one split."""

    run_id: str
    variant: str
    seed: int
    split: str
    """`test` or `ood`."""
    epoch_before: int
    """The best dev epoch."""
    epoch_after: int
    """The last epoch. If it is also the best dev epoch, nothing can be lost."""
    num_correct_before: int
    num_correct_after: int
    lost: tuple[ForgottenFact, ...]
    baseline_after: Mapping[str, TargetCounts]
    """relation -> counts over the final answers to questions wrong at both epochs; empty without stored predictions."""
    baseline_before: Mapping[str, TargetCounts]
    """The same for the answers to these questions at the best dev epoch."""

    @property
    def num_gained(self) -> int:
        """Questions answered incorrectly at the best dev epoch and correctly after the last."""
        return self.num_correct_after - self.num_correct_before + len(self.lost)


class MatchRate(NamedTuple):
    """Share of lost facts whose new answer is a target of the fine-tuning set; rates in percent."""

    num: int
    total: int
    percent: float
    low: float
    """End of Wilson's 95 % interval."""
    high: float
    chance: float | None
    """The chance rate at the last epoch; None without stored predictions."""
    p_value: float | None
    """Two-sided binomial test of the rate against chance."""
    earlier: float | None
    """The chance rate at the best dev epoch."""


class Replacement(NamedTuple):
    """A wrong answer that replaced correct ones."""

    relation: str
    answer: str
    num: int
    """Number of replacements over all runs."""
    num_facts: int
    """Number of different questions."""
    num_gold: int
    """Number of different correct answers that it replaced."""
    in_set: int
    """Number of replacements for which it is a target of the run's fine-tuning set."""


def sum_by_relation(answers: Iterable[tuple[str, TargetCounts]]) -> dict[str, TargetCounts]:
    """Sum (relation, counts) pairs by relation."""
    sums: dict[str, TargetCounts] = {}
    for relation, counts in answers:
        before = sums.get(relation, TargetCounts(0, 0, 0, 0))
        sums[relation] = TargetCounts(*(a + b for a, b in zip(before, counts, strict=True)))
    return sums


def select_runs_forgetting(runs: Sequence[RunForgetting], variant: str, split: str) -> list[RunForgetting]:
    """The runs of one variant on one split, one per seed.

    Raises:
        InsufficientDataError: there is none.
    """
    chosen = [run for run in runs if (run.variant, run.split) == (variant, split)]
    if not chosen:
        raise InsufficientDataError(
            f"needs a finished run of variant {variant} with its right_to_wrong.parquet and {split} rows"
        )
    return chosen


def match_rate(losses: Sequence[RunForgetting], scope: TargetScope) -> MatchRate:
    """The match rate of the lost facts and the chance rates; seeds are pooled.

    Raises:
        InsufficientDataError: nothing was lost.
    """
    from scipy.stats import binomtest

    total = sum(len(run.lost) for run in losses)
    if not total:
        raise InsufficientDataError("no answer that was correct at the best dev epoch is wrong after the last")
    num = sum(getattr(lost.target_counts, scope) for run in losses for lost in run.lost)
    low, high = wilson_interval(num, total)
    after = chance_rate([(run.lost, run.baseline_after) for run in losses], scope)
    before = chance_rate([(run.lost, run.baseline_before) for run in losses], scope)
    p_value = None if after is None else float(binomtest(num, total, after).pvalue)
    chance, earlier = (None if share is None else 100 * share for share in (after, before))
    return MatchRate(num, total, 100 * num / total, 100 * low, 100 * high, chance, p_value, earlier)


def chance_rate(
    losses: Iterable[tuple[Sequence[ForgottenFact], Mapping[str, TargetCounts]]], scope: TargetScope
) -> float | None:
    """The match rate of other answers, weighted by the relations of the lost facts.

    A relation without other answers gets the rate over all relations of its run.

    Args:
        losses: the lost facts of each run, and its counts over other answers by relation.
        scope: rows of the fine-tuning set that count.

    Returns:
        A share in [0, 1]; None if unknown.
    """
    expected, total = 0.0, 0
    for facts, others in losses:
        if not facts:
            continue
        pooled = TargetCounts(*(sum(counts[i] for counts in others.values()) for i in range(4)))
        if not pooled.num:
            return None
        for relation, num in Counter(fact.relation for fact in facts).items():
            of_relation = others.get(relation, pooled)
            expected += num * getattr(of_relation, scope) / of_relation.num
            total += num
    return expected / total if total else None


def forgetting_rate(losses: Sequence[RunForgetting]) -> Proportion:
    """Share of the answers correct at the best dev epoch that were lost; seeds are pooled.

    Raises:
        InsufficientDataError: no answer was correct then.
    """
    before, num = sum(run.num_correct_before for run in losses), sum(len(run.lost) for run in losses)
    return proportion(num, before, "no question was answered correctly at the best dev epoch")


def replacements(losses: Iterable[RunForgetting], limit: int = 20) -> list[Replacement]:
    """The wrong answers that replaced the most correct ones, most frequent first."""
    groups: defaultdict[tuple[str, str], list[ForgottenFact]] = defaultdict(list)
    for run in losses:
        for fact in run.lost:
            groups[fact.relation, normalize(fact.after)].append(fact)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:limit]
    return [
        Replacement(
            relation,
            Counter(fact.after for fact in group).most_common(1)[0][0],
            len(group),
            len({fact.question_id for fact in group}),
            len({normalize(fact.before) for fact in group}),
            sum(fact.target_counts.any_row for fact in group),
        )
        for (relation, _), group in ordered
    ]
