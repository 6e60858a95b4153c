"""P(True) beside SliCK: which test questions each calls Unknown, and how often D_Natural answers them right. Pure.

A threshold on P(True) calls all questions below it Unknown. The two are compared at an equal share: SliCK's Unknown
questions, and as many of least P(True). Of questions of equal P(True) at that edge each counts for the same part, so
that the number is exact and the accuracy is what drawing some of them would give on average.

Errors: a single accuracy has the larger of its binomial error and, from three seeds on, that over seeds. The error of
the difference is that of resampling the test questions, with SliCK's share and P(True)'s edge found anew each time, and
never smaller than the one over seeds.

Source: Gekhman et al. 2024, arXiv:2405.05904, section 6, figure 5 and appendix J; the paper does not say of which
checkpoint its figure is, so everything here is asked of both.

Legend of array suffixes: S seeds, Q questions, G groups of equal P(True) in ascending order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData, binomial_se, seed_se
from slick.analysis.findings.verdict import checkpoint_label
from slick.analysis.terms import MIN_SEEDS, CheckpointRef, InsufficientDataError, Measurement
from slick.types import Category

NATURAL_VARIANT = "natural"
MIN_UNKNOWN_QUESTIONS = 20
"""So many questions must be Unknown, or resampling would now and then find none."""
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalPredictions:
    """The annotated ID test questions, as D_Natural answers them at one checkpoint."""

    question_ids: NDArray[np.str_]
    """Shape (Q,), ascending."""
    hit_SQ: NDArray[np.bool_]
    unknown_Q: NDArray[np.bool_]
    """SliCK's Unknown."""


class PrefixPoint(NamedTuple):
    """SliCK with some of the exemplar sets."""

    sets: int | None
    """None for all."""
    share: float
    """Percent of ID test questions that are Unknown."""
    accuracy: Measurement
    """Of D_Natural on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdCurve:
    """Every set of questions that a threshold on P(True) can give, the smallest first; shapes (G,)."""

    thresholds: NDArray[np.float64]
    """The highest that gives the set."""
    num: NDArray[np.int64]
    share: NDArray[np.float64]
    """Percent of the questions."""
    accuracy: NDArray[np.float64]
    """Of D_Natural on them, percent."""
    se: NDArray[np.float64]
    """Standard error, points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PTrueComparison:
    """SliCK and P(True), each calling the same number of questions Unknown."""

    num: int
    share: float
    """Percent of the questions."""
    slick: Measurement
    p_true: Measurement
    gap: Measurement
    """SliCK's accuracy minus P(True)'s, in points."""
    threshold: float
    """P(True) of the last question taken."""


def natural_predictions(data: StudyData, checkpoint: CheckpointRef) -> NaturalPredictions:
    """How the runs of D_Natural answer the annotated ID test questions; NotTestable without predictions."""
    predictions = [run.predictions.get((run.epoch(checkpoint), "test")) for run in data.runs_for(NATURAL_VARIANT)]
    whole = [one for one in predictions if one is not None]
    if len(whole) < len(predictions) or any(
        not np.array_equal(one.question_ids, whole[0].question_ids) for one in whole
    ):
        raise InsufficientDataError(
            f"the runs of {NATURAL_VARIANT} kept no predictions of the same questions at {checkpoint_label(checkpoint)}"
        )
    labelled = whole[0].categories != ""
    return NaturalPredictions(
        question_ids=whole[0].question_ids[labelled],
        hit_SQ=np.stack([one.hit[labelled] for one in whole]),
        unknown_Q=whole[0].categories[labelled] == str(Category.UNKNOWN),
    )


def p_true_per_question(data: StudyData, rows: NaturalPredictions) -> NDArray[np.float64]:
    """P(True) of each question, shape (Q,); NotTestable if one has none."""
    if data.p_true is None:
        raise InsufficientDataError(
            "P(True) is not scored; `slick annotate PRESET --p-true` with this --out does it, labels stay"
        )
    scores = dict(zip(data.p_true.question_ids.tolist(), data.p_true.p_true.tolist(), strict=True))
    missing = [one for one in rows.question_ids.tolist() if one not in scores]
    if missing:
        raise InsufficientDataError(f"{len(missing)} of {len(rows.question_ids)} test questions have no P(True)")
    return np.array([scores[one] for one in rows.question_ids.tolist()])


def threshold_curve(data: StudyData, checkpoint: CheckpointRef) -> ThresholdCurve:
    """P(True)'s whole curve: share called Unknown and accuracy on it, at every threshold that changes the set.

    Raises:
        NotTestable: as `natural_rows` and `scores_of`.
    """
    rows = natural_predictions(data, checkpoint)
    values_G, group_Q = np.unique(p_true_per_question(data, rows), return_inverse=True)
    num_G = np.cumsum(np.bincount(group_Q))
    right_SG = np.stack([np.cumsum(np.bincount(group_Q, weights=hit_Q)) for hit_Q in rows.hit_SQ])
    percent_SG = 100.0 * right_SG / num_G
    cells = [_mean_over_seeds(column, num) for column, num in zip(percent_SG.T, num_G.tolist(), strict=True)]
    return ThresholdCurve(
        thresholds=np.append(values_G[1:], 1.0),
        num=num_G,
        share=100.0 * num_G / len(group_Q),
        accuracy=np.array([cell.value for cell in cells]),
        se=np.array([cell.se for cell in cells]),
    )


def compare_at_equal_share(data: StudyData, checkpoint: CheckpointRef, seed: int = 0) -> PTrueComparison:
    """SliCK's Unknown questions against as many of least P(True).

    Raises:
        NotTestable: as `natural_rows` and `scores_of`, or too few questions are Unknown.
    """
    rows = natural_predictions(data, checkpoint)
    values_G, group_Q = np.unique(p_true_per_question(data, rows), return_inverse=True)
    num, total = int(rows.unknown_Q.sum()), len(group_Q)
    if num < MIN_UNKNOWN_QUESTIONS:
        raise InsufficientDataError(
            f"{num} test questions are Unknown, too few to compare with; {MIN_UNKNOWN_QUESTIONS} are needed"
        )
    once_Q = np.ones(total)
    by_seed = np.array([_accuracy_pair(once_Q, rows.unknown_Q, group_Q, hit_Q) for hit_Q in rows.hit_SQ])
    gaps_S = by_seed[:, 0] - by_seed[:, 1]
    se = _bootstrap_error(rows, group_Q, seed)
    if len(gaps_S) >= MIN_SEEDS:
        se = max(se, seed_se(gaps_S))
    edge = int(np.searchsorted(np.cumsum(np.bincount(group_Q)), num))
    return PTrueComparison(
        num=num,
        share=100.0 * num / total,
        slick=_mean_over_seeds(by_seed[:, 0], num),
        p_true=_mean_over_seeds(by_seed[:, 1], num),
        gap=Measurement(float(gaps_S.mean()), se, len(gaps_S)),
        threshold=float(values_G[edge]),
    )


def _bootstrap_error(rows: NaturalPredictions, group_Q: NDArray[np.int64], seed: int) -> float:
    from scipy.stats import bootstrap

    total, mean_Q = len(group_Q), rows.hit_SQ.mean(axis=0)

    def gap(chosen: NDArray[np.int64]) -> float:
        times_Q = np.bincount(chosen, minlength=total).astype(np.float64)
        both = _accuracy_pair(times_Q, rows.unknown_Q, group_Q, mean_Q)
        return both[0] - both[1]

    places = (np.arange(total),)
    found = bootstrap(places, gap, n_resamples=_NUM_RESAMPLES, vectorized=False, method="percentile", rng=seed)
    return float(found.standard_error)


def _accuracy_pair(
    times_Q: NDArray[np.float64], unknown_Q: NDArray[np.bool_], group_Q: NDArray[np.int64], hit_Q: NDArray[np.float64]
) -> tuple[float, float]:
    """Percent right of SliCK's Unknown questions and of as many of least P(True), each question counted some times."""
    num = float(times_Q @ unknown_Q)
    below_G = np.cumsum(np.bincount(group_Q, weights=times_Q))
    right_G = np.cumsum(np.bincount(group_Q, weights=times_Q * hit_Q))
    right = np.interp(num, np.concatenate([[0.0], below_G]), np.concatenate([[0.0], right_G]))
    return 100.0 * float(times_Q @ (unknown_Q * hit_Q)) / num, 100.0 * float(right) / num


def p_true_auroc(data: StudyData, checkpoint: CheckpointRef) -> float:
    """Chance, in percent, that P(True) is higher for a question answered right than for one answered wrong; 50 is luck.

    The area under the ROC curve, ties counted half, averaged over seeds.

    Raises:
        NotTestable: as `natural_rows` and `scores_of`, or all answers are right, or wrong.
    """
    from scipy.stats import mannwhitneyu

    rows = natural_predictions(data, checkpoint)
    scores_Q = p_true_per_question(data, rows)
    areas = []
    for hit_Q in rows.hit_SQ:
        if hit_Q.all() or not hit_Q.any():
            raise InsufficientDataError(f"D_Natural answers all test questions alike at {checkpoint_label(checkpoint)}")
        found = mannwhitneyu(scores_Q[hit_Q], scores_Q[~hit_Q])
        areas.append(100.0 * float(found.statistic) / (int(hit_Q.sum()) * int((~hit_Q).sum())))
    return float(np.mean(areas))


def slick_point(data: StudyData, checkpoint: CheckpointRef) -> PrefixPoint:
    """SliCK's Unknown set as the study's labels have it; NotTestable if it is too small."""
    rows = natural_predictions(data, checkpoint)
    return _prefix_point(None, rows.unknown_Q, rows.hit_SQ)


def prefix_curve(data: StudyData, checkpoint: CheckpointRef) -> list[PrefixPoint]:
    """SliCK's Unknown set under the first n exemplar sets, for each n.

    Raises:
        NotTestable: samples were left out, or D_Natural was not run.
    """
    labels = data.prefix_labels
    if labels is None or not len(labels.question_ids):
        raise InsufficientDataError("needs the stored generations of the test questions")
    if labels.unknown_QN.shape[1] < 2:
        raise InsufficientDataError("needs two exemplar sets or more")
    if labels.undetermined_QN.any():
        raise InsufficientDataError(
            "samples were left out by the labels mode, so labels under fewer sets are open; annotate with --mode full"
        )
    rows = natural_predictions(data, checkpoint)
    _, in_labels, in_rows = np.intersect1d(
        labels.question_ids, rows.question_ids, assume_unique=True, return_indices=True
    )
    hit_SQ = rows.hit_SQ[:, in_rows]
    return [_prefix_point(n, unknown_Q, hit_SQ) for n, unknown_Q in enumerate(labels.unknown_QN[in_labels].T, 1)]


def _prefix_point(sets: int | None, unknown_Q: NDArray[np.bool_], hit_SQ: NDArray[np.bool_]) -> PrefixPoint:
    num = int(unknown_Q.sum())
    if num < 2:
        raise InsufficientDataError(f"fewer than 2 test questions are Unknown under {sets or 'all'} exemplar sets")
    return PrefixPoint(
        sets, 100.0 * float(unknown_Q.mean()), _mean_over_seeds(100.0 * hit_SQ[:, unknown_Q].mean(axis=1), num)
    )


def _mean_over_seeds(percent_S: NDArray[np.float64], num: int) -> Measurement:
    mean = float(percent_S.mean())
    se = binomial_se(mean, num)
    return Measurement(mean, max(se, seed_se(percent_S)) if len(percent_S) >= MIN_SEEDS else se, len(percent_S))
