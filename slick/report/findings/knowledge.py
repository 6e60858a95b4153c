"""E1, E2, E20, E21: numbers of questions, categories, P(True), and the number of exemplar sets. Pure."""

from collections.abc import Mapping

from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, Condition, finding, judge, require_rows
from slick.report.findings.paper import paper_relation_totals
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    Measurement,
    binomial_se,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    round1,
    round1_values,
)
from slick.report.statistics.p_true import (
    MIN_UNKNOWN_QUESTIONS,
    compare_at_equal_share,
    natural_predictions,
    p_true_auroc,
    p_true_auroc_error,
    p_true_scores,
    prefix_curve,
    prefix_fall,
)
from slick.types import Category

MIN_CATEGORY_PERCENT = 1.0
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
    return CheckResult(not failed, own, "; ".join(failed) or success)


@finding(
    "E2",
    claim="All four categories are populated",
    paper="24 / 25 / 17 / 34 % of train; |D| 6,142",
    experiments=("counts",),
)
def e2(data: StudyData) -> CheckResult:
    """Each category has significantly more than 1 % of the train and of the in-distribution test questions."""
    own, conditions = {}, []
    for split in ("train", "test"):
        counts = category_totals(data, "id", split)
        total = sum(counts.values())
        if not total:
            raise InsufficientDataError("needs a finished knowledge table with train and test questions")
        own[split] = round1_values([100 * num / total for num in counts.values()])
        for category, num in counts.items():
            percent = 100 * num / total
            conditions.append(
                Condition(
                    text=f"{category} has {num:,} of {total:,} {split} questions",
                    value=Measurement(percent, binomial_se(percent, total), 1),
                    shown=MIN_CATEGORY_PERCENT,
                    claimed=MIN_CATEGORY_PERCENT,
                    num=total,
                    unit=f"{split} questions",
                    num_successes=num,
                )
            )
    success = "HighlyKnown / MaybeKnown / WeaklyKnown / Unknown: " + "; ".join(
        f"{' / '.join(f'{value:.0f}' for value in values)} % of {split}" for split, values in own.items()
    )
    return judge(conditions, own, success)


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
    """At both checkpoints, accuracy is lower on SliCK's Unknown questions than on equally many of lowest P(True).

    Not testable where P(True) is not informative: any score would do as well as random numbers there.
    """
    if natural_predictions(data, EARLY_STOP).unknown_Q.sum() >= MIN_UNKNOWN_QUESTIONS:
        _require_informative_p_true(data)
    comparisons = {checkpoint: compare_at_equal_share(data, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)}
    conditions = [
        Condition(
            text=f"at {checkpoint_label(checkpoint)}, accuracy is {format_with_error(comparison.slick)} % on "
            f"SliCK's and {format_with_error(comparison.p_true)} % on P(True)'s, a difference of "
            f"{format_with_error(comparison.gap)} points",
            value=comparison.gap,
            above=False,
            num=comparison.num,
            unit="Unknown test questions",
        )
        for checkpoint, comparison in comparisons.items()
    ]
    own: dict[str, object] = {"unknown_percent": round1(comparisons[EARLY_STOP].share)}
    own |= {
        checkpoint: round1_values([comparison.slick.value, comparison.p_true.value])
        for checkpoint, comparison in comparisons.items()
    }
    success = f"each labels {comparisons[EARLY_STOP].num:,} test questions Unknown: " + "; ".join(
        condition.text for condition in conditions
    )
    intervals = {
        checkpoint_label(checkpoint): confidence_interval(comparison.gap)
        for checkpoint, comparison in comparisons.items()
    }
    return judge(conditions, own, success, intervals)


def _require_informative_p_true(data: StudyData) -> None:
    """Check that P(True) predicts which questions are answered correctly.

    Raises:
        InsufficientDataError: the model gives the two choices little probability, or the AUROC is not above chance by
            more than noise.
    """
    area, error = p_true_auroc(data, EARLY_STOP), p_true_auroc_error(data, EARLY_STOP)
    scores = p_true_scores(data)
    if scores is not None and scores.caveat:
        raise InsufficientDataError(scores.caveat)
    if area - Z_95 * error <= 50.0:
        raise InsufficientDataError(
            f"P(True) does not predict which questions are answered correctly: its AUROC is {area:.1f} ± "
            f"{error:.1f} % (50 is chance), so it is not a usable baseline"
        )


@finding(
    "E21",
    claim="With more exemplar sets fewer questions are Unknown, and those are answered right less often",
    paper="a curve, not printed",
    experiments=("p_true",),
)
def e21(data: StudyData) -> CheckResult:
    """From one exemplar set to all, Unknown questions become fewer, and D_Natural's accuracy on them falls.

    That they become no more is certain: each set is a part of the previous one. So the finding depends on the accuracy,
    that is, on whether the questions that leave the set are answered right more often than those that stay.
    """
    curve = prefix_curve(data, EARLY_STOP)
    shares, cells = [share for _, share, _ in curve], [cell for _, _, cell in curve]
    fall = prefix_fall(data, EARLY_STOP)
    num_test = len(natural_predictions(data, EARLY_STOP).question_ids)
    num_left = round((shares[0] - shares[-1]) / 100 * num_test)
    own = {
        "sets": [curve[0][0], curve[-1][0]],
        "unknown_percent": round1_values([shares[0], shares[-1]]),
        "accuracy": round1_values([cells[0].value, cells[-1].value]),
    }
    if not num_left:
        return CheckResult(
            False, own, "the number of Unknown questions does not fall", {"fall": confidence_interval(fall)}
        )
    require_rows(num_left, "questions that are Unknown under one exemplar set only")
    text = (
        f"from {curve[0][0]} to {curve[-1][0]} exemplar sets, the share of Unknown test questions falls from "
        f"{shares[0]:.0f} to {shares[-1]:.0f} %, and D_Natural's accuracy on them at early stop falls by "
        f"{format_with_error(fall)} points"
    )
    condition = Condition(text=text, value=fall, num=num_test)
    return judge([condition], own, text, {"fall": confidence_interval(fall)})
