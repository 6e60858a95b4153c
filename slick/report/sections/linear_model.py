"""The section on the linear model: its coefficients, whether it fits, and what other choices of points give."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.report.charts import MUTED
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, round1
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.regression import (
    EPOCH_SELECTION_LABELS,
    SPLIT_LABELS,
    TERMS,
    ResidualChecks,
    SelectionFit,
    check_residuals,
    describe_fit,
    fit_all_selections,
    fit_linear_model,
)
from slick.report.tables import CellValue, Table

SHARE_MARKERS = "osD^vP*X<>"
"""Shares are told by shape as well as by colour."""


@section("linear", title="What one fitted row does", group=GROUP_PAPER, order=50, experiment="linear_model")
def linear_model_section(data: StudyData) -> SectionBody:
    """The section; without a sweep it says what is missing."""
    return SectionBody(
        text="Accuracy = b0 + b_kn · N_kn / |D| + b_unk · N_unk / |D| in points, where N counts fitted Known and "
        "Unknown training rows; one point an epoch of each run of the sweep (paper: table 1). Intervals are 95 %, "
        f"clustered by fine-tuning set.{''.join(_fit_sentences(data))}",
        exhibits=(
            table_exhibit("Linear model of test accuracy.", lambda: linear_model_table(data)),
            *(
                figure_exhibit(
                    f"What the model leaves over, {label}: residuals against fitted values, by share of Unknown rows.",
                    f"linear_residuals_{split}",
                    f"Residuals of the linear model against its fitted values, {label}",
                    lambda split=split: residual_plot(check_residuals(data, split)),  # type: ignore[misc]
                )
                for split, label in SPLIT_LABELS.items()
            ),
            collapsed_table_exhibit(
                "The same model under other choices of points, which the paper leaves open: which epochs, and whether "
                "the runs of D_Known count; with p of RESET (shape), of Breusch-Pagan (spread), and Durbin-Watson.",
                lambda: point_selections_table(data),
            ),
        ),
    )


def linear_model_table(data: StudyData) -> Table:
    """The linear model in and out of distribution (table 1)."""
    rows: list[tuple[CellValue, ...]] = []
    for split, label in SPLIT_LABELS.items():
        try:
            model = fit_linear_model(data, split)
        except InsufficientDataError:
            if split == "test":
                raise
            continue
        for i, term in enumerate(TERMS):
            ends = (round(part[i], 2) for part in (model.coefficients, model.low, model.high))
            fitted = (round(model.r_squared, 3), model.num_points, model.num_runs)
            rows.append((label, term, *ends, float(f"{model.p_values[i]:.2g}"), *fitted))
    columns = ("test set", "term", "estimate", "low", "high", "p", "R2", "epochs", "runs")
    return Table(name="linear_model", columns=columns, rows=tuple(rows))


def point_selections_table(data: StudyData) -> Table:
    """One row a choice of points, in and out of distribution.

    Raises:
        NotTestable: none of them can be fitted.
    """
    found = list(fit_all_selections(data))
    if all(one.fit is None for one in found):
        raise InsufficientDataError(found[0].missing)
    columns = (
        "test set",
        "epochs",
        "D_Known runs",
        "b0",
        "b_kn (95 %)",
        "b_unk (95 %)",
        "R2",
        "shape p",
        "spread p",
        "Durbin-Watson",
        "points",
        "runs",
    )
    rows = tuple(map(_selection_row, found))
    text = frozenset({1, len(columns)})
    return Table(name="linear_model_choices", columns=(*columns, "missing"), rows=rows, text_columns=text)


def _selection_row(one: SelectionFit) -> tuple[CellValue, ...]:
    name = (
        "ID" if one.split == "test" else "OOD",
        EPOCH_SELECTION_LABELS[one.points.epochs],
        "with" if one.points.include_known else "without",
    )
    if one.fit is None or one.checks is None:
        return (*name, *(None,) * 9, one.missing)
    intercept, *ends = zip(one.fit.coefficients, one.fit.low, one.fit.high, strict=True)
    terms = (f"{round1(value):+.1f} ({round1(low):+.1f} to {round1(high):+.1f})" for value, low, high in ends)
    tests = (float(f"{p:.2g}") for p in (one.checks.reset_p, one.checks.breusch_pagan_p))
    serial = None if one.checks.durbin_watson is None else round(one.checks.durbin_watson, 2)
    fitted = (round(one.fit.r_squared, 3), *tests, serial, one.fit.num_points, one.fit.num_runs, "")
    return (*name, round1(intercept[0]), *terms, *fitted)


def residual_plot(checks: ResidualChecks) -> Callable[[Any], None]:
    """Residuals against fitted values, one marker and colour a share of Unknown rows."""

    def plot(axes: Any) -> None:
        import matplotlib as mpl

        shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(checks.mean_residuals)))
        for i, (share, shade) in enumerate(zip(checks.mean_residuals, shades, strict=True)):
            mask = checks.shares_P == share
            axes.scatter(
                checks.fitted_P[mask],
                checks.residuals_P[mask],
                s=22,
                color=shade,
                marker=SHARE_MARKERS[i % len(SHARE_MARKERS)],
                alpha=0.8,
                linewidth=0,
                label=f"{100 * share:.0f} %",
            )
        axes.axhline(0.0, color=MUTED, linewidth=1)
        axes.set_xlabel("Fitted accuracy (%)")
        axes.set_ylabel("Residual (points)")
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=4, fontsize=11, handletextpad=0.1, columnspacing=1.0
        )

    return plot


def _fit_sentences(data: StudyData) -> list[str]:
    """A sentence for each test set that was measured."""
    found = []
    for split, label in SPLIT_LABELS.items():
        try:
            found.append(f" {label.capitalize()}, {describe_fit(check_residuals(data, split))}.")
        except InsufficientDataError:
            continue
    return found
