"""How popular the subjects of questions are, and what the model knows of popular and unpopular ones. Pure.

Popularity is any number of the source that grows with it, so only its order counts here: quantiles and ranks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.data import StudyData
from slick.report.measurements import ANY_KNOWN, CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.statistics.intervals import SubsetComparison, compare_on_questions
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge, read_question_rows, read_variant_rows
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES, Category

NUM_BINS = 4
"""Quantiles of popularity; fewer where many subjects are equally popular."""
MIN_QUESTIONS = 10
"""Fewer give no correlation worth an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityData:
    """Annotated questions whose subject's popularity is known, by question_id; all arrays have shape (Q,)."""

    question_ids: NDArray[np.str_]
    relations: NDArray[np.str_]
    categories: NDArray[np.str_]
    greedy: NDArray[np.float64]
    """P_Correct of greedy answers, in [0, 1]."""
    sampled: NDArray[np.float64]
    """P_Correct of sampled answers, in [0, 1]; NaN where not all samples were drawn."""
    values: NDArray[np.float64]
    """Popularity of the subject, 0 or more."""
    num_unknown_popularity: int = 0
    """Annotated questions whose subject's popularity is not known."""
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Name of a fine-tuning set to the places of its rows in the arrays; rows of unknown popularity are left out."""


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation, with its 95 % interval."""

    value: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityBins:
    """Quantiles of popularity; equally popular subjects are never parted."""

    labels: tuple[str, ...]
    """Least and most popularity of each, ascending."""
    bin_of_question: NDArray[np.int64]
    """Shape (Q,): the place of each question's bin in `labels`."""


def popularity_bins(known: PopularityData, num: int = NUM_BINS) -> PopularityBins:
    """Cut the questions at quantiles of popularity.

    Raises:
        NotTestable: all subjects are equally popular.
    """
    edges = np.unique(np.quantile(known.values, np.arange(1, num) / num, method="inverted_cdf"))
    _, places = np.unique(np.searchsorted(edges, known.values, side="left"), return_inverse=True)
    if not len(places) or places.max() == 0:
        raise InsufficientDataError("needs subjects that differ in popularity, and they do not")
    ends = [known.values[places == place] for place in range(places.max() + 1)]
    return PopularityBins(
        labels=tuple(_bin_label(end.min(), end.max()) for end in ends), bin_of_question=places.astype(np.int64)
    )


def category_shares(known: PopularityData, bins: PopularityBins) -> NDArray[np.float64]:
    """Share of each category (columns, strongest first) among the questions of each bin (rows); rows add up to 1."""
    shape = (len(bins.labels), len(Category))
    counts = np.zeros(shape)
    for column, category in enumerate(Category):
        mine = bins.bin_of_question[known.categories == str(category)]
        counts[:, column] = np.bincount(mine, minlength=shape[0])
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)


def popularity_correlation(popularity: NDArray[np.float64], p_correct: NDArray[np.float64]) -> RankCorrelation:
    """Rank correlation of popularity with P_Correct, each of shape (Q,).

    Raises:
        NotTestable: too few questions, or one side does not vary.

    Source: Bonett and Wright 2000, https://doi.org/10.1007/BF02294183, for the interval: Fisher's transformation with
    variance (1 + r**2 / 2) / (Q - 3).
    """
    from scipy.stats import spearmanr

    num = len(popularity)
    if num < MIN_QUESTIONS:
        raise InsufficientDataError(f"needs {MIN_QUESTIONS} questions or more for a correlation, there are {num}")
    if np.isnan(p_correct).any():
        raise InsufficientDataError("P_Correct of samples is not known of every question: annotate in mode full")
    if len(np.unique(popularity)) < 2 or len(np.unique(p_correct)) < 2:
        raise InsufficientDataError("all questions are equally popular, or all equally known")
    value = float(spearmanr(popularity, p_correct).statistic)
    reach = 1.96 * np.sqrt((1 + value**2 / 2) / (num - 3))
    middle = np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9))
    return RankCorrelation(value, float(np.tanh(middle - reach)), float(np.tanh(middle + reach)), num)


def _bin_label(low: float, high: float) -> str:
    """The ends of a bin.

    >>> _bin_label(0, 0), _bin_label(3, 1520), _bin_label(0.25, 0.5)
    ('0', '3 to 1,520', '0.25 to 0.5')
    """
    ends = [f"{end:,.0f}" if float(end).is_integer() else f"{end:,.4g}" for end in (low, high)]
    return ends[0] if low == high else " to ".join(ends)


COMPARED_SHARES = (0.5, 1.0)
"""Shares of Unknown rows that are held against none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmEstimate:
    """A set with Unknown rows (first) against the one without (second), on test questions of one quantile."""

    share: float
    checkpoint: str
    """`EARLY` or `LAST`."""
    category: str
    """`ALL_CATEGORIES`, or `POOLED` for Known questions only: those of Unknown ones have little accuracy to lose."""
    quantile: int
    """Place among the bins, from the least popular."""
    comparison: SubsetComparison | None
    missing_reason: str = ""
    """What is missing, where there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPopularity:
    """How popular the rows of one fine-tuning set are."""

    name: str
    num: int
    """Rows of known popularity."""
    quartiles: tuple[float, float, float]
    """Lower quartile, median, upper quartile."""
    median_known: float | None
    """Of its Known rows; None without any."""
    median_unknown: float | None
    """Of its Unknown rows; None without any."""
    shares: tuple[float, ...]
    """Share of its rows in each bin, from the least popular; they add up to 1."""
    matched_share: float | None
    """Share of its rows that find a partner of the same bin in the set without Unknown rows, in [0, 1]; None if that
    has no rows of known popularity."""


def require_popularity(data: StudyData) -> PopularityData:
    """The popularity that was loaded.

    Raises:
        NotTestable: the source of the questions has none.
    """
    popularity = data.part(load_popularity, None, data.variants)
    if popularity is None:
        raise InsufficientDataError(
            "needs annotated questions whose source says how popular their subjects are: a column popularity or s_pop"
        )
    return popularity


def estimate_harm(data: StudyData) -> list[HarmEstimate]:
    """Every share, checkpoint, group of test questions and bin.

    Raises:
        NotTestable: there is no popularity, no set without Unknown rows, or none with a half or nothing else.
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


def variant_popularity(data: StudyData) -> list[VariantPopularity]:
    """Every fine-tuning set, in the order in which they were drawn; relabelled ones have the rows of the sweep's.

    Raises:
        NotTestable: there is no popularity, or no set was drawn.
    """
    known = require_popularity(data)
    bins = popularity_bins(known)
    base = next((v.name for v in data.variants.values() if v.kind == "unknown" and v.share == 0.0), "")
    against = _bin_shares(bins, known.rows[base]) if len(known.rows.get(base, ())) else None
    kinds = {name: variant.kind for name, variant in data.variants.items()}
    found = [
        _variant_popularity(known, bins, name, places, against)
        for name, places in known.rows.items()
        if len(places) and kinds.get(name) != "idk"
    ]
    if not found:
        raise InsufficientDataError("needs fine-tuning sets with rows of known popularity")
    return found


def _harm_estimate(
    data: StudyData, sets: tuple[float, str, str], checkpoint: str, category: str, quantile: int, ids: NDArray[np.str_]
) -> HarmEstimate:
    share, name, base = sets
    try:
        found, missing_reason = compare_on_questions(data, (name, checkpoint), (base, checkpoint), "test", ids), ""
    except InsufficientDataError as reason:
        found, missing_reason = None, str(reason)
    return HarmEstimate(
        share=share,
        checkpoint=checkpoint,
        category=category,
        quantile=quantile,
        comparison=found,
        missing_reason=missing_reason,
    )


def _question_ids_in_bin(known: PopularityData, bins: PopularityBins, category: str, quantile: int) -> NDArray[np.str_]:
    mask = bins.bin_of_question == quantile
    if category == ANY_KNOWN:
        mask &= np.isin(known.categories, [str(one) for one in KNOWN_CATEGORIES])
    ids: NDArray[np.str_] = known.question_ids[mask]
    return ids


def _variant_popularity(
    known: PopularityData,
    bins: PopularityBins,
    name: str,
    places: NDArray[np.int64],
    against: NDArray[np.float64] | None,
) -> VariantPopularity:
    values, unknown = known.values[places], known.categories[places] == str(Category.UNKNOWN)
    shares = _bin_shares(bins, places)
    low, middle, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return VariantPopularity(
        name=name,
        num=len(places),
        quartiles=(low, middle, high),
        median_known=_median(values[~unknown]),
        median_unknown=_median(values[unknown]),
        shares=tuple(float(share) for share in shares),
        matched_share=None if against is None else float(np.minimum(shares, against).sum()),
    )


def _bin_shares(bins: PopularityBins, places: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(bins.bin_of_question[places], minlength=len(bins.labels))
    return np.asarray(counts / max(len(places), 1), dtype=np.float64)


def _median(values: NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if len(values) else None


def load_popularity(study: Folder, variants: Iterable[str]) -> PopularityData | None:
    """Popularity of the annotated questions, and which of them each fine-tuning set holds.

    Args:
        study: its folder.
        variants: names of the sets that were drawn.

    Returns:
        None if the source has no popularity, or nothing is annotated.
    """
    asked, folder = read_manifest(study.child("questions")), study.child("annotate")
    if asked is None or not asked.counts.get("with_popularity") or read_manifest(folder) is None:
        return None
    table = read_question_rows(study.child("questions"), ["question_id", "popularity"])
    popularity = dict(zip(table["question_id"].to_pylist(), table["popularity"].to_pylist(), strict=True))
    columns = ["question_id", "relation", "category", "p_correct_greedy", "p_correct_sampled"]
    knowledge = read_knowledge(study, columns).sort_by("question_id").to_pydict()
    values = np.array([popularity.get(name) for name in knowledge["question_id"]], dtype=np.float64)
    there = ~np.isnan(values)
    ids = np.array(knowledge["question_id"], dtype=str)[there]
    return PopularityData(
        question_ids=ids,
        relations=np.array(knowledge["relation"], dtype=str)[there],
        categories=np.array(knowledge["category"], dtype=str)[there],
        greedy=np.array(knowledge["p_correct_greedy"], dtype=np.float64)[there],
        sampled=np.array(knowledge["p_correct_sampled"], dtype=np.float64)[there],
        values=values[there],
        num_unknown_popularity=int(np.count_nonzero(~there)),
        rows={name: np.flatnonzero(np.isin(ids, _row_ids(study, name))) for name in variants},
    )


def _row_ids(study: Folder, name: str) -> NDArray[np.str_]:
    table = read_variant_rows(study, name, ["question_id"])
    return np.array(table["question_id"].to_pylist(), dtype=str)
