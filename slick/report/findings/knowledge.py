"""E1, E2, E20, E21: the questions, the categories, and how many exemplar sets they take. Pure."""

import json
from collections.abc import Mapping
from importlib import resources

from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    checkpoint_label,
    confidence_interval,
    format_percent,
    format_with_error,
    rank_correlation,
    round1,
    round1_values,
    subtract,
)
from slick.report.statistics.p_true import compare_at_equal_share, p_true_scores, prefix_curve
from slick.types import Category

MIN_CATEGORY_SHARE = 0.01
"""A category counts as populated from this share of the questions on."""


@finding(
    "E1",
    claim="The filters leave exactly the paper's numbers of questions, in total and in each relation",
    paper="81,700 train, 10,481 test, 5,848 OOD",
    experiments=("counts",),
)
def e1(data: StudyData, expected: Mapping[str, Mapping[str, int]] | None = None) -> CheckResult:
    """The numbers of questions are the paper's, in total and in each relation."""
    if data.filter_counts is None:
        raise InsufficientDataError(
            "the paper's counts belong to the full EntityQuestions archive; these questions are not it"
        )
    paper = paper_relation_totals() if expected is None else expected
    own = {split: sum(data.filter_counts.get(split, {}).values()) for split in paper}
    failed = []
    for split, relations in paper.items():
        found = data.filter_counts.get(split, {})
        failed += [
            f"{split} {relation}: {found.get(relation, 0):,}, wanted {relations.get(relation, 0):,}"
            for relation in sorted({*relations, *found})
            if found.get(relation, 0) != relations.get(relation, 0)
        ]
    if len(failed) > 4:
        failed = [*failed[:4], f"and {len(failed) - 4} more"]
    good = f"all {sum(len(relations) for relations in paper.values())} numbers agree exactly"
    return CheckResult(not failed, own, describe_failures(failed, good))


def paper_relation_totals() -> dict[str, dict[str, int]]:
    """Questions in each relation after the paper's filters: train, test and ood.

    Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3-5.
    """
    value = json.loads(resources.files("slick").joinpath("data/paper_counts.json").read_text(encoding="utf-8"))
    return {
        split: {relation: entry["total"] for relation, entry in value[split].items()}
        for split in ("train", "test", "ood")
    }


@finding(
    "E2",
    claim="All four categories are populated",
    paper="24 / 25 / 17 / 34 % of train; |D| 6,142",
    experiments=("counts",),
)
def e2(data: StudyData) -> CheckResult:
    """Each category holds at least 1 % of the train and of the ID test questions."""
    own, failed = {}, []
    for split in ("train", "test"):
        counts = category_totals(data, "id", split)
        total = sum(counts.values())
        if not total:
            raise InsufficientDataError("needs a finished knowledge table with train and test questions")
        own[split] = round1_values([100 * num / total for num in counts.values()])
        failed += [
            f"{category} holds {num:,} of {total:,} {split} questions, under {format_percent(MIN_CATEGORY_SHARE)}"
            for category, num in counts.items()
            if num < max(1.0, MIN_CATEGORY_SHARE * total)
        ]
    good = "HighlyKnown / MaybeKnown / WeaklyKnown / Unknown: " + "; ".join(
        f"{' / '.join(f'{value:.0f}' for value in values)} % of {split}" for split, values in own.items()
    )
    return CheckResult(not failed, own, describe_failures(failed, good))


def category_totals(data: StudyData, domain: str, split: str) -> dict[str, int]:
    """Questions in each category, over all relations."""
    totals = dict.fromkeys(map(str, Category), 0)
    for (_, one_domain, one_split), counts in data.counts.items():
        if (one_domain, one_split) == (domain, split):
            for category, num in counts.items():
                totals[category] += num
    return totals


@finding(
    "E20",
    claim="At an equal share labelled Unknown, SliCK's Unknown questions are answered right less often than P(True)'s",
    paper="1.8 to 2.5 at 33 % for SliCK",
    experiments=("p_true",),
)
def e20(data: StudyData) -> CheckResult:
    """At both checkpoints, SliCK's Unknown questions are answered right less often than as many of least P(True)."""
    found = {checkpoint: compare_at_equal_share(data, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)}
    said = {
        checkpoint: f"{format_with_error(one.slick)} % of SliCK's are answered right and "
        f"{format_with_error(one.p_true)} % of P(True)'s, "
        f"{format_with_error(one.gap)} points apart, at {checkpoint_label(checkpoint)}"
        for checkpoint, one in found.items()
    }
    scores = p_true_scores(data)
    caveats = [scores.caveat] if scores is not None and scores.caveat else []
    own: dict[str, object] = {"unknown_percent": round1(found[EARLY_STOP].share)}
    own |= {checkpoint: round1_values([one.slick.value, one.p_true.value]) for checkpoint, one in found.items()}
    return CheckResult(
        all(one.gap.value < -Z_95 * one.gap.se for one in found.values()),
        own,
        f"of {found[EARLY_STOP].num:,} test questions called Unknown by each: {'; '.join([*said.values(), *caveats])}",
        {checkpoint: confidence_interval(one.gap) for checkpoint, one in found.items()},
    )


@finding(
    "E21",
    claim="With more exemplar sets fewer questions are Unknown, and those are answered right less often",
    paper="a curve, not printed",
    experiments=("p_true",),
)
def e21(data: StudyData) -> CheckResult:
    """From one exemplar set to all, the Unknown set shrinks, and D_Natural answers less of it right, beyond noise."""
    curve = prefix_curve(data, EARLY_STOP)
    sets = [float(n) for n in range(1, len(curve) + 1)]
    shares, cells = [share for _, share, _ in curve], [cell for _, _, cell in curve]
    fall = subtract(cells[0], cells[-1])
    rho = rank_correlation(sets, [cell.value for cell in cells])
    failed = []
    if not shares[-1] < shares[0]:
        failed.append("the Unknown set does not shrink")
    if fall.value <= Z_95 * fall.se or rho >= 0:
        failed.append(
            f"accuracy on it changes by {-fall.value:+.1f} ± {fall.se:.1f} points (rank correlation {rho:+.2f})"
        )
    own = {
        "sets": [curve[0][0], curve[-1][0]],
        "unknown_percent": round1_values([shares[0], shares[-1]]),
        "accuracy": round1_values([cells[0].value, cells[-1].value]),
    }
    good = (
        f"from {curve[0][0]} to {curve[-1][0]} exemplar sets, Unknown falls from {shares[0]:.0f} to {shares[-1]:.0f} % "
        f"of test questions, and D_Natural's accuracy on them at early stop by {format_with_error(fall)} points"
    )
    return CheckResult(not failed, own, describe_failures(failed, good), {"fall": confidence_interval(fall)})
