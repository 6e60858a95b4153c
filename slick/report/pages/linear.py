"""The section on the linear model: its coefficients, whether it fits, and what other choices of points give."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import tenths
from slick.analysis.statistics.model_checks import EPOCHS, SPLITS, Checks, Choice, check, choices, fit_words
from slick.analysis.statistics.regression import TERMS, fit
from slick.analysis.terms import NotTestable
from slick.report.page import PAPER, Section, drawn, numbers, wide
from slick.report.style import MUTED
from slick.report.tables import Table, Value

MARKERS = "osD^vP*X<>"
"""Shares are told by shape as well as by colour."""


def section(data: StudyData) -> Section:
    """The section; without a sweep it says what is missing."""
    return Section(
        name="linear",
        group=PAPER,
        title="What one fitted row does",
        text="Accuracy = b0 + b_kn · N_kn / |D| + b_unk · N_unk / |D| in points, where N counts fitted Known and "
        "Unknown training rows; one point an epoch of each run of the sweep (paper: table 1). Intervals are 95 %, "
        f"clustered by fine-tuning set.{''.join(_words(data))}",
        exhibits=(
            wide("Linear model of test accuracy.", lambda: linear_table(data)),
            *(
                drawn(
                    f"What the model leaves over, {label}: residuals against fitted values, by share of Unknown rows.",
                    f"linear_residuals_{split}",
                    f"Residuals of the linear model against its fitted values, {label}",
                    lambda split=split: residual_plot(check(data, split)),  # type: ignore[misc]
                )
                for split, label in SPLITS.items()
            ),
            numbers(
                "The same model under other choices of points, which the paper leaves open: which epochs, and whether "
                "the runs of D_Known count; with p of RESET (shape), of Breusch-Pagan (spread), and Durbin-Watson.",
                lambda: choices_table(data),
            ),
        ),
    )


def linear_table(data: StudyData) -> Table:
    """The linear model in and out of distribution (table 1)."""
    rows: list[tuple[Value, ...]] = []
    for split, label in SPLITS.items():
        try:
            model = fit(data, split)
        except NotTestable:
            if split == "test":
                raise
            continue
        for i, term in enumerate(TERMS):
            ends = (round(part[i], 2) for part in (model.coefficients, model.low, model.high))
            fitted = (round(model.r_squared, 3), model.num_points, model.num_runs)
            rows.append((label, term, *ends, float(f"{model.p_values[i]:.2g}"), *fitted))
    columns = ("test set", "term", "estimate", "low", "high", "p", "R2", "epochs", "runs")
    return Table(name="linear_model", columns=columns, rows=tuple(rows))


def choices_table(data: StudyData) -> Table:
    """One row a choice of points, in and out of distribution.

    Raises:
        NotTestable: none of them can be fitted.
    """
    found = list(choices(data))
    if all(one.fit is None for one in found):
        raise NotTestable(found[0].missing)
    columns = ("test set", "epochs", "D_Known runs", "b0", "b_kn (95 %)", "b_unk (95 %)", "R2", "shape p", "spread p",
               "Durbin-Watson", "points", "runs")  # fmt: skip
    rows = tuple(map(_choice_row, found))
    text = frozenset({1, len(columns)})
    return Table(name="linear_model_choices", columns=(*columns, "missing"), rows=rows, text_columns=text)


def _choice_row(one: Choice) -> tuple[Value, ...]:
    name = (
        "ID" if one.split == "test" else "OOD",
        EPOCHS[one.points.epochs],
        "with" if one.points.with_known else "without",
    )
    if one.fit is None or one.checks is None:
        return (*name, *(None,) * 9, one.missing)
    intercept, *ends = zip(one.fit.coefficients, one.fit.low, one.fit.high, strict=True)
    terms = (f"{tenths(value):+.1f} ({tenths(low):+.1f} to {tenths(high):+.1f})" for value, low, high in ends)
    tests = (float(f"{p:.2g}") for p in (one.checks.shape_p, one.checks.spread_p))
    serial = None if one.checks.serial is None else round(one.checks.serial, 2)
    fitted = (round(one.fit.r_squared, 3), *tests, serial, one.fit.num_points, one.fit.num_runs, "")
    return (*name, tenths(intercept[0]), *terms, *fitted)


def residual_plot(checks: Checks) -> Callable[[Any], None]:
    """Residuals against fitted values, one marker and colour a share of Unknown rows."""

    def plot(axes: Any) -> None:
        import matplotlib as mpl

        shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(checks.offsets)))
        for i, (share, shade) in enumerate(zip(checks.offsets, shades, strict=True)):
            mask = checks.shares_P == share
            axes.scatter(
                checks.fitted_P[mask], checks.residuals_P[mask], s=22, color=shade, marker=MARKERS[i % len(MARKERS)],
                alpha=0.8, linewidth=0, label=f"{100 * share:.0f} %",
            )  # fmt: skip
        axes.axhline(0.0, color=MUTED, linewidth=1)
        axes.set_xlabel("Fitted accuracy (%)")
        axes.set_ylabel("Residual (points)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=4, fontsize=11, handletextpad=0.1,
                    columnspacing=1.0)  # fmt: skip

    return plot


def _words(data: StudyData) -> list[str]:
    """A sentence for each test set that was measured."""
    found = []
    for split, label in SPLITS.items():
        try:
            found.append(f" {label.capitalize()}, {fit_words(check(data, split))}.")
        except NotTestable:
            continue
    return found
