"""Is it Unknown rows that harm, or unpopular subjects? Unknown questions are mostly about the latter. Pure.

Two controls. On the side of the test: the change of accuracy between 0 % and more Unknown rows, within quantiles of the
test questions' popularity. On the side of the training: how popular the rows of each fine-tuning set are, and how far
two sets can be matched on it.

Source: Ghosal et al. 2024, arXiv:2406.14785, where fine-tuning on less popular facts harms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.popularity import PopularityBins, PopularityData, popularity_bins
from slick.analysis.statistics.subset import SubsetComparison, compare_on_questions
from slick.analysis.terms import ANY_KNOWN, CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES, Category

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
    if data.popularity is None:
        raise InsufficientDataError(
            "needs annotated questions whose source says how popular their subjects are: a column popularity or s_pop"
        )
    return data.popularity


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
