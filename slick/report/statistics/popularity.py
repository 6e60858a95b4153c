"""Knowledge and harm by popularity of the subject: do Unknown rows harm, or unpopular subjects?

Unknown questions are mostly about unpopular subjects, so there are two controls. On the test side, the change of
accuracy between 0 % and more Unknown rows is measured within quantiles of the popularity of the test questions. On the
training side, the popularity of the rows of each fine-tuning set shows how far two sets can be matched on it.

The scale of popularity depends on the source of the questions, so only its order is used: quantiles and ranks.

Source: Ghosal et al. 2024, arXiv:2406.14785, who find that fine-tuning on less popular facts harms.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slick.report.data import StudyData
from slick.report.measurements import ANY_KNOWN, CONVERGENCE, EARLY_STOP, InsufficientDataError, value_or_reason
from slick.report.statistics.intervals import RankStatistic, SubsetComparison, compare_on_questions, spearman
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge, read_question_rows, read_variant_rows
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES, Category

NUM_BINS = 4
"""Number of quantiles of popularity; fewer if many subjects are equally popular."""

MIN_QUESTIONS = 10
"""Minimum number of questions for a correlation."""

COMPARED_SHARES = (0.5, 1.0)
"""Shares of Unknown rows that are compared with 0 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityData:
    """Annotated questions of known popularity, sorted by question_id; all arrays have shape (Q,)."""

    question_ids: NDArray[np.str_]
    relations: NDArray[np.str_]
    categories: NDArray[np.str_]
    greedy: NDArray[np.float64]
    """P_Correct of greedy answers, in [0, 1]."""
    sampled: NDArray[np.float64]
    """P_Correct of sampled answers, in [0, 1]; NaN unless all samples were drawn."""
    values: NDArray[np.float64]
    """Popularity of the subject, 0 or more."""
    num_unknown_popularity: int = 0
    """Number of annotated questions of unknown popularity."""
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Fine-tuning set to the indices of its questions in the arrays, without those of unknown popularity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityBins:
    """Quantiles of popularity; equally popular subjects are always in the same one."""

    labels: tuple[str, ...]
    """Lowest and highest popularity of each bin, ascending."""
    bin_of_question: NDArray[np.int64]
    """Shape (Q,), the index of each question's bin in `labels`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmEstimate:
    """A set with Unknown rows (first) compared with the set without (second) on test questions of one quantile."""

    share: float
    checkpoint: str
    """`EARLY_STOP` or `CONVERGENCE`."""
    category: str
    """`ALL_CATEGORIES`, or `ANY_KNOWN`, since Unknown questions have little accuracy to lose."""
    quantile: int
    """Index of the bin, from the least popular."""
    comparison: SubsetComparison | None
    missing_reason: str = ""
    """Why there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPopularity:
    """Popularity of the rows of one fine-tuning set."""

    name: str
    num: int
    """Number of rows of known popularity."""
    quartiles: tuple[float, float, float]
    """Lower quartile, median, upper quartile."""
    median_known: float | None
    """Median over its Known rows; None without any."""
    median_unknown: float | None
    """Median over its Unknown rows; None without any."""
    shares: tuple[float, ...]
    """Share of its rows in each bin, from the least popular; they add up to 1."""
    matched_share: float | None
    """Share of its rows that can be matched with a row of the same bin in the set without Unknown rows, in [0, 1]; None
    if that set has no rows of known popularity."""


def load_popularity(study: Folder, variants: Iterable[str]) -> PopularityData | None:
    """Load the popularity of the annotated questions and the questions of each fine-tuning set.

    Args:
        study: the study's folder.
        variants: names of the fine-tuning sets.

    Returns:
        None if the source has no popularity, or nothing is annotated.
    """
    questions, folder = read_manifest(study.child("questions")), study.child("annotate")
    if questions is None or not questions.counts.get("with_popularity") or read_manifest(folder) is None:
        return None
    table = read_question_rows(study.child("questions"), ["question_id", "popularity"])
    popularity = dict(zip(table["question_id"].to_pylist(), table["popularity"].to_pylist(), strict=True))
    columns = ["question_id", "relation", "category", "p_correct_greedy", "p_correct_sampled"]
    knowledge = read_knowledge(study, columns).sort_by("question_id").to_pydict()
    values = np.array([popularity.get(name) for name in knowledge["question_id"]], dtype=np.float64)
    has_popularity = ~np.isnan(values)
    ids = np.array(knowledge["question_id"], dtype=str)[has_popularity]
    return PopularityData(
        question_ids=ids,
        relations=np.array(knowledge["relation"], dtype=str)[has_popularity],
        categories=np.array(knowledge["category"], dtype=str)[has_popularity],
        greedy=np.array(knowledge["p_correct_greedy"], dtype=np.float64)[has_popularity],
        sampled=np.array(knowledge["p_correct_sampled"], dtype=np.float64)[has_popularity],
        values=values[has_popularity],
        num_unknown_popularity=int(np.count_nonzero(~has_popularity)),
        rows={name: np.flatnonzero(np.isin(ids, _row_ids(study, name))) for name in variants},
    )


def _row_ids(study: Folder, name: str) -> NDArray[np.str_]:
    table = read_variant_rows(study, name, ["question_id"])
    return np.array(table["question_id"].to_pylist(), dtype=str)


def require_popularity(data: StudyData) -> PopularityData:
    """The popularity of the annotated questions.

    Raises:
        InsufficientDataError: the source of the questions has none.
    """
    popularity = data.load_cached(load_popularity, None, data.variants)
    if popularity is None:
        raise InsufficientDataError(
            "needs annotated questions whose source has the popularity of their subjects: a column popularity or s_pop"
        )
    return popularity


def popularity_bins(known: PopularityData, num: int = NUM_BINS) -> PopularityBins:
    """Bin the questions by quantiles of popularity.

    Raises:
        InsufficientDataError: all subjects are equally popular.
    """
    edges = np.unique(np.quantile(known.values, np.arange(1, num) / num, method="inverted_cdf"))
    _, bin_of_question = np.unique(np.searchsorted(edges, known.values, side="left"), return_inverse=True)
    if not len(bin_of_question) or bin_of_question.max() == 0:
        raise InsufficientDataError("all subjects are equally popular")
    values_by_bin = [known.values[bin_of_question == bin_index] for bin_index in range(bin_of_question.max() + 1)]
    return PopularityBins(
        labels=tuple(_bin_label(end.min(), end.max()) for end in values_by_bin),
        bin_of_question=bin_of_question.astype(np.int64),
    )


def _bin_label(low: float, high: float) -> str:
    """The range of a bin.

    >>> _bin_label(0, 0), _bin_label(3, 1520), _bin_label(0.25, 0.5)
    ('0', '3 to 1,520', '0.25 to 0.5')
    """
    return format_popularity(low) if low == high else f"{format_popularity(low)} to {format_popularity(high)}"


def format_popularity(value: float) -> str:
    """A popularity, without decimals if it is a whole number."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def category_shares(known: PopularityData, bins: PopularityBins) -> NDArray[np.float64]:
    """Shares of the categories in each bin, shape (bins, categories), strongest category first; rows add up to 1."""
    shape = (len(bins.labels), len(Category))
    counts = np.zeros(shape)
    for column, category in enumerate(Category):
        bins_of_category = bins.bin_of_question[known.categories == str(category)]
        counts[:, column] = np.bincount(bins_of_category, minlength=shape[0])
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)


def popularity_correlation(popularity: NDArray[np.float64], p_correct: NDArray[np.float64]) -> RankStatistic:
    """Rank correlation of popularity with P_Correct, each of shape (Q,).

    Raises:
        InsufficientDataError: there are too few questions, or one of the two variables is constant.
    """
    num = len(popularity)
    if num < MIN_QUESTIONS:
        raise InsufficientDataError(f"needs {MIN_QUESTIONS} questions or more for a correlation, there are {num}")
    if np.isnan(p_correct).any():
        raise InsufficientDataError("P_Correct of samples is not known of every question: annotate in mode full")
    if len(np.unique(popularity)) < 2 or len(np.unique(p_correct)) < 2:
        raise InsufficientDataError("all questions are equally popular, or all equally known")
    return spearman(popularity, p_correct)


def estimate_harm(data: StudyData) -> list[HarmEstimate]:
    """The harm of Unknown rows by share, checkpoint, group of test questions and bin.

    Raises:
        InsufficientDataError: there is no popularity, no run at 0 % Unknown, or none at 50 % or 100 %.
    """
    known = require_popularity(data)
    bins = popularity_bins(known)
    sweep = dict(data.sweep_variants("unknown", min_shares=0))
    shares = [share for share in COMPARED_SHARES if share in sweep]
    if 0.0 not in sweep or not shares:
        raise InsufficientDataError("needs finished runs of unknown-000, and of unknown-050 or unknown-100")
    return [
        _harm_estimate(
            data,
            (share, sweep[share], sweep[0.0]),
            checkpoint,
            category,
            quantile,
            _question_ids_in_bin(known, bins, category, quantile),
        )
        for share in shares
        for checkpoint in (EARLY_STOP, CONVERGENCE)
        for category in (ALL_CATEGORIES, ANY_KNOWN)
        for quantile in range(len(bins.labels))
    ]


def _harm_estimate(
    data: StudyData, sets: tuple[float, str, str], checkpoint: str, category: str, quantile: int, ids: NDArray[np.str_]
) -> HarmEstimate:
    share, name, base = sets
    comparison, missing_reason = value_or_reason(
        compare_on_questions, data, (name, checkpoint), (base, checkpoint), "test", ids
    )
    return HarmEstimate(
        share=share,
        checkpoint=checkpoint,
        category=category,
        quantile=quantile,
        comparison=comparison,
        missing_reason=missing_reason,
    )


def _question_ids_in_bin(known: PopularityData, bins: PopularityBins, category: str, quantile: int) -> NDArray[np.str_]:
    mask = bins.bin_of_question == quantile
    if category == ANY_KNOWN:
        mask &= np.isin(known.categories, list(map(str, KNOWN_CATEGORIES)))
    ids: NDArray[np.str_] = known.question_ids[mask]
    return ids


def variant_popularity(data: StudyData) -> list[VariantPopularity]:
    """Every fine-tuning set, in the order of the variants, without relabelled and weighted sets.

    Those have the same questions as D.

    Raises:
        InsufficientDataError: there is no popularity, or no set was drawn.
    """
    known = require_popularity(data)
    bins = popularity_bins(known)
    base = next((v.name for v in data.variants.values() if v.kind == "unknown" and v.share == 0.0), "")
    reference = _bin_shares(bins, known.rows[base]) if len(known.rows.get(base, ())) else None
    kinds = {name: variant.kind for name, variant in data.variants.items()}
    sets = [
        _variant_popularity(known, bins, name, indices, reference)
        for name, indices in known.rows.items()
        if len(indices) and kinds.get(name) not in ("idk", "weighted", "p-correct")
    ]
    if not sets:
        raise InsufficientDataError("needs fine-tuning sets with rows of known popularity")
    return sets


def _variant_popularity(
    known: PopularityData,
    bins: PopularityBins,
    name: str,
    indices: NDArray[np.int64],
    reference: NDArray[np.float64] | None,
) -> VariantPopularity:
    values, unknown = known.values[indices], known.categories[indices] == str(Category.UNKNOWN)
    shares = _bin_shares(bins, indices)
    low, middle, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return VariantPopularity(
        name=name,
        num=len(indices),
        quartiles=(low, middle, high),
        median_known=_median(values[~unknown]),
        median_unknown=_median(values[unknown]),
        shares=tuple(float(share) for share in shares),
        matched_share=None if reference is None else float(np.minimum(shares, reference).sum()),
    )


def _bin_shares(bins: PopularityBins, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(bins.bin_of_question[indices], minlength=len(bins.labels))
    return np.asarray(counts / max(len(indices), 1), dtype=np.float64)


def _median(values: NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if len(values) else None
