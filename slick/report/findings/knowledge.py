"""E1, E2, E20, E21: numbers of questions, categories, P(True), and the number of exemplar sets. Pure."""

from collections.abc import Mapping

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.findings.paper import paper_relation_totals
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    rank_correlation,
    round1,
    round1_values,
    subtract,
)
from slick.report.statistics.p_true import compare_at_equal_share, p_true_scores, prefix_curve
from slick.types import Category

MIN_CATEGORY_SHARE = 0.01
"""The smallest share of the questions with which a category counts as populated."""


@finding(
    "E1",
    claim="The filters leave exactly the paper's numbers of questions, in total and in each relation",
    paper="81,700 train, 10,481 test, 5,848 OOD",
    experiments=("counts",),
)
def e1(data: StudyData, expected: Mapping[str, Mapping[str, int]] | None = None) -> CheckResult:
    """The number of questions equals the paper's in every relation and split."""
    if data.filter_counts is None:
        raise InsufficientDataError(
            "the paper's counts are of the full EntityQuestions archive, and this study uses other questions"
        )
    paper = paper_relation_totals() if expected is None else expected
    own = {split: sum(data.filter_counts.get(split, {}).values()) for split in paper}
    failed = []
    for split, relations in paper.items():
        counts = data.filter_counts.get(split, {})
        failed += [
            f"{split} {relation}: {counts.get(relation, 0):,}, expected {relations.get(relation, 0):,}"
            for relation in sorted({*relations, *counts})
            if counts.get(relation, 0) != relations.get(relation, 0)
        ]
    if len(failed) > 4:
        failed = [*failed[:4], f"and {len(failed) - 4} more"]
    success = f"all {sum(len(relations) for relations in paper.values())} numbers are equal"
    return CheckResult(not failed, own, describe_failures(failed, success))


@finding(
    "E2",
    claim="All four categories are populated",
    paper="24 / 25 / 17 / 34 % of train; |D| 6,142",
    experiments=("counts",),
)
def e2(data: StudyData) -> CheckResult:
    """Each category has at least 1 % of the train and of the in-distribution test questions."""
    own, failed = {}, []
    for split in ("train", "test"):
        counts = category_totals(data, "id", split)
        total = sum(counts.values())
        if not total:
            raise InsufficientDataError("needs a finished knowledge table with train and test questions")
        own[split] = round1_values([100 * num / total for num in counts.values()])
        failed += [
            f"{category} has {num:,} of {total:,} {split} questions, less than {format_percent(MIN_CATEGORY_SHARE)}"
            for category, num in counts.items()
            if num < max(1.0, MIN_CATEGORY_SHARE * total)
        ]
    success = "HighlyKnown / MaybeKnown / WeaklyKnown / Unknown: " + "; ".join(
        f"{' / '.join(f'{value:.0f}' for value in values)} % of {split}" for split, values in own.items()
    )
    return CheckResult(not failed, own, describe_failures(failed, success))


def category_totals(data: StudyData, domain: str, split: str) -> dict[str, int]:
    """Questions in each category, over all relations."""
    tables = [counts for (_, *part), counts in data.counts.items() if part == [domain, split]]
    return {str(category): sum(counts.get(str(category), 0) for counts in tables) for category in Category}


@finding(
    "E20",
    claim="At an equal share labelled Unknown, SliCK's Unknown questions are answered right less often than P(True)'s",
    paper="1.8 to 2.5 at 33 % for SliCK",
    experiments=("p_true",),
)
def e20(data: StudyData) -> CheckResult:
    """At both checkpoints, accuracy on SliCK's Unknown questions is below that on as many with the lowest P(True)."""
    comparisons = {checkpoint: compare_at_equal_share(data, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)}
    parts = [
        f"at {checkpoint_label(checkpoint)}, accuracy is {format_with_error(comparison.slick)} % on SliCK's and "
        f"{format_with_error(comparison.p_true)} % on P(True)'s, a difference of {format_with_error(comparison.gap)} "
        "points"
        for checkpoint, comparison in comparisons.items()
    ]
    scores = p_true_scores(data)
    parts += [scores.caveat] if scores is not None and scores.caveat else []
    own: dict[str, object] = {"unknown_percent": round1(comparisons[EARLY_STOP].share)}
    own |= {
        checkpoint: round1_values([comparison.slick.value, comparison.p_true.value])
        for checkpoint, comparison in comparisons.items()
    }
    return CheckResult(
        all(comparison.gap.value < -Z_95 * comparison.gap.se for comparison in comparisons.values()),
        own,
        f"each labels {comparisons[EARLY_STOP].num:,} test questions Unknown: {'; '.join(parts)}",
        {checkpoint: confidence_interval(comparison.gap) for checkpoint, comparison in comparisons.items()},
    )


@finding(
    "E21",
    claim="With more exemplar sets fewer questions are Unknown, and those are answered right less often",
    paper="a curve, not printed",
    experiments=("p_true",),
)
def e21(data: StudyData) -> CheckResult:
    """From one exemplar set to all, Unknown questions become fewer, and D_Natural's accuracy on them falls."""
    curve = prefix_curve(data, EARLY_STOP)
    sets = [float(n) for n in range(1, len(curve) + 1)]
    shares, cells = [share for _, share, _ in curve], [cell for _, _, cell in curve]
    fall = subtract(cells[0], cells[-1])
    rho = rank_correlation(sets, [cell.value for cell in cells])
    failed = []
    if not shares[-1] < shares[0]:
        failed.append("the number of Unknown questions does not fall")
    if fall.value <= Z_95 * fall.se or rho >= 0:
        failed.append(
            f"accuracy on them changes by {-fall.value:+.1f} ± {fall.se:.1f} points (rank correlation {rho:+.2f})"
        )
    own = {
        "sets": [curve[0][0], curve[-1][0]],
        "unknown_percent": round1_values([shares[0], shares[-1]]),
        "accuracy": round1_values([cells[0].value, cells[-1].value]),
    }
    success = (
        f"from {curve[0][0]} to {curve[-1][0]} exemplar sets, the share of Unknown test questions falls from "
        f"{shares[0]:.0f} to {shares[-1]:.0f} %, and D_Natural's accuracy on them at early stop falls by "
        f"{format_with_error(fall)} points"
    )
    return CheckResult(not failed, own, describe_failures(failed, success), {"fall": confidence_interval(fall)})
