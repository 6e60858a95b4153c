"""The section on how long training rows wait until they are first answered right, and which never are."""

from collections.abc import Callable
from typing import Any

from slick.analysis.data import StudyData
from slick.analysis.findings.sweep import half_unknown_variant
from slick.analysis.fit_times import TimeToFit, pool_runs, select_runs, survival_curves
from slick.analysis.statistics.hazard import HazardRatio, hazard_ratio
from slick.analysis.terms import InsufficientDataError
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.pages import fit_tables
from slick.report.pages.fit_tables import UNKNOWN, WEAKLY, Ratios, format_ratio, require_ratio
from slick.report.style import MUTED, VERMILLION, set_epoch_axis, set_share_axis
from slick.types import Category

PUBLISHED_RATIO = 2.6
"""WeaklyKnown against Unknown rows in Hier and Obafemi-Ajayi 2026, arXiv:2601.18468."""


def time_to_fit_section(data: StudyData) -> Section:
    """The section; without rows.parquet of the sweep's runs it says what is missing."""
    ratios = _hazard_ratios(data)
    return Section(
        name="fit_times",
        title="How long a row takes to be fitted",
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
                lambda: survival_figure(pool_runs(select_runs(data.time_to_fit, half_unknown_variant(data)))),
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
                lambda: fit_tables.hazard_ratio_table(data, ratios),
            ),
            table_exhibit(
                "All pairs of categories where half of D is Unknown; log-rank tests, corrected for their number "
                "(Holm).",
                lambda: fit_tables.category_pair_table(data),
            ),
            collapsed_table_exhibit(
                "When half of a category is fitted, and what never is.", lambda: fit_tables.fit_time_table(data)
            ),
            collapsed_table_exhibit(
                "All numbers of the second figure.", lambda: fit_tables.hazard_ratio_numbers_table(data, ratios)
            ),
            collapsed_table_exhibit(
                "All numbers of the first figure, at every share.", lambda: fit_tables.survival_curve_table(data)
            ),
        ),
    )


def summary_text(data: StudyData, ratios: Ratios) -> str:
    """What was found where half of D is Unknown, in up to three sentences; nothing where nothing can be told."""
    try:
        name = half_unknown_variant(data)
        curves = {curve.category: curve for curve in survival_curves(pool_runs(select_runs(data.time_to_fit, name)))}
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
            found[name] = hazard_ratio(pool_runs(select_runs(data.time_to_fit, name)), WEAKLY, UNKNOWN)
        except InsufficientDataError as reason:
            found[name] = reason
    return found
