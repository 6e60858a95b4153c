"""P(True) compared with SliCK: the test questions each labels Unknown, and D_Natural's accuracy on them.

A threshold on P(True) labels all questions below it Unknown. The two methods are compared at an equal share: SliCK's
Unknown questions, and equally many of lowest P(True). Questions tied at that edge are weighted equally, so that the
number is exact and the accuracy is the expectation over random choices among the ties.

The standard error of a single accuracy is its binomial one or, from three seeds on, the one over seeds if that is
larger. The error of the difference is a bootstrap over test questions that recomputes SliCK's share and the edge of
P(True) in each resample; it is never smaller than the one over seeds.

Source: Gekhman et al. 2024, arXiv:2405.05904, section 6, figure 5 and appendix J. The paper does not state the
checkpoint of its figure, so both are reported.

Legend of array suffixes: S seeds, Q questions, N exemplar sets, G groups of equal P(True), ascending.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.annotation.answers import iter_answers
from slick.errors import StudyError
from slick.report.data import StudyData
from slick.report.measurements import (
    MIN_SEEDS,
    CheckpointRef,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    mean_over_seeds,
    paired_se,
    seed_se,
)
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge, read_p_true_rows
from slick.types import Category

MIN_CHOICE_MASS = 0.01
"""Below this probability of both choices together, the model does not answer with one of them."""

NATURAL_VARIANT = "natural"
MIN_UNKNOWN_QUESTIONS = 20
"""Minimum number of Unknown questions; with fewer, a bootstrap resample might contain none."""

_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLabels:
    """Which ID test questions are Unknown under the first n exemplar sets; N sets, Q questions."""

    question_ids: NDArray[np.str_]
    """Shape (Q,)."""
    unknown_QN: NDArray[np.bool_]
    """Column n - 1: no correct answer under the first n exemplar sets."""
    undetermined_QN: NDArray[np.bool_]
    """True where samples were skipped or have no outcome, so that the label under n sets is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PTrueScores:
    """P(True) of the ID test questions; arrays have shape (questions,)."""

    question_ids: NDArray[np.str_]
    """Ascending."""
    p_true: NDArray[np.float64]
    """In [0, 1]."""
    choice_mass: float | None = None
    """Probability of `(A` and `(B` together, averaged over the questions."""

    @property
    def caveat(self) -> str:
        """A warning, without full stop, if the model gives the two choices little probability; else empty."""
        if self.choice_mass is None or self.choice_mass >= MIN_CHOICE_MASS:
            return ""
        share = f"{100 * self.choice_mass:.2g} %" if self.choice_mass >= 1e-4 else "less than 0.01 %"
        return (
            f"the two choices have {share} of the probability together, so the model does not answer the prompt with "
            "either of them and its P(True) is not informative"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalPredictions:
    """The answers of D_Natural to the annotated ID test questions at one checkpoint."""

    question_ids: NDArray[np.str_]
    """Shape (Q,), ascending."""
    hit_SQ: NDArray[np.bool_]
    unknown_Q: NDArray[np.bool_]
    """Labelled Unknown by SliCK."""


class PrefixPoint(NamedTuple):
    """SliCK with the first exemplar sets."""

    sets: int | None
    """Number of exemplar sets; None for all."""
    share: float
    """Percent of ID test questions that are Unknown."""
    accuracy: Measurement
    """Accuracy of D_Natural on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdCurve:
    """Every set of questions that a threshold on P(True) can select, the smallest first; shapes (G,)."""

    thresholds: NDArray[np.float64]
    """The highest threshold that selects the set."""
    num: NDArray[np.int64]
    share: NDArray[np.float64]
    """Percent of the questions."""
    accuracy: NDArray[np.float64]
    """Accuracy of D_Natural on them, percent."""
    se: NDArray[np.float64]
    """Standard error, points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PTrueComparison:
    """SliCK and P(True) with the same number of Unknown questions."""

    num: int
    share: float
    """Percent of the questions."""
    slick: Measurement
    p_true: Measurement
    gap: Measurement
    """SliCK's accuracy minus P(True)'s, in points."""
    threshold: float
    """P(True) of the last question selected."""


def load_p_true(study: Folder) -> PTrueScores | None:
    """Load P(True) of the ID test questions; None unless the step is finished.

    Raises:
        StudyError: it is of another model than the labels, or a file is missing or malformed.
    """
    folder = study.child("annotate", "p_true")
    labels, scored = read_manifest(study.child("annotate")), read_manifest(folder)
    if labels is None or scored is None:
        return None
    if scored.inputs.get("model") != labels.inputs.get("model"):
        raise StudyError(
            f"{folder.uri} is of the model with fingerprint {scored.inputs.get('model')}, expected that of the labels, "
            f"{labels.inputs.get('model')}; delete that folder and run `slick annotate PRESET --p-true` again"
        )
    if not folder.names(".parquet"):
        return None
    test_ids = _test_ids(study)
    rows = read_p_true_rows(folder)
    rows = rows.filter(pc.is_in(rows["question_id"], test_ids)).sort_by("question_id")
    return PTrueScores(
        question_ids=np.array(rows["question_id"].to_pylist(), dtype=str),
        p_true=rows["p_true"].to_numpy(),
        choice_mass=float((rows["p_a"].to_numpy() + rows["p_b"].to_numpy()).mean()) if rows.num_rows else None,
    )


def _test_ids(study: Folder) -> pa.Array:
    """The question_ids of the annotated ID test questions."""
    table = read_knowledge(study, ["question_id", "domain", "split"])
    is_test = pc.and_(pc.equal(table["domain"], "id"), pc.equal(table["split"], "test"))
    return table.filter(is_test)["question_id"].combine_chunks()


def p_true_scores(data: StudyData) -> PTrueScores | None:
    """The stored P(True) scores; None where they were not computed."""
    return data.load_cached(load_p_true, None)


def load_prefix_labels(study: Folder) -> PrefixLabels | None:
    """Load the labels of ID test questions under the first n exemplar sets, for each n; None without stored answers."""
    if read_manifest(study.child("annotate")) is None:
        return None
    rows = {
        row["question_id"]: first_hit_and_gap(row["greedy_hit"], row["sampled_hit"])
        for row in iter_answers(study, _test_ids(study), texts=False)
    }
    if not rows:
        return None
    ids = sorted(rows)
    num_sets = max(rows[question_id][2] for question_id in ids)
    first_hit = np.array([rows[question_id][0] for question_id in ids])[:, None]
    first_gap = np.array([rows[question_id][1] for question_id in ids])[:, None]
    sets_N = np.arange(1, num_sets + 1)[None, :]
    no_hit = first_hit >= sets_N
    return PrefixLabels(
        question_ids=np.array(ids, dtype=str),
        unknown_QN=no_hit & (first_gap >= sets_N),
        undetermined_QN=no_hit & (first_gap < sets_N),
    )


def first_hit_and_gap(
    greedy: list[bool | None], sampled: list[list[bool | None] | None] | None
) -> tuple[int, int, int]:
    """(index of the first exemplar set with a hit, index of the first that lacks a hit or miss, number of sets).

    An index equal to the number of sets means there is none.

    >>> first_hit_and_gap([False, True], [[False], None])
    (1, 1, 2)
    """
    num = len(greedy)
    per_set = sampled if sampled is not None else [None] * num
    hit = next((i for i in range(num) if greedy[i] or any(bool(is_hit) for is_hit in per_set[i] or [])), num)
    gap = next((i for i in range(num) if not per_set[i] or None in (greedy[i], *(per_set[i] or []))), num)
    return hit, gap, num


def natural_predictions(data: StudyData, checkpoint: CheckpointRef) -> NaturalPredictions:
    """The answers of the D_Natural runs to the annotated ID test questions.

    Raises:
        InsufficientDataError: predictions were not stored.
    """
    stored = [run.predictions.get((run.epoch(checkpoint), "test")) for run in data.runs_for(NATURAL_VARIANT)]
    predictions = [run_predictions for run_predictions in stored if run_predictions is not None]
    if len(predictions) < len(stored) or any(
        not np.array_equal(run_predictions.question_ids, predictions[0].question_ids) for run_predictions in predictions
    ):
        raise InsufficientDataError(
            f"the runs of {NATURAL_VARIANT} have no stored predictions of the same questions at "
            f"{checkpoint_label(checkpoint)}"
        )
    labelled = predictions[0].categories != ""
    return NaturalPredictions(
        question_ids=predictions[0].question_ids[labelled],
        hit_SQ=np.stack([run_predictions.hit[labelled] for run_predictions in predictions]),
        unknown_Q=predictions[0].categories[labelled] == str(Category.UNKNOWN),
    )


def p_true_per_question(data: StudyData, rows: NaturalPredictions) -> NDArray[np.float64]:
    """P(True) of each question, shape (Q,).

    Raises:
        InsufficientDataError: a question has none.
    """
    stored = p_true_scores(data)
    if stored is None:
        raise InsufficientDataError(
            "P(True) is not scored; run `slick annotate PRESET --p-true` with this --out (labels do not change)"
        )
    scores = dict(zip(stored.question_ids.tolist(), stored.p_true.tolist(), strict=True))
    missing = [question_id for question_id in rows.question_ids.tolist() if question_id not in scores]
    if missing:
        raise InsufficientDataError(f"{len(missing)} of {len(rows.question_ids)} test questions have no P(True)")
    return np.array([scores[question_id] for question_id in rows.question_ids.tolist()])


def threshold_curve(data: StudyData, checkpoint: CheckpointRef) -> ThresholdCurve:
    """Share labelled Unknown by P(True) and accuracy on it, at every threshold that changes the set.

    Raises:
        InsufficientDataError: see `natural_predictions` and `p_true_per_question`.
    """
    rows = natural_predictions(data, checkpoint)
    values_G, group_Q = np.unique(p_true_per_question(data, rows), return_inverse=True)
    num_G = np.cumsum(np.bincount(group_Q))
    right_SG = np.stack([np.cumsum(np.bincount(group_Q, weights=hit_Q)) for hit_Q in rows.hit_SQ])
    percent_SG = 100.0 * right_SG / num_G
    cells = [mean_over_seeds(column, num) for column, num in zip(percent_SG.T, num_G.tolist(), strict=True)]
    return ThresholdCurve(
        thresholds=np.append(values_G[1:], 1.0),
        num=num_G,
        share=100.0 * num_G / len(group_Q),
        accuracy=np.array([cell.value for cell in cells]),
        se=np.array([cell.se for cell in cells]),
    )


def compare_at_equal_share(data: StudyData, checkpoint: CheckpointRef, seed: int = 0) -> PTrueComparison:
    """Compare SliCK's Unknown questions with equally many of lowest P(True).

    Raises:
        InsufficientDataError: see `threshold_curve`, or too few questions are Unknown.
    """
    rows = natural_predictions(data, checkpoint)
    values_G, group_Q = np.unique(p_true_per_question(data, rows), return_inverse=True)
    num, total = int(rows.unknown_Q.sum()), len(group_Q)
    if num < MIN_UNKNOWN_QUESTIONS:
        raise InsufficientDataError(
            f"{num} test questions are Unknown, too few to compare; {MIN_UNKNOWN_QUESTIONS} are needed"
        )
    weights_Q = np.ones(total)
    by_seed = np.array([_accuracy_pair(weights_Q, rows.unknown_Q, group_Q, hit_Q) for hit_Q in rows.hit_SQ])
    gaps_S = by_seed[:, 0] - by_seed[:, 1]
    se = _bootstrap_error(rows, group_Q, seed)
    if len(gaps_S) >= MIN_SEEDS:
        se = max(se, seed_se(gaps_S))
    edge = int(np.searchsorted(np.cumsum(np.bincount(group_Q)), num))
    return PTrueComparison(
        num=num,
        share=100.0 * num / total,
        slick=mean_over_seeds(by_seed[:, 0], num),
        p_true=mean_over_seeds(by_seed[:, 1], num),
        gap=Measurement(float(gaps_S.mean()), se, len(gaps_S)),
        threshold=float(values_G[edge]),
    )


def _bootstrap_error(rows: NaturalPredictions, group_Q: NDArray[np.int64], seed: int) -> float:
    from scipy.stats import bootstrap

    total, order = len(group_Q), np.argsort(group_Q, kind="stable")
    unknown_Q, sorted_Q, mean_Q = rows.unknown_Q[order], group_Q[order], rows.hit_SQ.mean(axis=0)[order]

    def gap(chosen_RQ: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        offsets = total * np.arange(len(chosen_RQ))[:, None]
        weights_RQ = np.bincount((chosen_RQ + offsets).ravel(), minlength=len(chosen_RQ) * total).reshape(-1, total)
        slick_R, p_true_R = _accuracy_pairs(weights_RQ, unknown_Q, sorted_Q, mean_Q)
        return slick_R - p_true_R

    indices = (np.arange(total),)
    result = bootstrap(indices, gap, n_resamples=_NUM_RESAMPLES, batch=50, method="percentile", rng=seed)
    return float(result.standard_error)


def _accuracy_pair(
    weights_Q: NDArray[np.float64], unknown_Q: NDArray[np.bool_], group_Q: NDArray[np.int64], hit_Q: NDArray[np.float64]
) -> tuple[float, float]:
    """Weighted accuracy in percent on SliCK's Unknown questions and on equally many of lowest P(True)."""
    order = np.argsort(group_Q, kind="stable")
    slick, p_true = _accuracy_pairs(weights_Q[None, order], unknown_Q[order], group_Q[order], hit_Q[order])
    return float(slick[0]), float(p_true[0])


def _accuracy_pairs(
    weights_RQ: NDArray[np.float64] | NDArray[np.int64],
    unknown_Q: NDArray[np.bool_],
    group_Q: NDArray[np.int64],
    hit_Q: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Like `_accuracy_pair`, for R resamples of questions in ascending order of their groups; both of shape (R,)."""
    ends = np.flatnonzero(np.diff(group_Q, append=group_Q[-1] + 1))
    num_R = weights_RQ @ unknown_Q
    right_R = []
    for num, weights_Q in zip(num_R, weights_RQ, strict=True):
        below_G = np.concatenate([[0.0], np.cumsum(weights_Q)[ends]])
        right_R.append(np.interp(num, below_G, np.concatenate([[0.0], np.cumsum(weights_Q * hit_Q)[ends]])))
    return 100.0 * (weights_RQ @ (unknown_Q * hit_Q)) / num_R, 100.0 * np.asarray(right_R) / num_R


def p_true_auroc(data: StudyData, checkpoint: CheckpointRef) -> float:
    """AUROC in percent of P(True) as a predictor of D_Natural's correct answers, averaged over seeds; 50 is chance.

    Raises:
        InsufficientDataError: see `threshold_curve`, or all answers are correct, or all wrong.
    """
    from scipy.stats import mannwhitneyu

    rows = natural_predictions(data, checkpoint)
    scores_Q = p_true_per_question(data, rows)
    areas = []
    for hit_Q in rows.hit_SQ:
        if hit_Q.all() or not hit_Q.any():
            raise InsufficientDataError(f"D_Natural answers all or no test questions at {checkpoint_label(checkpoint)}")
        result = mannwhitneyu(scores_Q[hit_Q], scores_Q[~hit_Q])
        areas.append(100.0 * float(result.statistic) / (int(hit_Q.sum()) * int((~hit_Q).sum())))
    return float(np.mean(areas))


def p_true_auroc_error(data: StudyData, checkpoint: CheckpointRef) -> float:
    """Standard error of `p_true_auroc` if P(True) were unrelated to the answers, in percent.

    Source: H. B. Mann and D. R. Whitney 1947, https://doi.org/10.1214/aoms/1177730491.
    """
    hit_SQ = natural_predictions(data, checkpoint).hit_SQ
    num_hits, total = hit_SQ.sum(axis=1).mean(), hit_SQ.shape[1]
    return float(100.0 * np.sqrt((total + 1) / (12.0 * num_hits * (total - num_hits))))


def slick_point(data: StudyData, checkpoint: CheckpointRef) -> PrefixPoint:
    """SliCK's Unknown set with all exemplar sets.

    Raises:
        InsufficientDataError: it has fewer than 2 questions.
    """
    rows = natural_predictions(data, checkpoint)
    return _prefix_point(None, rows.unknown_Q, rows.hit_SQ)


def prefix_curve(data: StudyData, checkpoint: CheckpointRef) -> list[PrefixPoint]:
    """SliCK's Unknown set under the first n exemplar sets, for each n.

    Raises:
        InsufficientDataError: samples were skipped, or D_Natural was not run.
    """
    unknown_QN, hit_SQ = _prefix_rows(data, checkpoint)
    return [_prefix_point(n, unknown_Q, hit_SQ) for n, unknown_Q in enumerate(unknown_QN.T, 1)]


def _prefix_rows(data: StudyData, checkpoint: CheckpointRef) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Labels of shape (Q, N) under the first n exemplar sets, and D_Natural's answers of shape (S, Q) to them."""
    labels = data.load_cached(load_prefix_labels, None)
    if labels is None or not len(labels.question_ids):
        raise InsufficientDataError("needs the stored generations of the test questions")
    if labels.unknown_QN.shape[1] < 2:
        raise InsufficientDataError("needs two exemplar sets or more")
    if labels.undetermined_QN.any():
        raise InsufficientDataError(
            "some samples were skipped (labels mode) or have no outcome (judge), so labels under fewer sets are not "
            "known; annotate with --mode full and another matcher"
        )
    rows = natural_predictions(data, checkpoint)
    _, in_labels, in_rows = np.intersect1d(
        labels.question_ids, rows.question_ids, assume_unique=True, return_indices=True
    )
    return labels.unknown_QN[in_labels], rows.hit_SQ[:, in_rows]


def prefix_fall(data: StudyData, checkpoint: CheckpointRef) -> Measurement:
    """Accuracy on the Unknown set under one exemplar set minus that under all of them, which is a part of it.

    The error is that of the difference of two ratios over the same questions (delta method).

    Raises:
        InsufficientDataError: see `prefix_curve`.
    """
    unknown_QN, hit_SQ = _prefix_rows(data, checkpoint)
    hit_Q = hit_SQ.mean(axis=0)
    influence_Q, ratios = np.zeros(len(hit_Q)), []
    for sign, n in ((1.0, 0), (-1.0, -1)):
        unknown_Q = unknown_QN[:, n].astype(np.float64)
        if unknown_Q.sum() < 2:
            raise InsufficientDataError("fewer than 2 test questions are Unknown")
        ratios.append(float(hit_Q @ unknown_Q / unknown_Q.sum()))
        influence_Q += sign * 100.0 * unknown_Q * (hit_Q - ratios[-1]) / unknown_Q.mean()
    se = paired_se(influence_Q, 100.0 / float(unknown_QN[:, 0].mean()))
    if len(hit_SQ) >= MIN_SEEDS:
        first, last = (hit_SQ[:, unknown_QN[:, n]].mean(axis=1) for n in (0, -1))
        se = max(se, seed_se(100.0 * (first - last)))
    return Measurement(100.0 * (ratios[0] - ratios[1]), se, len(hit_SQ))


def _prefix_point(sets: int | None, unknown_Q: NDArray[np.bool_], hit_SQ: NDArray[np.bool_]) -> PrefixPoint:
    num = int(unknown_Q.sum())
    if num < 2:
        raise InsufficientDataError(f"fewer than 2 test questions are Unknown under {sets or 'all'} exemplar sets")
    return PrefixPoint(
        sets, 100.0 * float(unknown_Q.mean()), mean_over_seeds(100.0 * hit_SQ[:, unknown_Q].mean(axis=1), num)
    )
