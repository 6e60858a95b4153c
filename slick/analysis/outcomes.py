"""Judge the paper's 25 findings for one study. Pure.

Only the direction of a finding is a fair test on another model, so no size of the paper is asked for (E1 and E19, which
are about exact counts and about a bound, aside). Differences count when they exceed two standard errors; what must be
equal may differ by as much. Where a finding says that no difference of a kind exists, its many comparisons are held to
the noise of all of them (`family_z`). What cannot be computed is not testable, and never holds.
"""

from collections.abc import Callable
from functools import partial

from slick.analysis import (
    outcomes_categories,
    outcomes_data,
    outcomes_fit,
    outcomes_idk,
    outcomes_rates,
    outcomes_sweep,
)
from slick.analysis.data import StudyData
from slick.analysis.paper import findings
from slick.analysis.terms import NotTestable
from slick.analysis.verdict import Outcome, Verdict

Judge = Callable[[StudyData], Verdict]


def judges(num_chunks: int = 100, seed: int = 0) -> dict[str, Judge]:
    """The function that judges each finding, E1 to E25 in order."""
    return {
        "E1": outcomes_data.e1,
        "E2": outcomes_data.e2,
        "E3": outcomes_sweep.e3,
        "E4": outcomes_sweep.e4,
        "E5": outcomes_sweep.e5,
        "E6": outcomes_sweep.e6,
        "E7": outcomes_sweep.e7,
        "E8": outcomes_sweep.e8,
        "E9": outcomes_fit.e9,
        "E10": outcomes_fit.e10,
        "E11": outcomes_fit.e11,
        "E12": outcomes_fit.e12,
        "E13": outcomes_fit.e13,
        "E14": outcomes_categories.e14,
        "E15": outcomes_categories.e15,
        "E16": outcomes_categories.e16,
        "E17": outcomes_categories.e17,
        "E18": outcomes_categories.e18,
        "E19": outcomes_categories.e19,
        "E20": outcomes_data.e20,
        "E21": outcomes_data.e21,
        "E22": outcomes_idk.e22,
        "E23": outcomes_sweep.e23,
        "E24": outcomes_rates.e24,
        "E25": partial(outcomes_categories.e25, num_chunks=num_chunks, seed=seed),
    }


def judge(data: StudyData, *, num_chunks: int = 100, seed: int = 0) -> list[Outcome]:
    """All 25 findings, in order.

    Args:
        data: the stored rows.
        num_chunks: of the paired t-test.
        seed: of the shuffle before it.
    """
    outcomes, claims = [], findings()
    for name, one in judges(num_chunks, seed).items():
        finding = claims[name]
        holds: bool | None
        interval = None
        try:
            holds, own, why, interval = one(data)
        except NotTestable as reason:
            holds, own, why = None, None, str(reason)
        outcomes.append(
            Outcome(id=name, claim=finding.claim, holds=holds, own=own, paper=finding.paper, why=why, interval=interval)
        )
    return outcomes
