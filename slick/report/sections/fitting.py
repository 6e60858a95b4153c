"""Fitted Known and Unknown training rows by epoch (paper: figures 1, 4 and 6)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.report.charts import BLUE, CATEGORY_COLOURS, INK, MUTED, VERMILLION, label_line_ends, set_epoch_axis
from slick.report.data import StudyData
from slick.report.findings.fitting import first_epoch_reaching
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import ANY_KNOWN, EARLY_STOP, InsufficientDataError, value_or_reason
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, figure_exhibit
from slick.report.sections import section
from slick.report.tables import Row, Table
from slick.types import ALL_CATEGORIES, Category


@section("fitting", title="Fitting of Known and Unknown rows", group=GROUP_PAPER, order=30, experiment="fit")
def fitting_section(data: StudyData) -> SectionBody:
    """Fitted rows by epoch and category, and at early stop."""
    return SectionBody(
        text="A training row is fitted if the model answers its question correctly. Early stop is the epoch with the "
        "best dev accuracy.",
        result=fitting_sentence(data),
        exhibits=(
            figure_exhibit(
                "Fitted training rows and dev accuracy by epoch; 50 % of D is Unknown (paper: figure 1).",
                "fit_curves",
                "Known rows are fitted before Unknown rows; dev accuracy by epoch",
                lambda: fitted_rows_by_epoch(data),
            ),
            figure_exhibit(
                "Fitted training rows by epoch and category; 50 % of D is Unknown (paper: figure 6).",
                "category_curves",
                "Fitted training rows by epoch and category",
                lambda: category_curves(data),
            ),
            figure_exhibit(
                "Fitted and unfitted rows at early stop, in percent of D (paper: figure 4).",
                "early_stop_state",
                "Fitted and unfitted Known and Unknown rows at early stop",
                lambda: early_stop_state(data),
            ),
            collapsed_table_exhibit("Data of the last figure.", lambda: early_stop_table(data)),
        ),
    )


def fitting_sentence(data: StudyData) -> str:
    """When half of the Known and of the Unknown rows are fitted, and how many are at early stop; empty without data."""
    return value_or_reason(_fitting_sentence, data)[0] or ""


def _fitting_sentence(data: StudyData) -> str:
    name = half_unknown_variant(data)
    known, unknown = (
        first_epoch_reaching(*data.mean_curve(name, "train", part)) for part in (ANY_KNOWN, str(Category.UNKNOWN))
    )
    at_stop = [data.accuracy(name, EARLY_STOP, "train", part).value for part in (ANY_KNOWN, str(Category.UNKNOWN))]
    when = [f"at epoch {epoch}" if epoch is not None else "in no epoch" for epoch in (known, unknown)]
    return (
        f"If 50 % of D is Unknown, half of the Known rows are fitted {when[0]} and half of the Unknown rows {when[1]}; "
        f"at early stop, {at_stop[0]:.0f} % of the Known and {at_stop[1]:.0f} % of the Unknown rows are fitted."
    )


def fitted_rows_by_epoch(data: StudyData) -> Callable[[Any], None]:
    """Known and Unknown training rows fitted, and dev accuracy, by epoch, for the 50 % variant (paper: figure 1)."""
    name = half_unknown_variant(data)
    curves = {
        "Known, train": (*data.mean_curve(name, "train", ANY_KNOWN), BLUE, "-"),
        "Unknown, train": (*data.mean_curve(name, "train", str(Category.UNKNOWN)), VERMILLION, "-"),
        "dev": (*data.mean_curve(name, "dev"), INK, "--"),
    }
    early = data.mean_epoch(name, EARLY_STOP)

    def plot(axes: Any) -> None:
        labels = []
        for label, (epochs, values, colour, line) in curves.items():
            measured = np.isfinite(values)
            axes.plot(epochs[measured], values[measured], line, color=colour, marker="o", markersize=3)
            labels.append((float(values[measured][-1]), label, colour))
        axes.axvline(early, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(
            "early stop",
            (early, 101),
            ha="left",
            va="bottom",
            fontsize=11,
            color=MUTED,
            xytext=(3, 0),
            textcoords="offset points",
            annotation_clip=False,
        )
        label_line_ends(axes, float(next(iter(curves.values()))[0][-1]), labels)
        set_epoch_axis(axes, next(iter(curves.values()))[0])

    return plot


def category_curves(data: StudyData) -> Callable[[Any], None]:
    """Training rows fitted by epoch and category, for the 50 % variant (paper: figure 6)."""
    name = half_unknown_variant(data)
    curves = {
        category: data.mean_curve(name, "train", str(category))
        for category in Category
        if any(("train", str(category)) in run.accuracy for run in data.runs_for(name))
    }
    if len(curves) < 2:
        raise InsufficientDataError(f"the runs of {name} have no train accuracy by category")

    def plot(axes: Any) -> None:
        for category, (epochs, values) in curves.items():
            colour, line = CATEGORY_COLOURS[category]
            axes.plot(epochs, values, line, color=colour, label=str(category))
        axes.legend(loc="lower right", fontsize=11, handlelength=2.6)
        set_epoch_axis(axes, next(iter(curves.values()))[0], room=False)

    return plot


def early_stop_state(data: StudyData) -> Callable[[Any], None]:
    """Stacked bars of the fitted and unfitted Known and Unknown rows at early stop (paper: figure 4)."""
    sweep = data.sweep_variants("unknown", min_shares=1)
    stacks = [early_stop_composition(data, share, name) for share, name in sweep]

    def plot(axes: Any) -> None:
        x = np.arange(len(sweep))
        bottom = np.zeros(len(sweep))
        parts = (
            ("Known, fitted", BLUE, ""),
            ("Known, not fitted", "#b5d3e7", "///"),
            ("Unknown, fitted", VERMILLION, ""),
            ("Unknown, not fitted", "#f4cdb2", "\\\\\\"),
        )
        for i, (label, colour, hatch) in enumerate(parts):
            height = np.array([stack[i] for stack in stacks])
            axes.bar(
                x, height, 0.74, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label
            )
            for at, start, size in zip(x, bottom, height, strict=True):
                if size >= 8 and not hatch:
                    axes.annotate(
                        f"{size:.0f}", (at, start + size / 2), ha="center", va="center", color="white", fontsize=10.5
                    )
            bottom += height
        axes.set_xticks(x, [f"{100 * share:.0f}" for share, _ in sweep])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 100)
        axes.set_xlabel("Unknown rows in D (%)")
        axes.set_ylabel("Rows of D at early stop (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot


def early_stop_composition(data: StudyData, share: float, name: str) -> tuple[float, float, float, float]:
    """Percent of D at early stop: Known fitted, Known not fitted, Unknown fitted, Unknown not fitted."""
    num = data.runs_for(name)[0].num
    unknown_share = (
        num.get(("train", str(Category.UNKNOWN)), 0) / num["train", ALL_CATEGORIES]
        if ("train", ALL_CATEGORIES) in num
        else share
    )
    known = data.accuracy(name, EARLY_STOP, "train", ANY_KNOWN).value / 100 if unknown_share < 1 else 0.0
    unknown = data.accuracy(name, EARLY_STOP, "train", str(Category.UNKNOWN)).value / 100 if unknown_share > 0 else 0.0
    composition = (
        (1 - unknown_share) * known,
        (1 - unknown_share) * (1 - known),
        unknown_share * unknown,
        unknown_share * (1 - unknown),
    )
    return tuple(100 * part for part in composition)  # type: ignore[return-value]


def early_stop_table(data: StudyData) -> Table:
    """Fitted and unfitted rows at early stop (figure 4)."""
    rows: list[Row] = [
        (
            name,
            round(100 * share, 2),
            round(data.mean_epoch(name, EARLY_STOP), 1),
            *(round(part, 2) for part in early_stop_composition(data, share, name)),
        )
        for share, name in data.sweep_variants("unknown", min_shares=1)
    ]
    columns = (
        "variant",
        "unknown_percent",
        "epoch",
        "known_fitted",
        "known_not_fitted",
        "unknown_fitted",
        "unknown_not_fitted",
    )
    return Table(name="early_stop_state", columns=columns, rows=tuple(rows))
