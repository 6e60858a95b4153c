"""The figures, drawn from `StudyData` in the style of `slick.report.style`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.effects import ResponseSurface
from slick.analysis.findings.fit import fitted_share
from slick.analysis.findings.sweep import half_unknown_variant, training_lengths
from slick.analysis.findings.verdict import checkpoint_label, round1
from slick.analysis.terms import ANY_KNOWN, CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    VERMILLION,
    label_line_ends,
    plot_with_error_band,
    set_epoch_axis,
    set_share_axis,
)
from slick.types import ALL_CATEGORIES, Category

CATEGORY_COLOURS = {
    Category.HIGHLY_KNOWN: (GREEN, "-"),
    Category.MAYBE_KNOWN: (BLUE, "--"),
    Category.WEAKLY_KNOWN: (ORANGE, "-."),
    Category.UNKNOWN: (VERMILLION, ":"),
}


def accuracy_by_share(data: StudyData, split: str) -> Callable[[Any], None]:
    """Test accuracy against the share of Unknown rows, one line a training length (paper: figures 3a and 7)."""
    sweep = data.sweep_variants("unknown", min_shares=2)
    x = [100 * share for share, _ in sweep]
    rows = {
        checkpoint: [data.accuracy(name, checkpoint, split) for _, name in sweep]
        for checkpoint in training_lengths(data)
    }

    def plot(axes: Any) -> None:
        inner = [checkpoint for checkpoint in rows if checkpoint not in (EARLY_STOP, CONVERGENCE)]
        labels = []
        for i, checkpoint in enumerate(inner):
            grey = str(round(0.62 - 0.27 * i / max(len(inner) - 1, 1), 2))
            axes.plot(x, [cell.value for cell in rows[checkpoint]], color=grey, linewidth=1.3)
            labels.append((rows[checkpoint][-1].value, checkpoint_label(checkpoint), MUTED))
        for checkpoint, colour, marker in ((EARLY_STOP, BLUE, "o"), (CONVERGENCE, VERMILLION, "s")):
            plot_with_error_band(axes, x, rows[checkpoint], colour, marker)
            labels.append((rows[checkpoint][-1].value, checkpoint_label(checkpoint), colour))
        label_line_ends(axes, x[-1], labels)
        set_share_axis(axes, x)
        axes.set_ylabel(f"{'Test' if split == 'test' else 'OOD test'} accuracy (%)")

    return plot


def known_ablation(data: StudyData) -> Callable[[Any], None]:
    """D and D_Known at early stop and at convergence (paper: figure 3b)."""
    sweep, known = data.sweep_variants("unknown", min_shares=2), data.sweep_variants("known", min_shares=2)
    start = [(share, name) for share, name in sweep if share == 0.0]  # D_Known of 0 % is D itself

    def plot(axes: Any) -> None:
        for kind, names, line, full in (("D", sweep, "-", True), ("D_Known", [*start, *known], "--", False)):
            for checkpoint, colour, marker in ((EARLY_STOP, BLUE, "o"), (CONVERGENCE, VERMILLION, "s")):
                cells = [data.accuracy(name, checkpoint) for _, name in names]
                x = [100 * share for share, _ in names]
                plot_with_error_band(
                    axes, x, cells, colour, marker, line, full, label=f"{kind}, {checkpoint_label(checkpoint)}"
                )
        axes.legend(loc="lower left", fontsize=11, handlelength=2.6)
        set_share_axis(axes, [100 * share for share, _ in sweep], room=False)
        axes.set_ylabel("Test accuracy (%)")

    return plot


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
            seen = np.isfinite(values)
            axes.plot(epochs[seen], values[seen], line, color=colour, marker="o", markersize=3)
            labels.append((float(values[seen][-1]), label, colour))
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
    """What of D is fitted at early stop, stacked: Known and Unknown, fitted or not (paper: figure 4)."""
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
            for at, low, tall in zip(x, bottom, height, strict=True):
                if tall >= 8 and not hatch:
                    axes.annotate(
                        f"{tall:.0f}", (at, low + tall / 2), ha="center", va="center", color="white", fontsize=10.5
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
    """Percent of D at early stop: Known fitted, Known not, Unknown fitted, Unknown not."""
    num = data.runs_for(name)[0].num
    unknown_share = (
        num.get(("train", str(Category.UNKNOWN)), 0) / num["train", ALL_CATEGORIES]
        if ("train", ALL_CATEGORIES) in num
        else share
    )
    known = fitted_share(data, name, EARLY_STOP, ANY_KNOWN).value / 100 if unknown_share < 1 else 0.0
    unknown = fitted_share(data, name, EARLY_STOP, str(Category.UNKNOWN)).value / 100 if unknown_share > 0 else 0.0
    whole = (
        (1 - unknown_share) * known,
        (1 - unknown_share) * (1 - known),
        unknown_share * unknown,
        unknown_share * (1 - unknown),
    )
    return tuple(100 * part for part in whole)  # type: ignore[return-value]


def response_surface_figure(data: StudyData, surface: ResponseSurface) -> Callable[[Any], None]:
    """Test accuracy over share of Unknown rows and epochs, each cell with its number; the lengths of other figures.

    Raises:
        NotTestable: the surface has fewer than two of those lengths.
    """
    shown = [i for i, epochs in enumerate(surface.epochs) if not data.durations or epochs in data.durations]
    if len(shown) < 2:
        raise InsufficientDataError("fewer than two of the runs' training lengths are points of the sweep")
    values_ES = surface.accuracy_SE[:, shown].T

    def plot(axes: Any) -> None:
        num_epochs, num_shares = values_ES.shape
        low, high = float(np.nanmin(values_ES)), float(np.nanmax(values_ES))
        edges = (np.arange(num_shares + 1) - 0.5, np.arange(num_epochs + 1) - 0.5)
        # Cividis reads alike with and without red-green blindness: https://doi.org/10.1371/journal.pone.0199239.
        axes.pcolormesh(
            *edges, np.ma.masked_invalid(values_ES), cmap="cividis", vmin=low, vmax=high, edgecolor="white", linewidth=2
        )
        for (y, x), value in np.ndenumerate(values_ES):
            light = np.isnan(value) or value > (low + high) / 2
            text = "–" if np.isnan(value) else f"{round1(value):.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=11, color=INK if light else "white")
        axes.set_xticks(range(num_shares), [f"{100 * share:.0f}" for share in surface.shares])
        axes.set_yticks(range(num_epochs), [str(surface.epochs[i]) for i in shown])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("Unknown rows in D (%)")
        axes.set_ylabel("Epochs trained")

    return plot
