"""Findings: claims that are tested on a study, registered where their checks are defined.

The checks test the direction of an effect, because sizes depend on the model (E1 and E19, which are about exact counts
and about a bound, are the exceptions). A difference counts if it exceeds two standard errors. If a finding claims that
no difference of some kind exists, each of its comparisons must exceed the Bonferroni bound of all of them
(`bonferroni_z`). A finding whose data is missing is not testable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slick.registry import Registry
from slick.report.data import StudyData
from slick.report.measurements import value_or_reason


class CheckResult(NamedTuple):
    """The result of a finding's check."""

    holds: bool
    own: object
    """The value of this study; JSON."""
    why: str
    """The reason, in one sentence with numbers."""
    interval: object = None
    """Names to [low, high], the 95 % intervals of what was tested; JSON. None if nothing was estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingResult:
    """The result of one finding, as outcomes.json stores it."""

    id: str
    claim: str
    holds: bool | None
    """None: not testable with the data of the study."""
    own: object
    paper: object
    why: str
    interval: object = None


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
    return [_evaluate(entry, data) for entry in entries]


def describe_failures(failures: Sequence[str], success: str) -> str:
    """The sentence for `why`: the failed conditions, or the sentence for a finding that holds."""
    return "; ".join(failures) if failures else success


def _evaluate(entry: Finding, data: StudyData) -> FindingResult:
    result, reason = value_or_reason(entry.check, data)
    holds, own, why, interval = result or (None, None, reason, None)
    return FindingResult(
        id=entry.id, claim=entry.claim, holds=holds, own=own, paper=entry.paper, why=why, interval=interval
    )


def _natural_key(name: str) -> tuple[str, int]:
    digits = "".join(filter(str.isdigit, name))
    return name.rstrip("0123456789"), int(digits or 0)
