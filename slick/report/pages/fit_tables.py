"""The tables of the section on how long rows wait until they are fitted."""

import math
from collections.abc import Mapping

from slick.analysis.data import StudyData
from slick.analysis.findings.sweep import half_unknown_variant
from slick.analysis.findings.verdict import format_percent
from slick.analysis.fit_times import (
    LogRankTest,
    SurvivalCurve,
    TimeToFit,
    log_rank_tests,
    pool_runs,
    select_runs,
    survival_curves,
)
from slick.analysis.statistics.hazard import HazardRatio, hazard_ratio
from slick.analysis.terms import CONVERGENCE, InsufficientDataError
from slick.report.tables import CellValue, Table
from slick.types import Category

WEAKLY, UNKNOWN = str(Category.WEAKLY_KNOWN), str(Category.UNKNOWN)

Ratios = Mapping[str, HazardRatio | InsufficientDataError]
"""Variant to its ratio of WeaklyKnown against Unknown rows, or why there is none."""


def hazard_ratio_table(data: StudyData, ratios: Ratios) -> Table:
    """One row a share of Unknown rows.

    Raises:
        NotTestable: no share of Unknown rows gives a ratio.
    """
    require_ratio(data, ratios)
    rows: list[tuple[CellValue, ...]] = []
    for share, name in data.sweep_variants():
        never_fitted, one = _never_fitted_cell(data, name), ratios[name]
        if isinstance(one, InsufficientDataError):
            rows.append((format_percent(share), *(None,) * 6, never_fitted))
            continue
        change = (
            (None, None)
            if one.change is None
            else (f"{one.change.early:.1f} (to epoch {one.change.early_until_epoch})", f"{one.change.late:.1f}")
        )
        cox = None if one.cox is None else f"{one.cox:.1f}"
        sizes = " + ".join(f"{size:,}" for size in one.num_questions)
        rows.append(
            (format_percent(share), sizes, format_ratio(one), *change, cox, _log_rank_cell(data, name), never_fitted)
        )
    columns = ("Unknown", "questions", "hazard ratio", "early", "late", "Cox", "p", "never fitted (%)")
    return Table(name="fit_ratio", columns=columns, rows=tuple(rows))


def hazard_ratio_numbers_table(data: StudyData, ratios: Ratios) -> Table:
    """The ratios as numbers, or why there is none."""
    require_ratio(data, ratios)
    rows: list[tuple[CellValue, ...]] = []
    for share, name in data.sweep_variants():
        one = ratios[name]
        if isinstance(one, InsufficientDataError):
            rows.append((round(100 * share, 2), *(None,) * 8, str(one)))
            continue
        change = one.change
        later = (None,) * 4 if change is None else (change.early_until_epoch, change.early, change.late, change.p_value)
        values = (one.value, one.low, one.high, one.cox, *later)
        shown = (float(f"{value:.4g}") if isinstance(value, float) else value for value in values)
        rows.append((round(100 * share, 2), *shown, ""))
    columns = ("unknown_percent", "ratio", "low", "high", "cox", "early_to_epoch", "early", "late", "p_of_change")
    return Table(name="fit_ratio_numbers", columns=(*columns, "missing"), rows=tuple(rows))


def category_pair_table(data: StudyData) -> Table:
    """Each pair of categories of the half Unknown variant: ratio and test."""
    runs = select_runs(data.time_to_fit, half_unknown_variant(data))
    rows = tuple(_pair_row(pool_runs(runs), pair) for pair in log_rank_tests(runs))
    missing = any(row[-1] for row in rows)
    columns = ("fitted", "against", "hazard ratio", "p (log-rank)", "p (Holm)", "missing")
    return Table(
        name="fit_pairs",
        text_columns=frozenset({0, 1}),
        columns=columns if missing else columns[:-1],
        rows=rows if missing else tuple(row[:-1] for row in rows),
    )


def fit_time_table(data: StudyData) -> Table:
    """Rows of each share and category: by which epoch half are fitted, how many never are, how many are at the end."""
    rows: list[tuple[CellValue, ...]] = []
    for share, name, curve in _all_curves(data):
        never_fitted, low, high = (round(100 * value, 2) for value in curve.never_fitted)
        right = round(data.accuracy(name, CONVERGENCE, "train", curve.category).value, 2)
        rows.append(
            (
                round(100 * share, 2),
                curve.category,
                curve.num_rows,
                curve.num_questions,
                curve.median,
                never_fitted,
                low,
                high,
                right,
            )
        )
    columns = ("unknown_percent", "category", "rows", "questions", "half_fitted_by_epoch", "never_fitted_percent")
    return Table(name="fit_times", columns=(*columns, "low", "high", "right_at_the_end_percent"), rows=tuple(rows))


def survival_curve_table(data: StudyData) -> Table:
    """Every point of every curve."""
    rows: list[tuple[CellValue, ...]] = []
    for share, _, curve in _all_curves(data):
        for epoch, *values in zip(curve.epochs.tolist(), curve.unfitted_share, curve.low, curve.high, strict=True):
            shown = (None if math.isnan(value) else round(100 * float(value), 3) for value in values)
            rows.append((round(100 * share, 2), curve.category, epoch, *shown))
    columns = ("unknown_percent", "category", "epoch", "not_fitted_percent", "low", "high")
    return Table(name="fit_curve_numbers", columns=columns, rows=tuple(rows))


def format_ratio(ratio: HazardRatio) -> str:
    """A ratio with its 95 % interval, for people."""
    return f"{ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f})"


def require_ratio(data: StudyData, ratios: Ratios) -> None:
    """See that at least one share of Unknown rows gives a ratio.

    Raises:
        NotTestable: none does; it says why for each.
    """
    data.sweep_variants(min_shares=1)
    if not any(isinstance(one, HazardRatio) for one in ratios.values()):
        raise InsufficientDataError("; ".join(dict.fromkeys(map(str, ratios.values()))))


def format_p_value(value: float) -> str:
    """A p value for people.

    >>> format_p_value(0.03), format_p_value(1e-9)
    ('0.030', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _log_rank_cell(data: StudyData, name: str) -> str | None:
    """None where a seed has no row of one of the categories."""
    pairs = {(pair.first, pair.second): pair for pair in log_rank_tests(select_runs(data.time_to_fit, name))}
    pair = pairs.get((WEAKLY, UNKNOWN))
    return None if pair is None else format_p_value(pair.p_value)


def _all_curves(data: StudyData) -> list[tuple[float, str, SurvivalCurve]]:
    found = []
    for share, name in data.sweep_variants(min_shares=1):
        found += [(share, name, curve) for curve in survival_curves(pool_runs(select_runs(data.time_to_fit, name)))]
    return found


def _never_fitted_cell(data: StudyData, name: str) -> str | None:
    for curve in survival_curves(pool_runs(select_runs(data.time_to_fit, name))):
        if curve.category == UNKNOWN:
            never_fitted, low, high = (100 * value for value in curve.never_fitted)
            return f"{never_fitted:.1f} ({low:.1f} to {high:.1f})"
    return None


def _pair_row(rows: TimeToFit, pair: LogRankTest) -> tuple[CellValue, ...]:
    ratio, why = None, ""
    try:
        ratio = format_ratio(hazard_ratio(rows, pair.first, pair.second))
    except InsufficientDataError as reason:
        why = str(reason)
    return (pair.first, pair.second, ratio, format_p_value(pair.p_value), format_p_value(pair.p_adjusted), why)
