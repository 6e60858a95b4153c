"""The rows.parquet of finished runs, as the epochs at which training rows were fitted."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from slick.errors import StudyError
from slick.report.charts import CATEGORY_COLOURS, MUTED, VERMILLION, set_epoch_axis, set_share_axis
from slick.report.data import Run, StudyData, Variant
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import CONVERGENCE, InsufficientDataError, format_percent
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.hazard import (
    HazardRatio,
    LogRankTest,
    SurvivalCurve,
    TimeToFit,
    hazard_ratio,
    log_rank_tests,
    pool_runs,
    select_runs,
    survival_curves,
)
from slick.report.tables import CellValue, Table
from slick.storage import Folder
from slick.study_files import read_run_rows
from slick.types import Category

ROWS_FILE = "rows.parquet"

Ratios = Mapping[str, HazardRatio | InsufficientDataError]
"""Variant to its ratio of WeaklyKnown against Unknown rows, or why there is none."""


def load_time_to_fit(study: Folder, runs: Iterable[Run], variants: Mapping[str, Variant]) -> tuple[TimeToFit, ...]:
    """When the training rows of each run of the %Unknown sweep were fitted; one without rows.parquet is left out.

    Raises:
        StudyError: a rows.parquet is broken, or contradicts its run.
    """
    found = []
    for run in runs:
        folder = study.child("runs", run.run_id)
        if run.variant in variants and variants[run.variant].kind == "unknown" and folder.exists(ROWS_FILE):
            table = read_run_rows(folder, ["question_id", "split", "category", "first_fit_epoch"])
            found.append(_time_to_fit(folder, run, table))
    return tuple(found)


def times_to_fit(data: StudyData) -> tuple[TimeToFit, ...]:
    """When the training rows of the sweep's runs were fitted."""
    return data.part(load_time_to_fit, (), data.runs, data.variants)


def _time_to_fit(folder: Folder, run: Run, table: pa.Table) -> TimeToFit:
    last = int(run.epochs[-1])
    train = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()], pa.bool_()))
    categories = train["category"].to_pylist()
    epochs = train["first_fit_epoch"].to_pylist()
    strange = sorted({str(name) for name in categories} - {str(category) for category in Category})
    late = sorted({epoch for epoch in epochs if epoch is not None and not 1 <= epoch <= last})
    if strange or late or not train.num_rows:
        what = (
            f"categories {strange}" if strange else f"first_fit_epoch {late}" if late else "no rows of the train split"
        )
        raise StudyError(
            f"{folder.uri}/{ROWS_FILE} has {what}; wanted train rows of {', '.join(Category)}, first right at an epoch "
            f"from 1 to {last} or none; delete {folder.uri} and run the sweep again"
        )
    return TimeToFit(
        variant=run.variant,
        seeds=(run.seed,),
        last_epoch=last,
        question_ids=np.array(train["question_id"].to_pylist(), dtype=str),
        categories=np.array(categories, dtype=str),
        epochs=np.array([last if epoch is None else epoch for epoch in epochs], dtype=np.int64),
        fitted=np.array([epoch is not None for epoch in epochs], dtype=bool),
    )


PUBLISHED_RATIO = 2.6
"""WeaklyKnown against Unknown rows in Hier and Obafemi-Ajayi 2026, arXiv:2601.18468."""


@section("fit_times", title="How long a row takes to be fitted", group=GROUP_EXTENSIONS, order=110, experiment="fit")
def time_to_fit_section(data: StudyData) -> SectionBody:
    """The section; without rows.parquet of the sweep's runs it says what is missing."""
    ratios = _hazard_ratios(data)
    return SectionBody(
        text=f"{summary_text(data, ratios)}A row is fitted at the first epoch after which its question is answered "
        f"right; "
        "until then it waits. The hazard ratio is how many times as likely a waiting WeaklyKnown row is to be fitted "
        "at any epoch as a waiting Unknown one; intervals are 95 %, clustered by question.",
        exhibits=(
            figure_exhibit(
                "Training rows not fitted yet, by epoch and category; half of D is Unknown. Kaplan-Meier estimates "
                "with 95 % bands, no narrower for having several seeds.",
                "fit_times",
                "Share of training rows not fitted yet, by epoch and category",
                lambda: survival_figure(pool_runs(select_runs(times_to_fit(data), half_unknown_variant(data)))),
            ),
            figure_exhibit(
                "Hazard ratio of WeaklyKnown against Unknown rows by share of Unknown rows, with 95 % intervals; "
                "dotted, the value of Hier and Obafemi-Ajayi 2026 (arXiv:2601.18468).",
                "fit_ratio",
                "How many times as fast WeaklyKnown rows are fitted as Unknown ones, by share of Unknown rows",
                lambda: hazard_ratio_figure(data, ratios),
            ),
            table_exhibit(
                "WeaklyKnown against Unknown rows. Early and late: the ratio up to an epoch and after it; a single one "
                "stands for both where they agree. Cox: the same by a model in continuous time, ties by Efron's "
                "approximation. p: log-rank test, the largest among the seeds. Never fitted: Unknown rows that no "
                "epoch fits (compare arXiv:2604.10079).",
                lambda: hazard_ratio_table(data, ratios),
            ),
            table_exhibit(
                "All pairs of categories where half of D is Unknown; log-rank tests, corrected for their number "
                "(Holm).",
                lambda: category_pair_table(data),
            ),
            collapsed_table_exhibit(
                "When half of a category is fitted, and what never is.", lambda: fit_time_table(data)
            ),
            collapsed_table_exhibit(
                "All numbers of the second figure.", lambda: hazard_ratio_numbers_table(data, ratios)
            ),
            collapsed_table_exhibit(
                "All numbers of the first figure, at every share.", lambda: survival_curve_table(data)
            ),
        ),
    )


def summary_text(data: StudyData, ratios: Ratios) -> str:
    """What was found where half of D is Unknown, in up to three sentences; nothing where nothing can be told."""
    try:
        name = half_unknown_variant(data)
        curves = {curve.category: curve for curve in survival_curves(pool_runs(select_runs(times_to_fit(data), name)))}
    except InsufficientDataError:
        return ""
    said = []
    ratio = ratios.get(name)
    if isinstance(ratio, HazardRatio):
        said.append(
            f"Where half of D is Unknown, WeaklyKnown rows are fitted at {format_ratio(ratio)} times the rate of "
            f"Unknown ones ({PUBLISHED_RATIO} in arXiv:2601.18468)."
        )
        if ratio.change is not None and ratio.change.p_value < 0.05:
            said.append(
                f"The ratio is not constant: {ratio.change.early:.1f} up to epoch {ratio.change.early_until_epoch}, "
                f"{ratio.change.late:.1f} after it."
            )
    if UNKNOWN in curves:
        never_fitted, low, high = (100 * value for value in curves[UNKNOWN].never_fitted)
        said.append(f"{never_fitted:.1f} % ({low:.1f} to {high:.1f}) of the Unknown rows are never fitted.")
    return "".join(f"{sentence} " for sentence in said)


def survival_figure(rows: TimeToFit) -> Callable[[Any], None]:
    """Steps down from 100 %, one line a category."""
    curves = survival_curves(rows)

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
    """Ratios on a logarithmic axis, since a half and a double are as far from 1.

    Raises:
        NotTestable: no share of Unknown rows gives a ratio.
    """
    require_ratio(data, ratios)
    sweep = data.sweep_variants()
    found = [(100 * share, one) for share, name in sweep if isinstance(one := ratios[name], HazardRatio)]

    def plot(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        x = [share for share, _ in found]
        values = [one.value for _, one in found]
        reach = [[one.value - one.low for _, one in found], [one.high - one.value for _, one in found]]
        axes.set_yscale("log")
        axes.errorbar(x, values, reach, color=VERMILLION, marker="o", elinewidth=1.4, capsize=3)
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


def _hazard_ratios(data: StudyData) -> dict[str, HazardRatio | InsufficientDataError]:
    found: dict[str, HazardRatio | InsufficientDataError] = {}
    try:
        sweep = data.sweep_variants()
    except InsufficientDataError:
        return found
    for _, name in sweep:
        try:
            found[name] = hazard_ratio(pool_runs(select_runs(times_to_fit(data), name)), WEAKLY, UNKNOWN)
        except InsufficientDataError as reason:
            found[name] = reason
    return found


WEAKLY, UNKNOWN = str(Category.WEAKLY_KNOWN), str(Category.UNKNOWN)


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
    runs = select_runs(times_to_fit(data), half_unknown_variant(data))
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
    pairs = {(pair.first, pair.second): pair for pair in log_rank_tests(select_runs(times_to_fit(data), name))}
    pair = pairs.get((WEAKLY, UNKNOWN))
    return None if pair is None else format_p_value(pair.p_value)


def _all_curves(data: StudyData) -> list[tuple[float, str, SurvivalCurve]]:
    found = []
    for share, name in data.sweep_variants(min_shares=1):
        found += [(share, name, curve) for curve in survival_curves(pool_runs(select_runs(times_to_fit(data), name)))]
    return found


def _never_fitted_cell(data: StudyData, name: str) -> str | None:
    for curve in survival_curves(pool_runs(select_runs(times_to_fit(data), name))):
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
