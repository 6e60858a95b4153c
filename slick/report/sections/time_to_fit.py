"""Time to fit: how many epochs the model needs to answer a training row correctly, by category.

Source: Hier and Obafemi-Ajayi 2026, arXiv:2601.18468 (hazard ratio); arXiv:2604.10079 (rows that are never fitted).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from slick.errors import StudyError
from slick.formatting import format_percent
from slick.report.charts import CATEGORY_COLOURS, MUTED, VERMILLION, set_epoch_axis, set_share_axis
from slick.report.data import Run, StudyData, Variant
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import (
    CONVERGENCE,
    InsufficientDataError,
    format_with_interval,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics import hazard
from slick.report.tables import Row, Table
from slick.storage import Folder
from slick.study_files import read_run_rows
from slick.types import Category

ROWS_FILE = "rows.parquet"
PUBLISHED_RATIO = 2.6
"""Hazard ratio of WeaklyKnown against Unknown rows in Hier and Obafemi-Ajayi 2026, arXiv:2601.18468."""

WEAKLY, UNKNOWN = str(Category.WEAKLY_KNOWN), str(Category.UNKNOWN)
Ratios = Mapping[str, hazard.HazardRatio | InsufficientDataError]
"""Variant -> hazard ratio of WeaklyKnown against Unknown rows, or the reason why there is none."""


@section("fit_times", title="Time to fit training rows", group=GROUP_EXTENSIONS, order=110, experiment="fit")
def time_to_fit_section(data: StudyData) -> SectionBody:
    """Kaplan-Meier curves and hazard ratios of the categories."""
    ratios = _hazard_ratios(data)
    result, *details = summary_sentences(data, ratios) or [""]
    return SectionBody(
        result=result,
        text=f"{''.join(f'{sentence} ' for sentence in details)}A row is fitted at the first epoch after which its "
        "question is answered correctly. The hazard ratio compares the probability that a row not fitted yet is "
        "fitted at an epoch, for WeaklyKnown against Unknown rows. Intervals are 95 %, clustered by question.",
        exhibits=(
            figure_exhibit(
                "Training rows not fitted yet, by epoch and category; 50 % of D is Unknown. Kaplan-Meier estimates "
                "with 95 % bands, which additional seeds do not narrow.",
                "fit_times",
                "Share of training rows not fitted yet, by epoch and category",
                lambda: survival_figure(pooled_rows(data, half_unknown_variant(data))),
            ),
            figure_exhibit(
                "Hazard ratio of WeaklyKnown against Unknown rows by share of Unknown rows, with 95 % intervals. "
                "Dotted: the value of Hier and Obafemi-Ajayi 2026 (arXiv:2601.18468).",
                "fit_ratio",
                "Hazard ratio of WeaklyKnown against Unknown rows, by share of Unknown rows",
                lambda: hazard_ratio_figure(data, ratios),
            ),
            table_exhibit(
                "WeaklyKnown against Unknown rows. Early and late: the ratio up to an epoch and after it; a single "
                "ratio is adequate only where they agree. Cox: continuous-time model with Efron's approximation for "
                "ties. p: log-rank test, the largest over the seeds. Never fitted: Unknown rows that no epoch fits "
                "(compare arXiv:2604.10079).",
                lambda: hazard_ratio_table(data, ratios),
            ),
            table_exhibit(
                "All pairs of categories where 50 % of D is Unknown; log-rank tests with Holm's correction.",
                lambda: category_pair_table(data),
            ),
            collapsed_table_exhibit(
                "Median time to fit by category, and rows that are never fitted.", lambda: fit_time_table(data)
            ),
            collapsed_table_exhibit("Data of the second figure.", lambda: hazard_ratio_numbers_table(data, ratios)),
            collapsed_table_exhibit("Data of the first figure, at every share.", lambda: survival_curve_table(data)),
        ),
    )


def summary_sentences(data: StudyData, ratios: Ratios) -> list[str]:
    """The hazard ratio and the share of never fitted rows at 50 % Unknown; empty without data."""
    pooled, _ = value_or_reason(lambda: pooled_rows(data, half_unknown_variant(data)))
    if pooled is None:
        return []
    curves = {curve.category: curve for curve in hazard.survival_curves(pooled)}
    sentences = []
    ratio = ratios.get(pooled.variant)
    if isinstance(ratio, hazard.HazardRatio):
        sentences.append(
            f"If 50 % of D is Unknown, WeaklyKnown rows are fitted at {format_ratio(ratio)} times the rate of Unknown "
            f"ones ({PUBLISHED_RATIO} in arXiv:2601.18468)."
        )
        if ratio.change is not None and ratio.change.p_value < 0.05:
            sentences.append(
                f"The ratio is not constant: {ratio.change.early:.1f} up to epoch {ratio.change.early_until_epoch}, "
                f"{ratio.change.late:.1f} after it."
            )
    if UNKNOWN in curves:
        share, low, high = (100 * value for value in curves[UNKNOWN].never_fitted)
        sentences.append(f"{format_with_interval(share, low, high, unit=' %')} of the Unknown rows are never fitted.")
    return sentences


def survival_figure(rows: hazard.TimeToFit) -> Callable[[Any], None]:
    """Kaplan-Meier curves, one line per category."""
    curves = hazard.survival_curves(rows)

    def plot(axes: Any) -> None:
        for curve in curves:
            colour, line = CATEGORY_COLOURS[Category(curve.category)]
            axes.fill_between(
                curve.epochs, 100 * curve.low, 100 * curve.high, step="post", color=colour, alpha=0.16, linewidth=0
            )
            axes.step(curve.epochs, 100 * curve.unfitted_share, line, where="post", color=colour, label=curve.category)
        axes.legend(loc="upper right", fontsize=11, handlelength=2.6)
        set_epoch_axis(axes, curves[0].epochs, room=False)
        axes.set_ylabel("Rows not fitted yet (%)")

    return plot


def hazard_ratio_figure(data: StudyData, ratios: Ratios) -> Callable[[Any], None]:
    """Hazard ratios with intervals against the share of Unknown rows, on a logarithmic axis."""
    require_ratio(data, ratios)
    sweep = data.sweep_variants()
    points = [(100 * share, ratio) for share, name in sweep if isinstance(ratio := ratios[name], hazard.HazardRatio)]

    def plot(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        x = [share for share, _ in points]
        values = [ratio.value for _, ratio in points]
        margins = [[ratio.value - ratio.low for _, ratio in points], [ratio.high - ratio.value for _, ratio in points]]
        axes.set_yscale("log")
        axes.errorbar(x, values, margins, color=VERMILLION, marker="o", elinewidth=1.4, capsize=3)
        for at, value in zip(x, values, strict=True):
            axes.annotate(f"{value:.1f}", (at, value), xytext=(6, 5), textcoords="offset points", fontsize=11)
        axes.axhline(1.0, color=MUTED, linewidth=1)
        axes.axhline(PUBLISHED_RATIO, color=MUTED, linewidth=1.4, linestyle=":")
        set_share_axis(axes, [100 * share for share, _ in sweep], room=False)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("Hazard ratio")

    return plot


def hazard_ratio_table(data: StudyData, ratios: Ratios) -> Table:
    """Hazard ratios and tests, one row per share of Unknown rows."""
    require_ratio(data, ratios)
    rows: list[Row] = []
    for share, name in data.sweep_variants():
        never_fitted, ratio = _never_fitted_cell(data, name), ratios[name]
        if isinstance(ratio, InsufficientDataError):
            rows.append((format_percent(share), *(None,) * 6, never_fitted))
            continue
        change = (
            (None, None)
            if ratio.change is None
            else (f"{ratio.change.early:.1f} (to epoch {ratio.change.early_until_epoch})", f"{ratio.change.late:.1f}")
        )
        cox = None if ratio.cox is None else f"{ratio.cox:.1f}"
        sizes = " + ".join(f"{size:,}" for size in ratio.num_questions)
        rows.append(
            (format_percent(share), sizes, format_ratio(ratio), *change, cox, _log_rank_cell(data, name), never_fitted)
        )
    columns = ("Unknown", "questions", "hazard ratio", "early", "late", "Cox", "p", "never fitted (%)")
    return Table(name="fit_ratio", columns=columns, rows=tuple(rows))


def hazard_ratio_numbers_table(data: StudyData, ratios: Ratios) -> Table:
    """The ratios as numbers, or the reason why there is none."""
    require_ratio(data, ratios)
    rows: list[Row] = []
    for share, name in data.sweep_variants():
        ratio = ratios[name]
        if isinstance(ratio, InsufficientDataError):
            rows.append((round(100 * share, 2), *(None,) * 8, str(ratio)))
            continue
        change = ratio.change
        change_values = (
            (None,) * 4 if change is None else (change.early_until_epoch, change.early, change.late, change.p_value)
        )
        values = (ratio.value, ratio.low, ratio.high, ratio.cox, *change_values)
        shown = (float(f"{value:.4g}") if isinstance(value, float) else value for value in values)
        rows.append((round(100 * share, 2), *shown, ""))
    columns = ("unknown_percent", "ratio", "low", "high", "cox", "early_to_epoch", "early", "late", "p_of_change")
    return Table(name="fit_ratio_numbers", columns=(*columns, "missing"), rows=tuple(rows))


def _never_fitted_cell(data: StudyData, name: str) -> str | None:
    for curve in hazard.survival_curves(pooled_rows(data, name)):
        if curve.category == UNKNOWN:
            share, low, high = (100 * value for value in curve.never_fitted)
            return format_with_interval(share, low, high)
    return None


def _log_rank_cell(data: StudyData, name: str) -> str | None:
    """p-value of the log-rank test; None if a seed has no row of one of the categories."""
    pairs = {
        (pair.first, pair.second): pair for pair in hazard.log_rank_tests(hazard.select_runs(times_to_fit(data), name))
    }
    pair = pairs.get((WEAKLY, UNKNOWN))
    return None if pair is None else format_p_value(pair.p_value)


def category_pair_table(data: StudyData) -> Table:
    """Ratio and test of each pair of categories at 50 % Unknown."""
    runs = hazard.select_runs(times_to_fit(data), half_unknown_variant(data))
    rows = tuple(_pair_row(hazard.pool_runs(runs), pair) for pair in hazard.log_rank_tests(runs))
    missing = any(row[-1] for row in rows)
    columns = ("fitted", "against", "hazard ratio", "p (log-rank)", "p (Holm)", "missing")
    return Table(
        name="fit_pairs",
        text_columns=frozenset({0, 1}),
        columns=columns if missing else columns[:-1],
        rows=rows if missing else tuple(row[:-1] for row in rows),
    )


def _pair_row(rows: hazard.TimeToFit, pair: hazard.LogRankTest) -> Row:
    ratio, reason = value_or_reason(hazard.hazard_ratio, rows, pair.first, pair.second)
    p_values = (format_p_value(pair.p_value), format_p_value(pair.p_adjusted))
    return (pair.first, pair.second, None if ratio is None else format_ratio(ratio), *p_values, reason)


def fit_time_table(data: StudyData) -> Table:
    """Median time to fit, share never fitted and share fitted at the end, by share and category."""
    rows: list[Row] = []
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
    """All points of all curves."""
    rows: list[Row] = []
    for share, _, curve in _all_curves(data):
        for epoch, *values in zip(curve.epochs.tolist(), curve.unfitted_share, curve.low, curve.high, strict=True):
            shown = (None if math.isnan(value) else round(100 * float(value), 3) for value in values)
            rows.append((round(100 * share, 2), curve.category, epoch, *shown))
    columns = ("unknown_percent", "category", "epoch", "not_fitted_percent", "low", "high")
    return Table(name="fit_curve_numbers", columns=columns, rows=tuple(rows))


def _all_curves(data: StudyData) -> list[tuple[float, str, hazard.SurvivalCurve]]:
    curves = []
    for share, name in data.sweep_variants(min_shares=1):
        curves += [(share, name, curve) for curve in hazard.survival_curves(pooled_rows(data, name))]
    return curves


def format_ratio(ratio: hazard.HazardRatio) -> str:
    """A ratio with its 95 % interval."""
    return format_with_interval(ratio.value, ratio.low, ratio.high)


def format_p_value(value: float) -> str:
    """A p-value with three decimals.

    >>> format_p_value(0.03), format_p_value(1e-9)
    ('0.030', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _hazard_ratios(data: StudyData) -> dict[str, hazard.HazardRatio | InsufficientDataError]:
    sweep, _ = value_or_reason(data.sweep_variants)
    ratios: dict[str, hazard.HazardRatio | InsufficientDataError] = {}
    for _, name in sweep or ():
        try:
            ratios[name] = hazard.hazard_ratio(pooled_rows(data, name), WEAKLY, UNKNOWN)
        except InsufficientDataError as reason:
            ratios[name] = reason
    return ratios


def require_ratio(data: StudyData, ratios: Ratios) -> None:
    """Require a ratio at one share of Unknown rows or more.

    Raises:
        InsufficientDataError: there is none; the message has the reasons.
    """
    data.sweep_variants(min_shares=1)
    if not any(isinstance(ratio, hazard.HazardRatio) for ratio in ratios.values()):
        raise InsufficientDataError("; ".join(dict.fromkeys(map(str, ratios.values()))))


def pooled_rows(data: StudyData, name: str) -> hazard.TimeToFit:
    """The rows of all runs of a variant."""
    return hazard.pool_runs(hazard.select_runs(times_to_fit(data), name))


def times_to_fit(data: StudyData) -> tuple[hazard.TimeToFit, ...]:
    """The time to fit of the training rows of the sweep's runs."""
    return data.load_cached(load_time_to_fit, (), data.runs, data.variants)


def load_time_to_fit(
    study: Folder, runs: Iterable[Run], variants: Mapping[str, Variant]
) -> tuple[hazard.TimeToFit, ...]:
    """Load the time to fit of the training rows of each run of the %Unknown sweep that has a rows.parquet.

    Raises:
        StudyError: a rows.parquet is malformed or inconsistent with its run.
    """
    rows_by_run = []
    for run in runs:
        folder = study.child("runs", run.run_id)
        if run.variant in variants and variants[run.variant].kind == "unknown" and folder.exists(ROWS_FILE):
            table = read_run_rows(folder, ["question_id", "split", "category", "first_fit_epoch"])
            rows_by_run.append(_time_to_fit(folder, run, table))
    return tuple(rows_by_run)


def _time_to_fit(folder: Folder, run: Run, table: pa.Table) -> hazard.TimeToFit:
    last = int(run.epochs[-1])
    train = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()], pa.bool_()))
    categories = train["category"].to_pylist()
    epochs = train["first_fit_epoch"].to_pylist()
    unexpected = sorted({str(name) for name in categories} - {str(category) for category in Category})
    late = sorted({epoch for epoch in epochs if epoch is not None and not 1 <= epoch <= last})
    if unexpected or late or not train.num_rows:
        problem = (
            f"categories {unexpected}"
            if unexpected
            else f"first_fit_epoch {late}"
            if late
            else "no rows of the train split"
        )
        raise StudyError(
            f"{folder.uri}/{ROWS_FILE} has {problem}; expected train rows of {', '.join(Category)} with a "
            f"first_fit_epoch from 1 to {last} or null; delete {folder.uri} and run the sweep again"
        )
    return hazard.TimeToFit(
        variant=run.variant,
        seeds=(run.seed,),
        last_epoch=last,
        question_ids=np.array(train["question_id"].to_pylist(), dtype=str),
        categories=np.array(categories, dtype=str),
        epochs=np.array([last if epoch is None else epoch for epoch in epochs], dtype=np.int64),
        fitted=np.array([epoch is not None for epoch in epochs], dtype=bool),
    )
