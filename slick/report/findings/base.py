"""Findings: claims that are tested on a study, registered where their checks are defined.

A check states its claim as conditions, such as "accuracy falls by more than 0 points", and `judge` combines them:

- *holds*: every condition is shown, that is, its 95 % interval lies on the side that the claim needs. If any part of
  the claim is false, its condition is shown with a nominal probability of 2.5 % (an intersection-union test), so the
  finding holds by chance about that often at most, however many conditions it has; finding_rates.json has simulations.
- *fails*: one condition is contradicted, that is, its interval lies on the other side of what the claim says, with
  Bonferroni's correction for the number of conditions.
- *undecided*: neither. The study has too few questions, rows or seeds; `needed` states how many would be enough.
- *not testable*: the study lacks the data.

The conditions test directions, because sizes depend on the model. A claim that something does not change has a margin
that is fixed in advance (`NO_CHANGE_MARGIN`).

Source: R. L. Berger 1982, https://doi.org/10.1080/00401706.1982.10487790, for intersection-union tests.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from slick.registry import Registry
from slick.report.data import StudyData
from slick.report.measurements import (
    Z_95,
    InsufficientDataError,
    Measurement,
    format_with_error,
    value_or_reason,
)
from slick.report.statistics.intervals import wilson_interval
from slick.strict_json import parse_json
from slick.types import ALL_CATEGORIES

NO_CHANGE_MARGIN = 1.5
"""Points. A claim that accuracy does not change is shown if the change is below this margin with 95 % confidence. It is
the largest loss that the paper calls small (D_Known, between early stop and convergence: 0.9 to 1.5 points)."""

MAX_FACTOR = 1000
"""Conditions that would need more than this many times the questions are as good as undecidable."""


class Verdict(StrEnum):
    """The result of a finding."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"
    NOT_TESTABLE = "not testable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A part of a claim: a measured value is above (or below) a bound.

    `shown` and `claimed` differ for claims of no change: a loss that is claimed to be at most 0 is shown if it is
    significantly below the margin, and contradicted if it is significantly above 0.
    """

    text: str
    """The measurement in words, with its error, without full stop."""
    value: Measurement
    shown: float = 0.0
    """The bound that the interval must exclude for the condition to be shown."""
    claimed: float = 0.0
    """The bound that the interval must exclude for the condition to be contradicted."""
    above: bool = True
    """Whether the value must be above the bound; False: below."""
    num: int = 0
    """Questions or rows behind the value."""
    unit: str = "test questions"
    num_successes: int | None = None
    """For a proportion, the number of successes out of `num`: its interval is Wilson's."""

    def interval(self, z: float) -> tuple[float, float]:
        """The interval of z standard errors."""
        if self.num_successes is not None and self.num:
            ends = wilson_interval(self.num_successes, self.num, 2 * NormalDist().cdf(z) - 1)
            return 100 * ends.low, 100 * ends.high
        return self.value.value - z * self.value.se, self.value.value + z * self.value.se

    def is_shown(self) -> bool:
        """Whether the 95 % interval lies on the claim's side."""
        low, high = self.interval(Z_95)
        return low > self.shown if self.above else high < self.shown

    def is_contradicted(self, z: float) -> bool:
        """Whether the interval of z standard errors lies on the other side of the claim."""
        low, high = self.interval(z)
        return high < self.claimed if self.above else low > self.claimed

    def factor(self, z_contradicted: float) -> float:
        """The factor by which the data must grow to decide the condition, if the value stays the same."""
        sign = 1.0 if self.above else -1.0
        margin, against = sign * (self.value.value - self.shown), sign * (self.claimed - self.value.value)
        factors = [
            (z * self.value.se / distance) ** 2
            for z, distance in ((Z_95, margin), (z_contradicted, against))
            if distance > 0 and self.value.se > 0
        ]
        return min(factors, default=math.inf)


class CheckResult(NamedTuple):
    """The result of a finding's check."""

    holds: bool | None
    """None: undecided."""
    own: object
    """The value of this study; JSON."""
    why: str
    """The reason, in one sentence with numbers."""
    interval: object = None
    """Name -> [low, high], the 95 % intervals of the tested quantities; JSON. None if nothing was estimated."""
    needed: str = ""
    """For an undecided finding: how many questions or rows would decide it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingResult:
    """The result of one finding, as outcomes.json stores it."""

    id: str
    claim: str
    holds: bool | None
    """None: undecided or not testable."""
    own: object
    paper: object
    why: str
    interval: object = None
    verdict: str = Verdict.NOT_TESTABLE
    """One of `Verdict`."""
    needed: str = ""
    """For an undecided finding: how many questions or rows would decide it."""
    power: float | None = None
    """Probability of "holds" if the claim is true at the paper's effect size, with this study's number of test
    questions; None if it was not simulated."""
    false_alarm: float | None = None
    """The largest probability of "holds" over the simulations in which a part of the claim is false."""


FindingCheck = Callable[[StudyData], CheckResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim and its check."""

    id: str
    claim: str
    paper: object
    """The paper's value; JSON."""
    experiments: tuple[str, ...]
    """Names of the experiments that decide it (`slick.experiments`)."""
    check: FindingCheck


findings: Registry[Finding] = Registry("finding", "slick.report.findings")


def finding(
    name: str, *, claim: str, paper: object = None, experiments: tuple[str, ...] = ()
) -> Callable[[FindingCheck], FindingCheck]:
    """A decorator that registers a check as a finding.

    The check raises `InsufficientDataError` if the study lacks the data to test the claim.

    Args:
        name: unique, such as `E3`; findings are listed by its letters, then by its number.
        claim: one sentence.
        paper: the paper's value; JSON.
        experiments: the experiments that decide it.
    """

    def add(check: FindingCheck) -> FindingCheck:
        entry = Finding(id=name, claim=claim, paper=paper, experiments=experiments, check=check)
        findings.register(name)(entry)
        return check

    return add


def evaluate_findings(data: StudyData) -> list[FindingResult]:
    """The results of all findings, by the letters and then the number of their names."""
    entries = sorted((entry for _, entry in findings.items()), key=lambda entry: _natural_key(entry.id))
    return [judge_finding(entry, data) for entry in entries]


def judge(
    conditions: Sequence[Condition], own: object, success: str, interval: Mapping[str, object] | None = None
) -> CheckResult:
    """Combine the conditions of a claim.

    Args:
        conditions: at least one.
        own: value of the study; JSON.
        success: the sentence for `why` if the finding holds, without full stop.
        interval: the 95 % intervals of the tested quantities.
    """
    z = contradiction_z(len(conditions))
    against = [condition for condition in conditions if condition.is_contradicted(z)]
    if against:
        return CheckResult(False, own, "; ".join(condition.text for condition in against), interval)
    unclear = [condition for condition in conditions if not condition.is_shown()]
    if not unclear:
        return CheckResult(True, own, success, interval)
    shown = len(conditions) - len(unclear)
    prefix = f"{shown} of {len(conditions)} conditions are shown; not clear: " if len(conditions) > 1 else ""
    texts = [condition.text for condition in unclear]
    listed = texts if len(texts) <= 4 else [*texts[:3], f"and {len(texts) - 3} more"]
    return CheckResult(None, own, prefix + "; ".join(listed), interval, describe_needed(unclear, z))


def contradiction_z(num_conditions: int) -> float:
    """Standard errors by which one of several conditions must be reversed to contradict the claim.

    One-sided at 2.5 %, with Bonferroni's correction.

    >>> round(contradiction_z(1), 2), round(contradiction_z(20), 2)
    (1.96, 3.02)
    """
    return NormalDist().inv_cdf(1.0 - 0.025 / max(num_conditions, 1))


def describe_needed(unclear: Sequence[Condition], z: float) -> str:
    """A sentence: how much data would decide all the conditions, if their values stayed the same.

    Numbers have two digits. More seeds help as more questions do, if the differences between seeds are due to chance
    in the answers.
    """
    worst = max(unclear, key=lambda condition: condition.factor(z))
    factor = worst.factor(z)
    if not math.isfinite(factor) or factor > MAX_FACTOR or not worst.num:
        return "the difference is too close to the bound to be decided by more data"
    total = worst.num * factor
    rounded = max(worst.num + 1, round(total, -math.floor(math.log10(total)) + 1))
    return f"about {rounded:,.0f} {worst.unit} instead of {worst.num:,} would decide it, if the values stayed the same"


def require_rows(num: int, what: str, minimum: int = 20) -> None:
    """Check that there are enough questions or rows for the normal approximation.

    Raises:
        InsufficientDataError: there are fewer than `minimum`.
    """
    if num < minimum:
        raise InsufficientDataError(f"needs {minimum} {what} or more, there are {num}")


def difference_condition(
    data: StudyData,
    terms: Sequence[tuple[float, str, str | int]],
    text: str,
    *,
    split: str = "test",
    category: str = ALL_CATEGORIES,
    shown: float = 0.0,
    claimed: float | None = None,
    above: bool = True,
) -> Condition:
    """A condition on a weighted sum of accuracies on the same questions.

    Args:
        data: the data of the study.
        terms: as in `StudyData.contrast`.
        text: with `{}` in place of the value with its error.
        split: the split of the questions.
        category: the category of the questions.
        shown: as in `Condition`.
        claimed: as in `Condition`; by default that of `shown`.
        above: as in `Condition`.
    """
    value = data.contrast(terms, split, category)
    num = data.runs_for(terms[0][1])[0].num[split, category]
    kind = f"{'' if category == ALL_CATEGORIES else category + ' '}{_SPLIT_LABELS.get(split, split)} questions"
    require_rows(num, kind)
    return Condition(
        text=text.format(format_with_error(value)),
        value=value,
        shown=shown,
        claimed=shown if claimed is None else claimed,
        above=above,
        num=num,
        unit=kind,
    )


_SPLIT_LABELS = {"ood": "out-of-distribution test"}


@cache
def finding_rates() -> Mapping[str, Sequence[Mapping[str, float]]]:
    """Finding -> its simulated rates by number of test questions: `questions`, `power`, `false_alarm`.

    They are written by `python -m tests.benchmarks.verdicts`.
    """
    rates: dict[str, list[dict[str, float]]] = parse_json(
        resources.files("slick").joinpath("data/finding_rates.json").read_bytes()
    )
    return rates


def rates_at(name: str, num_questions: int) -> tuple[float | None, float | None]:
    """(power, false alarm rate) of a finding with a number of test questions; None if they were not simulated.

    Power is interpolated on the logarithm of the number, and constant beyond the numbers that were simulated. The false
    alarm rate is the largest that was simulated.
    """
    rows = sorted(finding_rates().get(name, ()), key=lambda row: row["questions"])
    if not rows:
        return None, None
    sizes = np.log([row["questions"] for row in rows])
    power = float(np.interp(np.log(max(num_questions, 1)), sizes, [row["power"] for row in rows]))
    return round(power, 2), max(row["false_alarm"] for row in rows)


def judge_finding(entry: Finding, data: StudyData) -> FindingResult:
    """The result of one finding."""
    result, reason = value_or_reason(entry.check, data)
    if result is None:
        return FindingResult(id=entry.id, claim=entry.claim, holds=None, own=None, paper=entry.paper, why=reason)
    verdicts = {True: Verdict.HOLDS, False: Verdict.FAILS, None: Verdict.UNDECIDED}
    num_questions = max((run.num.get(("test", ALL_CATEGORIES), 0) for run in data.runs), default=0)
    power, false_alarm = rates_at(entry.id, num_questions)
    return FindingResult(
        id=entry.id,
        claim=entry.claim,
        holds=result.holds,
        own=result.own,
        paper=entry.paper,
        why=result.why,
        interval=result.interval,
        verdict=verdicts[result.holds],
        needed=result.needed,
        power=power,
        false_alarm=false_alarm,
    )


def _natural_key(name: str) -> tuple[str, int]:
    digits = "".join(filter(str.isdigit, name))
    return name.rstrip("0123456789"), int(digits or 0)
