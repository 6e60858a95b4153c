"""The paper's linear model of test accuracy: coefficients, residuals, and other selections of points."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from slick.report.charts import MUTED
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, format_with_interval, round1, value_or_reason
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_figure_exhibit, collapsed_table_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.sections.time_to_fit import format_p_value
from slick.report.statistics import regression
from slick.report.tables import Row, Table

SHARE_MARKERS = "osD^vP*X<>"
"""Shares of Unknown rows differ by marker as well as by colour."""


@section("linear", title="Linear model of test accuracy", group=GROUP_PAPER, order=50, experiment="linear_model")
def linear_model_section(data: StudyData) -> SectionBody:
    """Coefficients of the linear model and checks of its fit."""
    return SectionBody(
        text="Accuracy = b0 + b_kn · N_kn / |D| + b_unk · N_unk / |D| in points, where N_kn and N_unk are the numbers "
        "of fitted Known and Unknown training rows. There is one point per epoch and run of the sweep (paper: table "
        f"1){_untested_epochs_clause(data)}. Intervals are 95 %, clustered by fine-tuning "
        f"set.{''.join(_fit_sentences(data))}",
        result=" ".join(coefficient_sentences(data)),
        exhibits=(
            table_exhibit("Coefficients of the linear model.", lambda: linear_model_table(data)),
            *(
                collapsed_figure_exhibit(
                    f"Residuals against fitted values, {label}, by share of Unknown rows.",
                    f"linear_residuals_{split}",
                    f"Residuals of the linear model against its fitted values, {label}",
                    lambda split=split: residual_plot(regression.check_residuals(data, split)),  # type: ignore[misc]
                )
                for split, label in regression.SPLIT_LABELS.items()
            ),
            collapsed_table_exhibit(
                "The same model for other selections of points, which the paper does not specify: which epochs, and "
                "with or without the runs of D_Known. Shape p: RESET; spread p: Breusch-Pagan.",
                lambda: point_selections_table(data),
            ),
        ),
    )


def _untested_epochs_clause(data: StudyData) -> str:
    """Which epochs have no points; empty if all have."""
    if all(run.is_tested_every_epoch for run in data.runs):
        return ""
    return ", without epochs at which the test questions were not evaluated"


PAPER_UNKNOWN_COEFFICIENTS = {"test": -8.3, "ood": -3.0}
"""The paper's b_unk by test set, points (table 1)."""


def coefficient_sentences(data: StudyData, splits: Sequence[str] = tuple(regression.SPLIT_LABELS)) -> list[str]:
    """The effect of fitted Unknown and Known rows on each test set, and whether it has the paper's sign."""
    sentences = []
    for split in splits:
        model, _ = value_or_reason(regression.fit_linear_model, data, split)
        if model is None:
            continue
        terms = dict(zip(regression.TERMS, zip(model.coefficients, model.p_values, strict=True), strict=True))
        (known, known_p), (unknown, unknown_p) = terms["b_kn"], terms["b_unk"]
        paper = PAPER_UNKNOWN_COEFFICIENTS[split]
        significant = unknown_p < 0.05
        verdict = (
            "no significant effect; the paper has"
            if not significant
            else "as in the paper, which has"
            if unknown * paper > 0
            else "the opposite of the paper, which has"
        )
        sentences.append(
            f"{regression.SPLIT_LABELS[split].capitalize()}, b_unk is {unknown:+.1f} points "
            f"({_p_text(unknown_p)}): {verdict} {paper:+.1f}; b_kn is {known:+.1f} ({_p_text(known_p)})."
        )
    return sentences


def _p_text(p_value: float) -> str:
    text = format_p_value(p_value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _fit_sentences(data: StudyData) -> list[str]:
    """One sentence per test set."""
    sentences = []
    for split, label in regression.SPLIT_LABELS.items():
        checks, _ = value_or_reason(regression.check_residuals, data, split)
        if checks is not None:
            sentences.append(f" {label.capitalize()}, {regression.describe_fit(checks)}.")
    return sentences


def residual_plot(checks: regression.ResidualChecks) -> Callable[[Any], None]:
    """Residuals against fitted values, with one marker and colour per share of Unknown rows."""

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


def linear_model_table(data: StudyData) -> Table:
    """Coefficients in and out of distribution (table 1)."""
    rows: list[Row] = []
    for split, label in regression.SPLIT_LABELS.items():
        try:
            model = regression.fit_linear_model(data, split)
        except InsufficientDataError:
            if split == "test":
                raise
            continue
        for i, term in enumerate(regression.TERMS):
            ends = (round(part[i], 2) for part in (model.coefficients, model.low, model.high))
            fitted = (round(model.r_squared, 3), model.num_points, model.num_runs)
            rows.append((label, term, *ends, float(f"{model.p_values[i]:.2g}"), *fitted))
    columns = ("test set", "term", "estimate", "low", "high", "p", "R2", "epochs", "runs")
    return Table(name="linear_model", columns=columns, rows=tuple(rows))


def point_selections_table(data: StudyData) -> Table:
    """The fit for each selection of points, in and out of distribution."""
    fits = list(regression.fit_all_selections(data))
    if all(selection.fit is None for selection in fits):
        raise InsufficientDataError(fits[0].missing_reason)
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
    rows = tuple(map(_selection_row, fits))
    text = frozenset({1, len(columns)})
    return Table(name="linear_model_choices", columns=(*columns, "missing"), rows=rows, text_columns=text)


def _selection_row(selection: regression.SelectionFit) -> Row:
    name = (
        "ID" if selection.split == "test" else "OOD",
        regression.EPOCH_SELECTION_LABELS[selection.points.epochs],
        "with" if selection.points.include_known else "without",
    )
    if selection.fit is None or selection.checks is None:
        return (*name, *(None,) * 9, selection.missing_reason)
    intercept, *slopes = zip(selection.fit.coefficients, selection.fit.low, selection.fit.high, strict=True)
    terms = (format_with_interval(value, low, high, "+.1f") for value, low, high in slopes)
    tests = (float(f"{p:.2g}") for p in (selection.checks.reset_p, selection.checks.breusch_pagan_p))
    durbin_watson = None if selection.checks.durbin_watson is None else round(selection.checks.durbin_watson, 2)
    fitted = (
        round(selection.fit.r_squared, 3),
        *tests,
        durbin_watson,
        selection.fit.num_points,
        selection.fit.num_runs,
        "",
    )
    return (*name, round1(intercept[0]), *terms, *fitted)
