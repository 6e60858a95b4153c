"""The tables of the section on how long rows wait until they are fitted."""

import math
from collections.abc import Mapping

from slick.analysis.data import StudyData
from slick.analysis.findings.sweep import half_unknown
from slick.analysis.findings.verdict import percent
from slick.analysis.fit_times import Comparison, FitCurve, FitTimes, compare, fit_curves, runs_of, together
from slick.analysis.statistics.hazard import HazardRatio, hazard_ratio
from slick.analysis.terms import LAST, NotTestable
from slick.report.tables import Table, Value
from slick.types import Category

WEAKLY, UNKNOWN = str(Category.WEAKLY_KNOWN), str(Category.UNKNOWN)

Ratios = Mapping[str, HazardRatio | NotTestable]
"""Variant to its ratio of WeaklyKnown against Unknown rows, or why there is none."""


def ratio_table(data: StudyData, ratios: Ratios) -> Table:
    """One row a share of Unknown rows.

    Raises:
        NotTestable: no share of Unknown rows gives a ratio.
    """
    need_ratio(data, ratios)
    rows: list[tuple[Value, ...]] = []
    for share, name in data.sweep():
        never, one = _never(data, name), ratios[name]
        if isinstance(one, NotTestable):
            rows.append((percent(share), *(None,) * 6, never))
            continue
        change = (
            (None, None)
            if one.change is None
            else (f"{one.change.early:.1f} (to epoch {one.change.until})", f"{one.change.late:.1f}")
        )
        cox = None if one.cox is None else f"{one.cox:.1f}"
        sizes = " + ".join(f"{size:,}" for size in one.num_questions)
        rows.append((percent(share), sizes, value_and_range(one), *change, cox, _log_rank(data, name), never))
    columns = ("Unknown", "questions", "hazard ratio", "early", "late", "Cox", "p", "never fitted (%)")
    return Table(name="fit_ratio", columns=columns, rows=tuple(rows))


def ratio_numbers(data: StudyData, ratios: Ratios) -> Table:
    """The ratios as numbers, or why there is none."""
    need_ratio(data, ratios)
    rows: list[tuple[Value, ...]] = []
    for share, name in data.sweep():
        one = ratios[name]
        if isinstance(one, NotTestable):
            rows.append((round(100 * share, 2), *(None,) * 8, str(one)))
            continue
        change = one.change
        later = (None,) * 4 if change is None else (change.until, change.early, change.late, change.p_value)
        values = (one.value, one.low, one.high, one.cox, *later)
        shown = (float(f"{value:.4g}") if isinstance(value, float) else value for value in values)
        rows.append((round(100 * share, 2), *shown, ""))
    columns = ("unknown_percent", "ratio", "low", "high", "cox", "early_to_epoch", "early", "late", "p_of_change")
    return Table(name="fit_ratio_numbers", columns=(*columns, "missing"), rows=tuple(rows))


def pair_table(data: StudyData) -> Table:
    """Each pair of categories of the half Unknown variant: ratio and test."""
    runs = runs_of(data.fit_times, half_unknown(data))
    rows = tuple(_pair(together(runs), pair) for pair in compare(runs))
    missing = any(row[-1] for row in rows)
    columns = ("fitted", "against", "hazard ratio", "p (log-rank)", "p (Holm)", "missing")
    return Table(name="fit_pairs", text_columns=frozenset({0, 1}), columns=columns if missing else columns[:-1],
                 rows=rows if missing else tuple(row[:-1] for row in rows))  # fmt: skip


def category_table(data: StudyData) -> Table:
    """Rows of each share and category: by which epoch half are fitted, how many never are, how many are at the end."""
    rows: list[tuple[Value, ...]] = []
    for share, name, curve in _all_curves(data):
        never, low, high = (round(100 * value, 2) for value in curve.never)
        right = round(data.accuracy(name, LAST, "train", curve.category).value, 2)
        rows.append((round(100 * share, 2), curve.category, curve.num_rows, curve.num_questions, curve.median,
                     never, low, high, right))  # fmt: skip
    columns = ("unknown_percent", "category", "rows", "questions", "half_fitted_by_epoch", "never_fitted_percent")
    return Table(name="fit_times", columns=(*columns, "low", "high", "right_at_the_end_percent"), rows=tuple(rows))


def curve_table(data: StudyData) -> Table:
    """Every point of every curve."""
    rows: list[tuple[Value, ...]] = []
    for share, _, curve in _all_curves(data):
        for epoch, *values in zip(curve.epochs.tolist(), curve.waiting, curve.low, curve.high, strict=True):
            shown = (None if math.isnan(value) else round(100 * float(value), 3) for value in values)
            rows.append((round(100 * share, 2), curve.category, epoch, *shown))
    columns = ("unknown_percent", "category", "epoch", "not_fitted_percent", "low", "high")
    return Table(name="fit_curve_numbers", columns=columns, rows=tuple(rows))


def value_and_range(ratio: HazardRatio) -> str:
    """A ratio with its 95 % interval, for people."""
    return f"{ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f})"


def need_ratio(data: StudyData, ratios: Ratios) -> None:
    """See that at least one share of Unknown rows gives a ratio.

    Raises:
        NotTestable: none does; it says why for each.
    """
    data.sweep(least=1)
    if not any(isinstance(one, HazardRatio) for one in ratios.values()):
        raise NotTestable("; ".join(dict.fromkeys(map(str, ratios.values()))))


def p_text(value: float) -> str:
    """A p value for people.

    >>> p_text(0.03), p_text(1e-9)
    ('0.030', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _log_rank(data: StudyData, name: str) -> str | None:
    """None where a seed has no row of one of the categories."""
    pairs = {(pair.first, pair.second): pair for pair in compare(runs_of(data.fit_times, name))}
    pair = pairs.get((WEAKLY, UNKNOWN))
    return None if pair is None else p_text(pair.p_value)


def _all_curves(data: StudyData) -> list[tuple[float, str, FitCurve]]:
    found = []
    for share, name in data.sweep(least=1):
        found += [(share, name, curve) for curve in fit_curves(together(runs_of(data.fit_times, name)))]
    return found


def _never(data: StudyData, name: str) -> str | None:
    for curve in fit_curves(together(runs_of(data.fit_times, name))):
        if curve.category == UNKNOWN:
            never, low, high = (100 * value for value in curve.never)
            return f"{never:.1f} ({low:.1f} to {high:.1f})"
    return None


def _pair(rows: FitTimes, pair: Comparison) -> tuple[Value, ...]:
    ratio, why = None, ""
    try:
        ratio = value_and_range(hazard_ratio(rows, pair.first, pair.second))
    except NotTestable as reason:
        why = str(reason)
    return (pair.first, pair.second, ratio, p_text(pair.p_value), p_text(pair.p_adjusted), why)
