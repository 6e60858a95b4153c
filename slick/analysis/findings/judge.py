"""Judge the paper's 25 findings for one study. Pure.

Only the direction of a finding is a fair test on another model, so no size of the paper is asked for (E1 and E19, which
are about exact counts and about a bound, aside). Differences count when they exceed two standard errors; what must be
equal may differ by as much. Where a finding says that no difference of a kind exists, its many comparisons are held to
the noise of all of them (`family_z`). What cannot be computed is not testable, and never holds.
"""

from collections.abc import Callable
from functools import partial

from slick.analysis.data import StudyData
from slick.analysis.findings import categories, fit, idk, knowledge, rates, sweep
from slick.analysis.findings.paper import paper_findings
from slick.analysis.findings.verdict import CheckResult, FindingResult
from slick.analysis.terms import InsufficientDataError

FindingCheck = Callable[[StudyData], CheckResult]


def finding_checks(num_chunks: int = 100, seed: int = 0) -> dict[str, FindingCheck]:
    """The function that judges each finding, E1 to E25 in order."""
    return {
        "E1": knowledge.e1,
        "E2": knowledge.e2,
        "E3": sweep.e3,
        "E4": sweep.e4,
        "E5": sweep.e5,
        "E6": sweep.e6,
        "E7": sweep.e7,
        "E8": sweep.e8,
        "E9": fit.e9,
        "E10": fit.e10,
        "E11": fit.e11,
        "E12": fit.e12,
        "E13": fit.e13,
        "E14": categories.e14,
        "E15": categories.e15,
        "E16": categories.e16,
        "E17": categories.e17,
        "E18": categories.e18,
        "E19": categories.e19,
        "E20": knowledge.e20,
        "E21": knowledge.e21,
        "E22": idk.e22,
        "E23": sweep.e23,
        "E24": rates.e24,
        "E25": partial(categories.e25, num_chunks=num_chunks, seed=seed),
    }


def evaluate_findings(data: StudyData, *, num_chunks: int = 100, seed: int = 0) -> list[FindingResult]:
    """All 25 findings, in order.

    Args:
        data: the stored rows.
        num_chunks: of the paired t-test.
        seed: of the shuffle before it.
    """
    outcomes, claims = [], paper_findings()
    for name, one in finding_checks(num_chunks, seed).items():
        finding = claims[name]
        holds: bool | None
        interval = None
        try:
            holds, own, why, interval = one(data)
        except InsufficientDataError as reason:
            holds, own, why = None, None, str(reason)
        outcomes.append(
            FindingResult(
                id=name, claim=finding.claim, holds=holds, own=own, paper=finding.paper, why=why, interval=interval
            )
        )
    return outcomes
