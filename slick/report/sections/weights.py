"""Unknown rows with a lower weight in the loss, compared with full weight and with dropping them.

`weighted-X`, `unknown-X` and `known-X` have the same Known rows. `weighted-X` has the Unknown rows of `unknown-X` with
a weight, and `known-X` has none. Positive differences favour the weighted set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slick.formatting import format_percent
from slick.report.charts import BLUE, VERMILLION, format_dot_axes, plot_interval_dots
from slick.report.data import StudyData, share_nearest_to_half
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    EARLY_STOP,
    PAIRING_NOTE,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    format_difference,
    round1,
    rounded_with_interval,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.tables import CellValue, Row, Table
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import WEIGHT_FIELD, read_variant_rows
from slick.types import ALL_CATEGORIES, Category

QUESTION_GROUPS = {
    "all test": ("test", ALL_CATEGORIES),
    "Known": ("test", ANY_KNOWN),
    "Unknown": ("test", str(Category.UNKNOWN)),
    "out of distribution": ("ood", ALL_CATEGORIES),
}
"""Groups of questions, with their split and category."""
BASELINES = {"unknown": "full weight", "known": "dropped"}
"""Kinds of the compared variants, and how each treats the Unknown rows."""
_BASELINE_MARKERS = {"unknown": (BLUE, "o", -0.16), "known": (VERMILLION, "s", 0.16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightComparison:
    """A weighted set compared with the others of its share, on one group of questions at one checkpoint."""

    name: str
    share: float
    """Share of Unknown rows, in [0, 1]."""
    group: str
    """One of `QUESTION_GROUPS`."""
    checkpoint: str
    """`EARLY_STOP` or `CONVERGENCE`."""
    accuracy: Measurement
    """Of the weighted set, in percent."""
    baselines: dict[str, tuple[Measurement, Measurement]]
    """For each of `BASELINES` that was trained: its accuracy, and that of the weighted set minus it, in points."""


@section(
    "weights",
    title="Unknown rows with a lower weight in the loss",
    group=GROUP_EXTENSIONS,
    order=145,
    experiment="weights",
)
def weights_section(data: StudyData) -> SectionBody:
    """Accuracy with weighted Unknown rows, and differences from full weight and from dropping them."""
    return SectionBody(
        result=summary_text(data),
        text="The weighted set has the rows of D, but each token of an Unknown row counts less in the training loss, "
        "which is the weighted mean over the answer tokens of a batch. It is compared with D, whose rows have full "
        f"weight, and with D_Known, from which the Unknown rows are dropped. {PAIRING_NOTE}",
        exhibits=(
            figure_exhibit(
                f"Test accuracy of the weighted set minus that of D and of D_Known at {checkpoint_label(CONVERGENCE)}, "
                "in points, with 95 % intervals.",
                "weights",
                "Difference in accuracy between weighted Unknown rows, full weight and none, by group of questions",
                lambda: weights_figure(compare_weighted_sets(data)),
            ),
            table_exhibit(
                "Accuracies in percent, and the differences of the weighted set in points, with 95 % intervals.",
                lambda: weights_table(compare_weighted_sets(data)),
            ),
            collapsed_table_exhibit(
                "The differences as numbers.", lambda: weights_numbers_table(compare_weighted_sets(data))
            ),
        ),
    )


def summary_text(data: StudyData) -> str:
    """The differences at convergence on all test questions; empty without data."""
    comparisons, _ = value_or_reason(compare_weighted_sets, data)
    shown = [
        comparison
        for comparison in _nearest_to_half(comparisons or [])
        if (comparison.group, comparison.checkpoint) == ("all test", CONVERGENCE)
    ]
    if not shown:
        return ""
    comparison = shown[0]
    weights = data.load_cached(load_unknown_weights, {})
    weight = f"weight {weights[comparison.name]:g}" if comparison.name in weights else "a lower weight"
    differences = " and ".join(
        f"{format_difference(change)} points from {label}"
        for kind, label in (("unknown", "training on them with full weight"), ("known", "dropping them"))
        if kind in comparison.baselines
        for _, change in [comparison.baselines[kind]]
    )
    return (
        f"With {weight} for the {format_percent(comparison.share)} of Unknown rows, test accuracy at "
        f"{checkpoint_label(CONVERGENCE)} is {round1(comparison.accuracy.value):.1f} %: it differs by {differences}."
    )


def weights_figure(comparisons: list[WeightComparison]) -> Callable[[Any], None]:
    """Differences at convergence with intervals, by group of questions, for the share nearest to 50 %."""
    shown = [comparison for comparison in _nearest_to_half(comparisons) if comparison.checkpoint == CONVERGENCE]

    def plot(axes: Any) -> None:
        for kind, (colour, marker, shift) in _BASELINE_MARKERS.items():
            cells = [comparison.baselines[kind][1] if kind in comparison.baselines else None for comparison in shown]
            if any(cells):
                plot_interval_dots(axes, cells, colour, marker, shift=shift, label=f"minus {BASELINES[kind]}")
        labels = [comparison.group.replace("out of ", "out of\n") for comparison in shown]
        format_dot_axes(axes, labels, "Difference of the weighted set (points)")

    return plot


def weights_table(comparisons: list[WeightComparison]) -> Table:
    """One row per group of questions and checkpoint."""
    rows: list[Row] = []
    for comparison in comparisons:
        baselines = [comparison.baselines.get(kind) for kind in BASELINES]
        accuracies: list[CellValue] = [None if pair is None else round1(pair[0].value) for pair in baselines]
        differences: list[CellValue] = [None if pair is None else format_difference(pair[1]) for pair in baselines]
        rows.append(
            (
                format_percent(comparison.share),
                comparison.group,
                checkpoint_label(comparison.checkpoint),
                round1(comparison.accuracy.value),
                *accuracies,
                *differences,
                comparison.accuracy.num_seeds,
            )
        )
    columns = ("Unknown", "questions", "checkpoint", "weighted", *BASELINES.values())
    minus = (f"weighted - {label}" for label in BASELINES.values())
    return Table(name="weights", columns=(*columns, *minus, "seeds"), rows=tuple(rows))


def weights_numbers_table(comparisons: list[WeightComparison]) -> Table:
    """The differences and their intervals as numbers, one row per comparison."""
    rows: list[Row] = []
    for comparison in comparisons:
        for kind, (_, change) in comparison.baselines.items():
            rows.append(
                (
                    comparison.name,
                    round(100 * comparison.share, 2),
                    BASELINES[kind],
                    comparison.group,
                    checkpoint_label(comparison.checkpoint),
                    *rounded_with_interval(change),
                )
            )
    columns = ("variant", "unknown_percent", "compared_with", "questions", "checkpoint", "difference_points")
    return Table(name="weights_numbers", columns=(*columns, "low", "high"), rows=tuple(rows))


def compare_weighted_sets(data: StudyData) -> list[WeightComparison]:
    """Compare every weighted set with D and D_Known of its share, by share, group and checkpoint.

    Groups without questions, and those that were not evaluated, are omitted.

    Raises:
        InsufficientDataError: there is no weighted set that can be compared.
    """
    others = {kind: dict(data.sweep_variants(kind, min_shares=0)) for kind in BASELINES}
    comparisons = []
    for share, name in data.sweep_variants("weighted", min_shares=0):
        names = {kind: by_share[share] for kind, by_share in others.items() if share in by_share}
        for group in QUESTION_GROUPS if names else ():
            for checkpoint in (EARLY_STOP, CONVERGENCE):
                comparison, _ = value_or_reason(_compare, data, (name, share), names, group, checkpoint)
                if comparison is not None:
                    comparisons.append(comparison)
    if not comparisons:
        raise InsufficientDataError(
            "needs finished runs of a set with weighted Unknown rows and of D or D_Known with the same share, such as "
            "weighted-050, unknown-050 and known-050 (--weighted-shares 0.5)"
        )
    return comparisons


def _compare(
    data: StudyData, weighted: tuple[str, float], names: dict[str, str], group: str, checkpoint: str
) -> WeightComparison:
    name, share = weighted
    split, category = QUESTION_GROUPS[group]
    return WeightComparison(
        name=name,
        share=share,
        group=group,
        checkpoint=checkpoint,
        accuracy=data.accuracy(name, checkpoint, split, category),
        baselines={
            kind: (
                data.accuracy(other, checkpoint, split, category),
                data.difference((name, checkpoint), (other, checkpoint), split, category),
            )
            for kind, other in names.items()
        },
    )


def _nearest_to_half(comparisons: list[WeightComparison]) -> list[WeightComparison]:
    """The comparisons at the share nearest to 50 %, shown in the figure and the text."""
    share = share_nearest_to_half(comparison.share for comparison in comparisons)
    return [comparison for comparison in comparisons if comparison.share == share]


def load_unknown_weights(study: Folder) -> dict[str, float]:
    """Load the mean weight of the Unknown rows of each weighted set."""
    manifest = read_manifest(study.child("variants"))
    weights = {}
    for name, entry in (manifest.counts if manifest else {}).items():
        if entry["kind"] == "weighted":
            rows = read_variant_rows(study, name, ["category", WEIGHT_FIELD.name]).to_pylist()
            values = [row.get(WEIGHT_FIELD.name, 1.0) for row in rows if row["category"] == Category.UNKNOWN]
            if values:
                weights[name] = float(np.mean(values))
    return weights
