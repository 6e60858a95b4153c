"""Findings: claims that are checked on a study, registered where their checks are defined.

Only the direction of a finding is a fair test on another model, so no size of the paper is asked for (E1 and E19, about
exact counts and about a bound, aside). Differences count when they exceed two standard errors; what must be equal may
differ by as much. Where a finding says that no difference of a kind exists, its many comparisons are held to the noise
of all of them (`bonferroni_z`). What cannot be computed is not testable, and never holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slick.registry import Registry
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingResult:
    """One finding of the paper, judged for this study."""

    id: str
    claim: str
    holds: bool | None
    """None: not testable with what the study holds."""
    own: object
    """JSON value."""
    paper: object
    """JSON value."""
    why: str
    interval: object = None
    """JSON value: names to [low, high], 95 % intervals of what was judged; None where there is nothing to estimate."""


class CheckResult(NamedTuple):
    """How one finding turned out."""

    holds: bool
    own: object
    why: str
    interval: object = None
    """As in `Outcome`."""


def describe_failures(parts: Sequence[str], good: str) -> str:
    """The sentence for `why`: what failed, or the sentence for when nothing did."""
    return "; ".join(parts) if parts else good


FindingCheck = Callable[[StudyData], CheckResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim, and how it is checked on a study."""

    id: str
    claim: str
    paper: object
    """The value that the paper gives; JSON."""
    experiments: tuple[str, ...]
    """The experiments that decide it, by name (`slick.experiments`)."""
    check: FindingCheck


findings: Registry[Finding] = Registry("finding", "slick.report.findings")


def finding(
    name: str, *, claim: str, paper: object = None, experiments: tuple[str, ...] = ()
) -> Callable[[FindingCheck], FindingCheck]:
    """A decorator that registers a check as a finding.

    The check raises `InsufficientDataError` where the study cannot decide the claim.

    Args:
        name: unique, such as `E3`; findings are listed by the number in it.
        claim: one sentence.
        paper: the value that the paper gives; JSON.
        experiments: the experiments that decide it.
    """

    def add(check: FindingCheck) -> FindingCheck:
        entry = Finding(id=name, claim=claim, paper=paper, experiments=experiments, check=check)
        findings.register(name)(entry)
        return check

    return add


def all_findings() -> list[Finding]:
    """Every finding, by the letters and then the number of its name."""
    return sorted((entry for _, entry in findings.items()), key=lambda entry: _natural_key(entry.id))


def _natural_key(name: str) -> tuple[str, int]:
    digits = "".join(filter(str.isdigit, name))
    return name.rstrip("0123456789"), int(digits or 0)


def evaluate_findings(data: StudyData) -> list[FindingResult]:
    """The results of all findings, in order."""
    results = []
    for entry in all_findings():
        holds: bool | None
        interval = None
        try:
            holds, own, why, interval = entry.check(data)
        except InsufficientDataError as reason:
            holds, own, why = None, None, str(reason)
        results.append(
            FindingResult(
                id=entry.id, claim=entry.claim, holds=holds, own=own, paper=entry.paper, why=why, interval=interval
            )
        )
    return results
