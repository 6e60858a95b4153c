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
from slick.analysis.popularity import Bins, Popularity, popularity_bins
from slick.analysis.statistics.subset import Compared, compare
from slick.analysis.terms import EARLY, LAST, POOLED, NotTestable
from slick.types import ALL_CATEGORIES, KNOWN_CATEGORIES, Category

SHARES = (0.5, 1.0)
"""Shares of Unknown rows that are held against none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """A set with Unknown rows (first) against the one without (second), on test questions of one quantile."""

    share: float
    when: str
    """`EARLY` or `LAST`."""
    category: str
    """`ALL_CATEGORIES`, or `POOLED` for Known questions only: those of Unknown ones have little accuracy to lose."""
    quantile: int
    """Place among the bins, from the least popular."""
    compared: Compared | None
    why: str = ""
    """What is missing, where there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPopularity:
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
    matched: float | None
    """Share of its rows that find a partner of the same bin in the set without Unknown rows, in [0, 1]; None if that
    has no rows of known popularity."""


def known_popularity(data: StudyData) -> Popularity:
    """The popularity that was loaded.

    Raises:
        NotTestable: the source of the questions has none.
    """
    if data.popularity is None:
        raise NotTestable(
            "needs annotated questions whose source says how popular their subjects are: a column popularity or s_pop"
        )
    return data.popularity


def harms(data: StudyData) -> list[Harm]:
    """Every share, checkpoint, group of test questions and bin.

    Raises:
        NotTestable: there is no popularity, no set without Unknown rows, or none with a half or nothing else.
    """
    known = known_popularity(data)
    bins = popularity_bins(known)
    sweep = dict(data.sweep("unknown", least=0))
    shares = [share for share in SHARES if share in sweep]
    if 0.0 not in sweep or not shares:
        raise NotTestable("needs finished runs of unknown-000, and of unknown-050 or unknown-100")
    return [
        _harm(data, (share, sweep[share], sweep[0.0]), when, category, quantile, _ids(known, bins, category, quantile))
        for share in shares
        for when in (EARLY, LAST)
        for category in (ALL_CATEGORIES, POOLED)
        for quantile in range(len(bins.labels))
    ]


def row_popularity(data: StudyData) -> list[RowPopularity]:
    """Every fine-tuning set, in the order in which they were drawn; relabelled ones have the rows of the sweep's.

    Raises:
        NotTestable: there is no popularity, or no set was drawn.
    """
    known = known_popularity(data)
    bins = popularity_bins(known)
    base = next((v.name for v in data.variants.values() if v.kind == "unknown" and v.share == 0.0), "")
    against = _shares(bins, known.rows[base]) if len(known.rows.get(base, ())) else None
    kinds = {name: variant.kind for name, variant in data.variants.items()}
    found = [
        _row_popularity(known, bins, name, places, against)
        for name, places in known.rows.items()
        if len(places) and kinds.get(name) != "idk"
    ]
    if not found:
        raise NotTestable("needs fine-tuning sets with rows of known popularity")
    return found


def _harm(
    data: StudyData, sets: tuple[float, str, str], when: str, category: str, quantile: int, ids: NDArray[np.str_]
) -> Harm:
    share, name, base = sets
    try:
        found, why = compare(data, (name, when), (base, when), "test", ids), ""
    except NotTestable as reason:
        found, why = None, str(reason)
    return Harm(share=share, when=when, category=category, quantile=quantile, compared=found, why=why)


def _ids(known: Popularity, bins: Bins, category: str, quantile: int) -> NDArray[np.str_]:
    mask = bins.of_question == quantile
    if category == POOLED:
        mask &= np.isin(known.categories, [str(one) for one in KNOWN_CATEGORIES])
    ids: NDArray[np.str_] = known.question_ids[mask]
    return ids


def _row_popularity(
    known: Popularity, bins: Bins, name: str, places: NDArray[np.int64], against: NDArray[np.float64] | None
) -> RowPopularity:
    values, unknown = known.values[places], known.categories[places] == str(Category.UNKNOWN)
    shares = _shares(bins, places)
    low, middle, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return RowPopularity(
        name=name,
        num=len(places),
        quartiles=(low, middle, high),
        median_known=_median(values[~unknown]),
        median_unknown=_median(values[unknown]),
        shares=tuple(float(share) for share in shares),
        matched=None if against is None else float(np.minimum(shares, against).sum()),
    )


def _shares(bins: Bins, places: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(bins.of_question[places], minlength=len(bins.labels))
    return np.asarray(counts / max(len(places), 1), dtype=np.float64)


def _median(values: NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if len(values) else None
