"""The tables of the section on popularity."""

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z, tenths, when_label
from slick.analysis.popularity import Correlation, Popularity, category_shares, correlation, popularity_bins
from slick.analysis.popularity_harm import RowPopularity, harms, known_popularity, row_popularity
from slick.analysis.terms import LAST, NotTestable
from slick.report.tables import Table, Value
from slick.types import ALL_CATEGORIES, Category


def rows_table(data: StudyData, kinds: tuple[str, ...]) -> Table:
    """One row a fine-tuning set: how popular its rows are, and its test accuracy where it was trained."""
    rows: list[tuple[Value, ...]] = []
    for one in row_popularity(data):
        if data.variants[one.name].kind not in kinds:
            continue
        low, middle, high = (_number(value) for value in one.quartiles)
        medians = (_number(one.median_known), _number(one.median_unknown))
        matched = None if one.matched is None else tenths(100 * one.matched)
        rows.append((one.name, one.num, middle, f"{low} to {high}", *medians, matched, _at_the_end(data, one)))
    columns = ("fine-tuned on", "rows", "median", "quartiles", "of Known", "of Unknown")
    return Table(name="popularity_rows", columns=(*columns, "matched (%)", "accuracy (%)"), rows=tuple(rows))


def quantile_table(data: StudyData) -> Table:
    """One row a fine-tuning set, of every kind: percent of its rows in each quantile."""
    labels = popularity_bins(known_popularity(data)).labels
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (one.name, one.num, *(round(100 * share, 2) for share in one.shares)) for one in row_popularity(data)
    )
    return Table(name="popularity_quantiles", columns=("fine-tuned on", "rows", *labels), rows=rows)


def correlation_table(known: Popularity) -> Table:
    """All questions, then each relation: popularity against greedy and against sampled answers."""
    rows: list[tuple[Value, ...]] = []
    for relation in (ALL_CATEGORIES, *np.unique(known.relations).tolist()):
        mask = np.ones(len(known.values), dtype=bool) if relation == ALL_CATEGORIES else known.relations == relation
        cells: list[Value] = []
        why: list[str] = []
        for p_correct in (known.greedy, known.sampled):
            try:
                cells.append(correlation_text(correlation(known.values[mask], p_correct[mask])))
            except NotTestable as reason:
                cells.append(None)
                why.append(str(reason))
        rows.append((relation, int(mask.sum()), *cells, "; ".join(dict.fromkeys(why))))
    columns = ("relation", "questions", "greedy answers", "sampled answers", "missing")
    return Table(name="popularity_correlation", columns=columns, rows=tuple(rows), total_rows=frozenset({0}))


def category_table(known: Popularity) -> Table:
    """One row a quantile: questions, and percent of each category."""
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)
    counts = np.bincount(bins.of_question)
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (label, int(num), *(round(float(share), 2) for share in shares))
        for label, num, shares in zip(bins.labels, counts, shares_BC, strict=True)
    )
    columns = ("popularity", "questions", *(f"{category}_percent" for category in Category))
    return Table(name="popularity_categories", columns=columns, rows=rows)


def harm_table(data: StudyData) -> Table:
    """Every comparison, with reasons for what is missing."""
    labels = popularity_bins(known_popularity(data)).labels
    rows: list[tuple[Value, ...]] = []
    for one in harms(data):
        cells: tuple[Value, ...] = (None,) * 7
        if one.compared is not None:
            first, second, change, num = one.compared
            values = (
                first.value,
                second.value,
                change.value,
                change.value - Z * change.se,
                change.value + Z * change.se,
            )
            cells = (num, *(round(value, 3) for value in values), change.num_seeds)
        rows.append((round(100 * one.share), when_label(one.when), one.category, labels[one.quantile], *cells, one.why))
    columns = ("unknown_percent", "checkpoint", "test_questions", "popularity", "questions", "accuracy_percent",
               "accuracy_without_unknown", "change_points", "low", "high", "seeds", "missing")  # fmt: skip
    return Table(name="popularity_harm", columns=columns, rows=tuple(rows))


def correlation_text(found: Correlation) -> str:
    """A correlation and its 95 % interval.

    >>> correlation_text(Correlation(0.437, 0.41, 0.4612, 4720))
    '0.44 (0.41 to 0.46)'
    """
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _at_the_end(data: StudyData, one: RowPopularity) -> float | None:
    try:
        return tenths(data.accuracy(one.name, LAST).value)
    except NotTestable:
        return None
