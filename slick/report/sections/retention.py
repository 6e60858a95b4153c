"""Forgetting of HighlyKnown facts during fine-tuning: points of test accuracy lost since the best epoch.

Before fine-tuning, the model answers every HighlyKnown question correctly under every few-shot prompt, and no
WeaklyKnown or Unknown question in any greedy answer. A loss on the former is therefore forgetting, and a correct answer
to the latter is a gain. Losses are counted from the best epoch, when the model has learned the answer format.

The best epoch is chosen on the same questions, so a loss within its interval may be noise. If the predictions of an
epoch are not stored, the interval treats the two epochs as independent, which is conservative.

Source: Kaplan et al. 2026, arXiv:2604.15574, who measure forgetting from peak held-out accuracy.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.formatting import format_percent
from slick.report import charts
from slick.report.data import StudyData
from slick.report.measurements import (
    CONVERGENCE,
    Z_95,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_with_interval,
    interval_ends,
    round1,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.tables import Row, Table
from slick.types import Category

HIGHLY_KNOWN = str(Category.HIGHLY_KNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionCurve:
    """HighlyKnown accuracy of one variant by epoch, averaged over seeds; E epochs."""

    share: float
    """Share of Unknown rows in D, in [0, 1]."""
    variant: str
    epochs: NDArray[np.int64]
    """Shape (E,)."""
    best_epoch: int
    """The epoch with the highest accuracy, the earliest of several."""
    best_accuracy: Measurement
    """Accuracy at the best epoch, percent."""
    points_lost: tuple[Measurement, ...]
    """Points lost from the best epoch to each epoch, length E, none negative."""

    def points_lost_at(self, epoch: int) -> Measurement:
        """Points lost from the best epoch to an epoch."""
        return self.points_lost[int(np.flatnonzero(self.epochs == epoch)[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOnlyAblation:
    """D compared with D_Known, the same set without its Unknown rows, at the end of training."""

    share: float
    points_lost: Measurement
    """Points of HighlyKnown accuracy that D loses since its best epoch."""
    points_lost_known: Measurement | None
    """Points that D_Known loses since its own best epoch; None if it was not trained."""
    cost: Measurement | None
    """Accuracy of D_Known minus that of D on the same questions."""


@section(
    "retention", title="Forgetting of HighlyKnown facts", group=GROUP_EXTENSIONS, order=120, experiment="forgetting"
)
def retention_section(data: StudyData) -> SectionBody:
    """Points of HighlyKnown accuracy lost, by epoch and share of Unknown rows."""
    return SectionBody(
        result=" ".join(summary_sentences(data)),
        text="Before fine-tuning, the model answers every HighlyKnown question correctly under every few-shot "
        "prompt, and no WeaklyKnown or Unknown question in any greedy answer. A loss on the former is therefore "
        "forgetting, and a correct answer to the latter is a gain. Losses are counted from the epoch with the best "
        "HighlyKnown accuracy, as in arXiv:2604.15574. That epoch is chosen on the same questions, so a loss within "
        "its 95 % interval may be noise.",
        exhibits=(
            figure_exhibit(
                "HighlyKnown test accuracy by epoch, relative to the best epoch, one line per share of Unknown rows; "
                "95 % bands for the first and the last line.",
                "retention",
                "HighlyKnown accuracy relative to its best epoch, by epoch and share of Unknown rows",
                lambda: retention_figure(retention_curves(data)),
            ),
            figure_exhibit(
                "Points of HighlyKnown test accuracy lost by share of Unknown rows and epochs trained.",
                "retention_surface",
                "Points of HighlyKnown accuracy lost over share of Unknown rows and epochs, as a heat map",
                lambda: retention_surface(retention_curves(data), data.durations),
            ),
            figure_exhibit(
                "Points of HighlyKnown test accuracy lost at the end of training, with the Unknown rows (D) and "
                "without them (D_Known), each relative to its own best epoch; bands are one standard error.",
                "retention_control",
                "HighlyKnown accuracy lost by D and by D_Known, by share of Unknown rows",
                lambda: ablation_figure(data),
            ),
            figure_exhibit(
                "Change of test accuracy from the best HighlyKnown epoch to the last, by category of the test "
                "question.",
                "retention_categories",
                "Change of accuracy by category of the test question and share of Unknown rows",
                lambda: category_change_figure(data),
            ),
            table_exhibit(
                "Points of test accuracy lost from the best epoch to the last, with 95 % intervals. Cost: D_Known "
                "minus D at the last epoch, on the same questions.",
                lambda: retention_table(data),
            ),
            collapsed_table_exhibit("Data of the figures: losses by epoch.", lambda: retention_epochs_table(data)),
            collapsed_table_exhibit("Data of the figures: changes by category.", lambda: category_changes_table(data)),
        ),
    )


def summary_sentences(data: StudyData) -> list[str]:
    """The losses at the lowest and highest share of Unknown rows; empty without data."""
    curves, _ = value_or_reason(retention_curves, data)
    if not curves:
        return []
    first, last = curves[0], curves[-1]
    sentence = (
        f"By the end of training, D with {format_percent(first.share)} Unknown rows loses "
        f"{_with_interval(first.points_lost[-1])} points of HighlyKnown accuracy"
    )
    if last is not first:
        sentence += f", D with {format_percent(last.share)} loses {_with_interval(last.points_lost[-1])}"
    return [f"{sentence}.", *_ablation_sentence(data)]


def _ablation_sentence(data: StudyData) -> list[str]:
    ablations, _ = value_or_reason(known_only_ablation, data)
    pairs = [(pair, pair.points_lost_known) for pair in ablations or () if pair.points_lost_known is not None]
    if not pairs:
        return []
    pair, known = pairs[-1]
    return [
        f"Without its Unknown rows, D with {format_percent(pair.share)} loses {_with_interval(known)} points instead "
        f"of {_with_interval(pair.points_lost)}."
    ]


def retention_figure(curves: tuple[RetentionCurve, ...]) -> Callable[[Any], None]:
    """Accuracy relative to the best epoch, one labelled line per share of Unknown rows."""

    def plot(axes: Any) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        # Cividis without its light end, which is invisible on white: https://doi.org/10.1371/journal.pone.0199239.
        shades = [to_hex(colormaps["cividis"](0.66 * (1 - curve.share))) for curve in curves]
        longest = max((curve.epochs for curve in curves), key=len)
        labels = []
        for curve, colour in zip(curves, shades, strict=True):
            values = -np.array([cell.value for cell in curve.points_lost])
            if curve in (curves[0], curves[-1]):
                margins = Z_95 * np.array([cell.se for cell in curve.points_lost])
                axes.fill_between(
                    curve.epochs, values - margins, values + margins, color=colour, alpha=0.15, linewidth=0
                )
            axes.plot(curve.epochs, values, color=colour, marker="o", markersize=3)
            labels.append((float(values[-1]), f"{format_percent(curve.share)} Unknown", colour))
        charts.set_epoch_axis(axes, longest)
        axes.autoscale(axis="y")
        charts.label_line_ends(axes, float(longest[-1]), labels)
        axes.set_ylabel("HighlyKnown accuracy (points from best)")

    return plot


def retention_surface(curves: tuple[RetentionCurve, ...], durations: tuple[int, ...]) -> Callable[[Any], None]:
    """Heat map of points lost at the training lengths of the other figures, or at all epochs if there are none."""
    common = [int(epoch) for epoch in min((curve.epochs for curve in curves), key=len)]
    shown = [epoch for epoch in common if epoch in durations] if durations else common
    if len(curves) < 2 or len(shown) < 2:
        raise InsufficientDataError(
            "needs runs at two shares of Unknown rows or more, and two training lengths or more"
        )
    lost_ES = np.array([[curve.points_lost_at(epoch).value for curve in curves] for epoch in shown])
    shares = [curve.share for curve in curves]
    return lambda axes: charts.plot_share_by_epochs(axes, lost_ES, shares, shown, "cividis_r")


def ablation_figure(data: StudyData) -> Callable[[Any], None]:
    """Points lost by D and by D_Known against the share of Unknown rows in D."""
    ablations = known_only_ablation(data)

    def plot(axes: Any) -> None:
        pairs = [(pair, pair.points_lost_known) for pair in ablations if pair.points_lost_known is not None]
        x = [100 * pair.share for pair in ablations]
        charts.plot_with_error_band(
            axes, x, [pair.points_lost for pair in ablations], charts.VERMILLION, "s", label="D"
        )
        charts.plot_with_error_band(
            axes,
            [100 * pair.share for pair, _ in pairs],
            [known for _, known in pairs],
            charts.BLUE,
            "o",
            "--",
            False,
            label="D_Known",
        )
        axes.legend(loc="upper left", fontsize=11, handlelength=2.6)
        charts.set_share_axis(axes, x, room=False)
        axes.set_ylabel("HighlyKnown points lost")

    return plot


def category_change_figure(data: StudyData) -> Callable[[Any], None]:
    """Change of accuracy against the share of Unknown rows, one line per category."""
    changes_by_share = [(curve.share, category_changes(data, curve)) for curve in retention_curves(data)]

    def plot(axes: Any) -> None:
        for category, marker in zip(Category, "os^D", strict=True):
            cells = [(100 * share, cells[str(category)]) for share, cells in changes_by_share if str(category) in cells]
            if cells:
                colour, line = charts.CATEGORY_COLOURS[category]
                charts.plot_with_error_band(
                    axes, [x for x, _ in cells], [cell for _, cell in cells], colour, marker, line, label=category
                )
        axes.axhline(0.0, color=charts.INK, linewidth=0.8)
        axes.legend(loc="lower left", fontsize=11, handlelength=2.6)
        charts.set_share_axis(axes, [100 * share for share, _ in changes_by_share], room=False)
        axes.set_ylabel("Change of accuracy (points)")

    return plot


def retention_table(data: StudyData) -> Table:
    """Losses of D, of D_Known and out of distribution, and the cost of the Unknown rows; one row per share."""
    by_share: dict[float, KnownOnlyAblation] = {}
    ood: dict[float, Measurement] = {}
    with suppress(InsufficientDataError):  # without D_Known its columns are empty
        by_share = {curve.share: curve for curve in known_only_ablation(data)}
    with suppress(InsufficientDataError):
        ood = {curve.share: curve.points_lost[-1] for curve in retention_curves(data, split="ood")}
    rows: list[Row] = []
    for curve in retention_curves(data):
        ablation = by_share.get(curve.share)
        points_lost_known, cost = (None, None) if ablation is None else (ablation.points_lost_known, ablation.cost)
        cells = (curve.points_lost[-1], points_lost_known, cost, ood.get(curve.share))
        rows.append(
            (
                format_percent(curve.share),
                f"{round1(curve.best_accuracy.value):.1f} (epoch {curve.best_epoch})",
                *(None if cell is None else _with_interval(cell) for cell in cells),
            )
        )
    columns = ("Unknown", "HighlyKnown, best (%)", "lost by D", "lost by D_Known", "cost", "lost, out of distribution")
    return Table(name="retention", columns=columns, rows=tuple(rows))


def retention_epochs_table(data: StudyData) -> Table:
    """Points lost by D and D_Known at every share and epoch."""
    rows: list[Row] = []
    curves = list(retention_curves(data))
    with suppress(InsufficientDataError):
        curves += retention_curves(data, "known")
    for curve in curves:
        for epoch, cell in zip(curve.epochs.tolist(), curve.points_lost, strict=True):
            rows.append((curve.variant, round(100 * curve.share, 2), epoch, *_value_with_interval(cell)))
    columns = ("variant", "unknown_percent", "epoch", "points_lost", "low", "high", "seeds")
    return Table(name="retention_numbers", columns=columns, rows=tuple(rows))


def category_changes_table(data: StudyData) -> Table:
    """Change of accuracy at every share and category of the test question."""
    rows: list[Row] = [
        (curve.variant, round(100 * curve.share, 2), curve.best_epoch, category, *_value_with_interval(cell))
        for curve in retention_curves(data)
        for category, cell in category_changes(data, curve).items()
    ]
    columns = ("variant", "unknown_percent", "from_epoch", "category", "points_changed", "low", "high", "seeds")
    return Table(name="retention_categories", columns=columns, rows=tuple(rows))


def _value_with_interval(cell: Measurement) -> tuple[float, float, float, int]:
    low, high = confidence_interval(cell)
    return (round(cell.value, 2), low, high, cell.num_seeds)


def _with_interval(cell: Measurement) -> str:
    return format_with_interval(cell.value, *interval_ends(cell))


def retention_curves(data: StudyData, kind: str = "unknown", split: str = "test") -> tuple[RetentionCurve, ...]:
    """HighlyKnown accuracy of every variant of a kind, by share of Unknown rows.

    Args:
        data: the study.
        kind: `unknown` (D) or `known` (D_Known).
        split: `test` or `ood`.

    Raises:
        InsufficientDataError: there is no such run, or it was not tested on HighlyKnown questions.
    """
    return tuple(_retention_curve(data, share, name, split) for share, name in data.sweep_variants(kind, min_shares=1))


def _retention_curve(data: StudyData, share: float, name: str, split: str) -> RetentionCurve:
    epochs, curve = data.mean_curve(name, split, HIGHLY_KNOWN)
    if np.isnan(curve).any():
        raise InsufficientDataError(
            f"the runs of {name} were not tested on {HIGHLY_KNOWN} {split} questions at every epoch, which the best "
            "epoch needs; train them with evaluate all"
        )
    best = int(epochs[int(np.argmax(curve))])
    lost = [data.difference((name, best), (name, int(epoch)), split, HIGHLY_KNOWN) for epoch in epochs]
    return RetentionCurve(
        share=share,
        variant=name,
        epochs=epochs,
        best_epoch=best,
        best_accuracy=data.accuracy(name, best, split, HIGHLY_KNOWN),
        points_lost=tuple(
            Measurement(0.0, 0.0, cell.num_seeds) if epoch == best else cell
            for epoch, cell in zip(epochs, lost, strict=True)
        ),
    )


def known_only_ablation(data: StudyData) -> tuple[KnownOnlyAblation, ...]:
    """Losses of D and of D_Known, and the cost of the Unknown rows, by share of Unknown rows.

    Raises:
        InsufficientDataError: as in `retention_curves`, or no D_Known was trained.
    """
    known = {curve.share: curve for curve in retention_curves(data, "known")}
    ablations = []
    for curve in retention_curves(data):
        other = known.get(curve.share)
        ablations.append(
            KnownOnlyAblation(
                share=curve.share,
                points_lost=curve.points_lost[-1],
                points_lost_known=other.points_lost[-1] if other else None,
                cost=data.difference((other.variant, CONVERGENCE), (curve.variant, CONVERGENCE), "test", HIGHLY_KNOWN)
                if other
                else None,
            )
        )
    return tuple(ablations)


def category_changes(data: StudyData, curve: RetentionCurve) -> dict[str, Measurement]:
    """Change of test accuracy in points by category, from the best HighlyKnown epoch to the last epoch."""
    changes = {}
    for category in map(str, Category):
        try:
            changes[category] = data.difference(
                (curve.variant, CONVERGENCE), (curve.variant, curve.best_epoch), "test", category
            )
        except InsufficientDataError:  # no test questions of that category
            continue
    return changes
