"""The tables of the section on popularity."""

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z_95, checkpoint_label, round1
from slick.analysis.popularity import (
    PopularityData,
    RankCorrelation,
    category_shares,
    popularity_bins,
    popularity_correlation,
)
from slick.analysis.popularity_harm import VariantPopularity, estimate_harm, require_popularity, variant_popularity
from slick.analysis.terms import CONVERGENCE, InsufficientDataError
from slick.report.tables import CellValue, Table
from slick.types import ALL_CATEGORIES, Category


def variant_popularity_table(data: StudyData, kinds: tuple[str, ...]) -> Table:
    """One row a fine-tuning set: how popular its rows are, and its test accuracy where it was trained."""
    rows: list[tuple[CellValue, ...]] = []
    for one in variant_popularity(data):
        if data.variants[one.name].kind not in kinds:
            continue
        low, middle, high = (_format_number(value) for value in one.quartiles)
        medians = (_format_number(one.median_known), _format_number(one.median_unknown))
        matched_share = None if one.matched_share is None else round1(100 * one.matched_share)
        rows.append(
            (
                one.name,
                one.num,
                middle,
                f"{low} to {high}",
                *medians,
                matched_share,
                _accuracy_at_convergence(data, one),
            )
        )
    columns = ("fine-tuned on", "rows", "median", "quartiles", "of Known", "of Unknown")
    return Table(name="popularity_rows", columns=(*columns, "matched (%)", "accuracy (%)"), rows=tuple(rows))


def quantile_table(data: StudyData) -> Table:
    """One row a fine-tuning set, of every kind: percent of its rows in each quantile."""
    labels = popularity_bins(require_popularity(data)).labels
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (one.name, one.num, *(round(100 * share, 2) for share in one.shares)) for one in variant_popularity(data)
    )
    return Table(name="popularity_quantiles", columns=("fine-tuned on", "rows", *labels), rows=rows)


def correlation_table(known: PopularityData) -> Table:
    """All questions, then each relation: popularity against greedy and against sampled answers."""
    rows: list[tuple[CellValue, ...]] = []
    for relation in (ALL_CATEGORIES, *np.unique(known.relations).tolist()):
        mask = np.ones(len(known.values), dtype=bool) if relation == ALL_CATEGORIES else known.relations == relation
        cells: list[CellValue] = []
        missing_reason: list[str] = []
        for p_correct in (known.greedy, known.sampled):
            try:
                cells.append(format_correlation(popularity_correlation(known.values[mask], p_correct[mask])))
            except InsufficientDataError as reason:
                cells.append(None)
                missing_reason.append(str(reason))
        rows.append((relation, int(mask.sum()), *cells, "; ".join(dict.fromkeys(missing_reason))))
    columns = ("relation", "questions", "greedy answers", "sampled answers", "missing")
    return Table(name="popularity_correlation", columns=columns, rows=tuple(rows), total_rows=frozenset({0}))


def popularity_category_table(known: PopularityData) -> Table:
    """One row a quantile: questions, and percent of each category."""
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)
    counts = np.bincount(bins.bin_of_question)
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (label, int(num), *(round(float(share), 2) for share in shares))
        for label, num, shares in zip(bins.labels, counts, shares_BC, strict=True)
    )
    columns = ("popularity", "questions", *(f"{category}_percent" for category in Category))
    return Table(name="popularity_categories", columns=columns, rows=rows)


def harm_table(data: StudyData) -> Table:
    """Every comparison, with reasons for what is missing."""
    labels = popularity_bins(require_popularity(data)).labels
    rows: list[tuple[CellValue, ...]] = []
    for one in estimate_harm(data):
        cells: tuple[CellValue, ...] = (None,) * 7
        if one.comparison is not None:
            first, second, change, num = one.comparison
            values = (
                first.value,
                second.value,
                change.value,
                change.value - Z_95 * change.se,
                change.value + Z_95 * change.se,
            )
            cells = (num, *(round(value, 3) for value in values), change.num_seeds)
        rows.append(
            (
                round(100 * one.share),
                checkpoint_label(one.checkpoint),
                one.category,
                labels[one.quantile],
                *cells,
                one.missing_reason,
            )
        )
    columns = (
        "unknown_percent",
        "checkpoint",
        "test_questions",
        "popularity",
        "questions",
        "accuracy_percent",
        "accuracy_without_unknown",
        "change_points",
        "low",
        "high",
        "seeds",
        "missing",
    )
    return Table(name="popularity_harm", columns=columns, rows=tuple(rows))


def format_correlation(found: RankCorrelation) -> str:
    """A correlation and its 95 % interval.

    >>> format_correlation(RankCorrelation(0.437, 0.41, 0.4612, 4720))
    '0.44 (0.41 to 0.46)'
    """
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _format_number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _accuracy_at_convergence(data: StudyData, one: VariantPopularity) -> float | None:
    try:
        return round1(data.accuracy(one.name, CONVERGENCE).value)
    except InsufficientDataError:
        return None
