"""What fine-tuning takes of what the model knew firmly: test accuracy by category, against its best epoch. Pure.

HighlyKnown questions were all answered right before any fine-tuning, under every few-shot prompt; WeaklyKnown and
Unknown ones were not, by any greedy answer. So what is lost of the former is forgotten, and what is answered of the
latter is gained. The loss is counted from the best epoch, when the format of the answers is learned.

The best epoch is picked on the questions that it is then measured on, so a loss within its interval may be chance.
Where an epoch's answers were not kept, the interval takes the two epochs for independent, which is never too narrow.

Source: Kaplan et al. 2026, arXiv:2604.15574, who measure forgetting from peak held-out accuracy.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.charts import (
    BLUE,
    INK,
    VERMILLION,
    label_line_ends,
    plot_with_error_band,
    set_epoch_axis,
    set_share_axis,
)
from slick.report.data import StudyData
from slick.report.measurements import (
    CONVERGENCE,
    Z_95,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_percent,
    round1,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.tables import CellValue, Table
from slick.types import Category

HIGHLY_KNOWN = str(Category.HIGHLY_KNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionCurve:
    """How HighlyKnown questions fare in one variant, averaged over seeds; E epochs."""

    share: float
    """Share of Unknown rows in D, in [0, 1]."""
    variant: str
    epochs: NDArray[np.int64]
    """Shape (E,)."""
    best_epoch: int
    """The epoch with the highest accuracy, ties to the earliest."""
    best_accuracy: Measurement
    """Accuracy there, percent."""
    points_lost: tuple[Measurement, ...]
    """Points lost from the best epoch to each epoch; length E, negative nowhere."""

    def points_lost_at(self, epoch: int) -> Measurement:
        """Points lost by an epoch."""
        return self.points_lost[int(np.flatnonzero(self.epochs == epoch)[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOnlyAblation:
    """D beside D_Known, the same set without its Unknown rows, at the end of training."""

    share: float
    points_lost: Measurement
    """Points of HighlyKnown accuracy that D loses from its best epoch."""
    points_lost_known: Measurement | None
    """Those that D_Known loses from its own; None where it was not trained."""
    cost: Measurement | None
    """Accuracy of D_Known less that of D, on the same questions."""


def retention_curves(data: StudyData, kind: str = "unknown", split: str = "test") -> tuple[RetentionCurve, ...]:
    """HighlyKnown accuracy of every variant of a kind, by share of Unknown rows.

    Args:
        data: the stored rows.
        kind: `unknown` (D) or `known` (D_Known).
        split: `test` or `ood`.

    Raises:
        NotTestable: there is no such run, or it was not tested on HighlyKnown questions.
    """
    return tuple(_retention_curve(data, share, name, split) for share, name in data.sweep_variants(kind, min_shares=1))


def known_only_ablation(data: StudyData) -> tuple[KnownOnlyAblation, ...]:
    """What D loses, what D_Known loses, and what the Unknown rows cost, by share of Unknown rows.

    Raises:
        NotTestable: as in `retention`, or no D_Known was trained.
    """
    known = {one.share: one for one in retention_curves(data, "known")}
    found = []
    for one in retention_curves(data):
        other = known.get(one.share)
        found.append(
            KnownOnlyAblation(
                share=one.share,
                points_lost=one.points_lost[-1],
                points_lost_known=other.points_lost[-1] if other else None,
                cost=data.difference((other.variant, CONVERGENCE), (one.variant, CONVERGENCE), "test", HIGHLY_KNOWN)
                if other
                else None,
            )
        )
    return tuple(found)


def category_changes(data: StudyData, one: RetentionCurve) -> dict[str, Measurement]:
    """Change of test accuracy in each category from the best epoch of HighlyKnown questions to the end, in points."""
    found = {}
    for category in map(str, Category):
        try:
            found[category] = data.difference(
                (one.variant, CONVERGENCE), (one.variant, one.best_epoch), "test", category
            )
        except InsufficientDataError:  # no test question of that category
            continue
    return found


def _retention_curve(data: StudyData, share: float, name: str, split: str) -> RetentionCurve:
    epochs, curve = data.mean_curve(name, split, HIGHLY_KNOWN)
    if np.isnan(curve).any():
        raise InsufficientDataError(
            f"the runs of {name} were not tested on {HIGHLY_KNOWN} {split} questions at every epoch"
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


@section(
    "retention",
    title="What is forgotten of what was known firmly",
    group=GROUP_EXTENSIONS,
    order=120,
    experiment="forgetting",
)
def retention_section(data: StudyData) -> SectionBody:
    """The section; without HighlyKnown test questions it says what is missing."""
    return SectionBody(
        text=f"{summary_text(data)}Before fine-tuning, all HighlyKnown questions were answered right under every "
        f"few-shot "
        "prompt, and no WeaklyKnown or Unknown one by any greedy answer; so what falls among the former is forgotten, "
        "and what is right among the latter gained. Losses are counted from the epoch with the best HighlyKnown "
        "accuracy, as in arXiv:2604.15574; that epoch is picked on the same questions, so a loss within its 95 % "
        "interval may be chance.",
        exhibits=(
            figure_exhibit(
                "HighlyKnown test accuracy by epoch, in points from its best epoch, one line a share of Unknown rows; "
                "bands of 95 % about the first and the last.",
                "retention",
                "Accuracy on HighlyKnown questions falls with epochs, the more the larger the share of Unknown rows",
                lambda: retention_figure(retention_curves(data)),
            ),
            figure_exhibit(
                "Points of HighlyKnown test accuracy lost, by share of Unknown rows and epochs trained.",
                "retention_surface",
                "Points of HighlyKnown accuracy lost over share of Unknown rows and epochs, as a heat map",
                lambda: retention_surface(retention_curves(data), data.durations),
            ),
            figure_exhibit(
                "Points of HighlyKnown test accuracy lost at the end, with the Unknown rows (D) and without them "
                "(D_Known), each from its own best epoch; bands are one standard error.",
                "retention_control",
                "HighlyKnown accuracy lost by D and by D_Known, by share of Unknown rows",
                lambda: ablation_figure(data),
            ),
            figure_exhibit(
                "Change of test accuracy from the best HighlyKnown epoch to the end, by category of question.",
                "retention_categories",
                "Accuracy lost and gained by category of test question and share of Unknown rows",
                lambda: category_change_figure(data),
            ),
            table_exhibit(
                "From the best epoch to the end, in points of test accuracy with 95 % intervals. Cost: D_Known less D "
                "at the end, on the same questions.",
                lambda: retention_table(data),
            ),
            collapsed_table_exhibit(
                "All numbers of the figures: losses by epoch.", lambda: retention_epochs_table(data)
            ),
            collapsed_table_exhibit(
                "All numbers of the figures: changes by category.", lambda: category_changes_table(data)
            ),
        ),
    )


def summary_text(data: StudyData) -> str:
    """What was found, in one or two sentences; nothing where nothing can be told."""
    try:
        found = retention_curves(data)
    except InsufficientDataError:
        return ""
    first, last = found[0], found[-1]
    said = (
        f"By the end of training, D with {format_percent(first.share)} Unknown rows loses "
        f"{_with_interval(first.points_lost[-1])} points of HighlyKnown accuracy"
    )
    if last is not first:
        said += f", D with {format_percent(last.share)} loses {_with_interval(last.points_lost[-1])}"
    return f"{said}. {_ablation_sentence(data)}"


def _ablation_sentence(data: StudyData) -> str:
    try:
        pairs = [(one, one.points_lost_known) for one in known_only_ablation(data) if one.points_lost_known is not None]
    except InsufficientDataError:
        return ""
    if not pairs:
        return ""
    one, known = pairs[-1]
    return (
        f"Without its Unknown rows, D with {format_percent(one.share)} loses {_with_interval(known)} points instead of "
        f"{_with_interval(one.points_lost)}. "
    )


def retention_figure(found: tuple[RetentionCurve, ...]) -> Callable[[Any], None]:
    """Lines that fall from nought, named at their ends."""

    def plot(axes: Any) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        # Cividis without its light end, which is lost on white: https://doi.org/10.1371/journal.pone.0199239.
        shades = [to_hex(colormaps["cividis"](0.66 * (1 - one.share))) for one in found]
        longest = max((one.epochs for one in found), key=len)
        labels = []
        for one, colour in zip(found, shades, strict=True):
            values = -np.array([cell.value for cell in one.points_lost])
            if one in (found[0], found[-1]):
                reach = Z_95 * np.array([cell.se for cell in one.points_lost])
                axes.fill_between(one.epochs, values - reach, values + reach, color=colour, alpha=0.15, linewidth=0)
            axes.plot(one.epochs, values, color=colour, marker="o", markersize=3)
            labels.append((float(values[-1]), f"{format_percent(one.share)} Unknown", colour))
        set_epoch_axis(axes, longest)
        axes.autoscale(axis="y")
        label_line_ends(axes, float(longest[-1]), labels)
        axes.set_ylabel("HighlyKnown accuracy (points from best)")

    return plot


def retention_surface(found: tuple[RetentionCurve, ...], durations: tuple[int, ...]) -> Callable[[Any], None]:
    """Each cell with its number; the training lengths of other figures, or all where there are none.

    Raises:
        NotTestable: fewer than two shares or epochs.
    """
    common = [int(epoch) for epoch in min((one.epochs for one in found), key=len)]
    shown = [epoch for epoch in common if epoch in durations] if durations else common
    if len(found) < 2 or len(shown) < 2:
        raise InsufficientDataError(
            "needs runs at two shares of Unknown rows or more, and two training lengths or more"
        )
    lost_ES = np.array([[one.points_lost_at(epoch).value for one in found] for epoch in shown])

    def plot(axes: Any) -> None:
        edges = (np.arange(len(found) + 1) - 0.5, np.arange(len(shown) + 1) - 0.5)
        axes.pcolormesh(*edges, lost_ES, cmap="cividis_r", edgecolor="white", linewidth=2)
        middle = (lost_ES.min() + lost_ES.max()) / 2
        for (y, x), value in np.ndenumerate(lost_ES):
            colour = "white" if value > middle else INK
            axes.text(x, y, f"{round1(value):.1f}", ha="center", va="center", fontsize=11, color=colour)
        axes.set_xticks(range(len(found)), [f"{100 * one.share:.0f}" for one in found])
        axes.set_yticks(range(len(shown)), [str(epoch) for epoch in shown])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("Unknown rows in D (%)")
        axes.set_ylabel("Epochs trained")

    return plot


def ablation_figure(data: StudyData) -> Callable[[Any], None]:
    """D and D_Known, against the share of Unknown rows in D."""
    found = known_only_ablation(data)

    def plot(axes: Any) -> None:
        both = [(one, one.points_lost_known) for one in found if one.points_lost_known is not None]
        x = [100 * one.share for one in found]
        plot_with_error_band(axes, x, [one.points_lost for one in found], VERMILLION, "s", label="D")
        plot_with_error_band(
            axes,
            [100 * one.share for one, _ in both],
            [known for _, known in both],
            BLUE,
            "o",
            "--",
            False,
            label="D_Known",
        )
        axes.legend(loc="upper left", fontsize=11, handlelength=2.6)
        set_share_axis(axes, x, room=False)
        axes.set_ylabel("HighlyKnown points lost")

    return plot


def category_change_figure(data: StudyData) -> Callable[[Any], None]:
    """One line a category, against the share of Unknown rows."""
    from slick.report.charts import CATEGORY_COLOURS

    found = [(one.share, category_changes(data, one)) for one in retention_curves(data)]

    def plot(axes: Any) -> None:
        for category, marker in zip(Category, "os^D", strict=True):
            cells = [(100 * share, cells[str(category)]) for share, cells in found if str(category) in cells]
            if cells:
                colour, line = CATEGORY_COLOURS[category]
                plot_with_error_band(
                    axes, [x for x, _ in cells], [cell for _, cell in cells], colour, marker, line, label=category
                )
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.legend(loc="lower left", fontsize=11, handlelength=2.6)
        set_share_axis(axes, [100 * share for share, _ in found], room=False)
        axes.set_ylabel("Change of accuracy (points)")

    return plot


def retention_table(data: StudyData) -> Table:
    """One row a share: what D loses, what D_Known loses, what the Unknown rows cost, and out of distribution."""
    by_share: dict[float, KnownOnlyAblation] = {}
    ood: dict[float, Measurement] = {}
    with suppress(InsufficientDataError):  # without D_Known its columns stay open
        by_share = {one.share: one for one in known_only_ablation(data)}
    with suppress(InsufficientDataError):
        ood = {one.share: one.points_lost[-1] for one in retention_curves(data, split="ood")}
    rows: list[tuple[CellValue, ...]] = []
    for one in retention_curves(data):
        pair = by_share.get(one.share)
        points_lost_known, cost = (None, None) if pair is None else (pair.points_lost_known, pair.cost)
        cells = (one.points_lost[-1], points_lost_known, cost, ood.get(one.share))
        rows.append(
            (
                format_percent(one.share),
                f"{round1(one.best_accuracy.value):.1f} (epoch {one.best_epoch})",
                *(None if cell is None else _with_interval(cell) for cell in cells),
            )
        )
    columns = ("Unknown", "HighlyKnown, best (%)", "lost by D", "lost by D_Known", "cost", "lost, out of distribution")
    return Table(name="retention", columns=columns, rows=tuple(rows))


def retention_epochs_table(data: StudyData) -> Table:
    """Every share and epoch, of D and of D_Known."""
    rows: list[tuple[CellValue, ...]] = []
    found = list(retention_curves(data))
    with suppress(InsufficientDataError):
        found += retention_curves(data, "known")
    for one in found:
        for epoch, cell in zip(one.epochs.tolist(), one.points_lost, strict=True):
            rows.append((one.variant, round(100 * one.share, 2), epoch, *_value_with_interval(cell)))
    columns = ("variant", "unknown_percent", "epoch", "points_lost", "low", "high", "seeds")
    return Table(name="retention_numbers", columns=columns, rows=tuple(rows))


def category_changes_table(data: StudyData) -> Table:
    """Every share and category of test question."""
    rows: list[tuple[CellValue, ...]] = [
        (one.variant, round(100 * one.share, 2), one.best_epoch, category, *_value_with_interval(cell))
        for one in retention_curves(data)
        for category, cell in category_changes(data, one).items()
    ]
    columns = ("variant", "unknown_percent", "from_epoch", "category", "points_changed", "low", "high", "seeds")
    return Table(name="retention_categories", columns=columns, rows=tuple(rows))


def _value_with_interval(cell: Measurement) -> tuple[float, float, float, int]:
    low, high = confidence_interval(cell)
    return (round(cell.value, 2), low, high, cell.num_seeds)


def _with_interval(cell: Measurement) -> str:
    """A difference with its 95 % interval."""
    low, high = (round1(end) for end in confidence_interval(cell))
    return f"{round1(cell.value):.1f} ({low:.1f} to {high:.1f})"
