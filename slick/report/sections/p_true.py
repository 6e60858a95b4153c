"""The section that sets SliCK's labels beside P(True): figure 5, the numbers at SliCK's share, and what they say."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.charts import BLUE, MUTED, ORANGE
from slick.report.data import StudyData
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    CheckpointRef,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    round1,
)
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.p_true import (
    MIN_UNKNOWN_QUESTIONS,
    PrefixPoint,
    PTrueComparison,
    ThresholdCurve,
    compare_at_equal_share,
    p_true_auroc,
    p_true_scores,
    prefix_curve,
    slick_point,
    threshold_curve,
)
from slick.report.tables import CellValue, Table

CHECKPOINTS = (EARLY_STOP, CONVERGENCE)
_NUM_DRAWN, _NUM_LISTED = 200, 25
"""Points of P(True)'s curve in the figure and in its table."""

ComparisonByCheckpoint = dict[str, PTrueComparison]


@section("p_true", title="SliCK's labels against P(True)", group=GROUP_PAPER, order=90, experiment="p_true")
def p_true_section(data: StudyData) -> SectionBody:
    """The section; without P(True) it shows SliCK alone and says what is missing."""
    compared = cache(
        lambda: {checkpoint: compare_at_equal_share(data, checkpoint) for checkpoint in CHECKPOINTS}
    )  # resampling takes a moment
    return SectionBody(
        text=" ".join(
            [
                "A model can also be asked whether an answer is right. P(True) is the probability that it says so of a "
                "question's gold answer, and a threshold on it calls the questions below Unknown (paper: section 6). "
                "Of two ways to call as many questions Unknown, the better is the one whose questions are answered "
                "right less often after fine-tuning on D_Natural.",
                *summary_sentences(data, compared),
            ]
        ),
        exhibits=(
            *(
                figure_exhibit(
                    "Test questions called Unknown, and D_Natural's accuracy on them, at "
                    f"{checkpoint_label(checkpoint)} (paper: figure 5, which does not say at which checkpoint). Bands "
                    "and bars: one standard error.",
                    f"p_true_{checkpoint}",
                    f"Accuracy on the questions called Unknown against their share, at {checkpoint_label(checkpoint)}",
                    lambda checkpoint=checkpoint: p_true_figure(data, checkpoint),  # type: ignore[misc]
                )
                for checkpoint in CHECKPOINTS
            ),
            table_exhibit(
                "SliCK's Unknown questions, and as many of least P(True); of those of equal P(True) at the edge each "
                "counts in part. Accuracies in percent, differences in points with 95 % intervals. Told apart: the "
                "chance that P(True) is higher for a question that D_Natural answers right than for one it does not; "
                "50 % is luck.",
                lambda: comparison_table(data, compared()),
            ),
            collapsed_table_exhibit(
                "SliCK with fewer exemplar sets: the numbers of the figures.", lambda: prefix_table(data)
            ),
            collapsed_table_exhibit(
                "P(True) by threshold: the numbers of the figures.", lambda: p_true_threshold_table(data)
            ),
        ),
    )


def summary_sentences(data: StudyData, compared: Callable[[], ComparisonByCheckpoint]) -> list[str]:
    """What the comparison says, in two sentences; nothing where it cannot be made."""
    try:
        found = compared()
        told = {checkpoint: p_true_auroc(data, checkpoint) for checkpoint in CHECKPOINTS}
    except InsufficientDataError:
        return []
    parts = [
        f"{format_with_error(one.slick)} against {format_with_error(one.p_true)} % at {checkpoint_label(checkpoint)}"
        for checkpoint, one in found.items()
    ]
    first = found[EARLY_STOP]
    return [
        f"Here each calls {first.num:,} questions Unknown, {first.share:.0f} %; SliCK's are answered right "
        f"{' and '.join(_comparison_phrase(one) for one in _merge_equal_verdicts(list(found.values())))}: "
        f"{', and '.join(parts)}.",
        "Of a question that D_Natural answers right at early stop and one that it does not, P(True) is higher for the "
        f"first in {told[EARLY_STOP]:.0f} % of all pairs; luck makes 50 %.",
        *([f"But {caveat}."] if (scores := p_true_scores(data)) is not None and (caveat := scores.caveat) else []),
    ]


def _merge_equal_verdicts(found: list[PTrueComparison]) -> list[PTrueComparison]:
    """One of them where both say the same."""
    return found[:1] if len({_comparison_phrase(one) for one in found}) == 1 else found


def _comparison_phrase(one: PTrueComparison) -> str:
    if abs(one.gap.value) <= Z_95 * one.gap.se:
        return "as often as P(True)'s within noise"
    return f"{'less' if one.gap.value < 0 else 'more'} often than P(True)'s"


def p_true_figure(data: StudyData, checkpoint: CheckpointRef) -> Callable[[Any], None]:
    """P(True)'s curve, SliCK's over the number of exemplar sets, and SliCK's point; what is missing is left out.

    Raises:
        NotTestable: there is neither.
    """
    swept, why = _value_or_reason(lambda: threshold_curve(data, checkpoint))
    curve, other = _value_or_reason(lambda: prefix_curve(data, checkpoint))
    point, _ = _value_or_reason(lambda: slick_point(data, checkpoint))
    if swept is None and curve is None:
        raise InsufficientDataError(f"{why}; {other}")

    def plot(axes: Any) -> None:
        if swept is not None:
            _draw_threshold_curve(axes, swept)
        if curve is not None:
            _draw_prefix_curve(axes, curve)
        if point is not None:
            axes.plot([point.share], [point.accuracy.value], "o", color=BLUE, markersize=10, zorder=5, label="SliCK")
        axes.set_xlabel("Test questions called Unknown (%)")
        axes.set_ylabel("Accuracy on them (%)")
        axes.set_xlim(0, 102 if swept is not None else None)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend(loc="lower center", bbox_to_anchor=(0.44, 1.0), ncols=2, fontsize=11, handlelength=2.2)

    return plot


def comparison_table(data: StudyData, compared: ComparisonByCheckpoint) -> Table:
    """SliCK and P(True) at SliCK's share, one row a checkpoint."""
    rows: list[tuple[CellValue, ...]] = []
    for checkpoint, one in compared.items():
        low, high = confidence_interval(one.gap)
        rows.append(
            (
                checkpoint_label(checkpoint),
                one.num,
                round1(one.share),
                *(round1(cell.value) for cell in (one.slick, one.p_true)),
                f"{round1(one.gap.value):+.1f} ({round1(low):+.1f} to {round1(high):+.1f})",
                round(one.threshold, 4),
                _auroc_cell(data, checkpoint),
                one.gap.num_seeds,
            )
        )
    columns = ("D_Natural at", "Unknown", "% of all", "SliCK", "P(True)", "difference")
    return Table(name="p_true", columns=(*columns, "P(True) below", "told apart (%)", "seeds"), rows=tuple(rows))


def prefix_table(data: StudyData) -> Table:
    """SliCK's Unknown set and the accuracy on it, by number of exemplar sets."""
    both = zip(*(prefix_curve(data, checkpoint) for checkpoint in CHECKPOINTS), strict=True)
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (early.sets, round(early.share, 2), *_value_and_se(early.accuracy), *_value_and_se(last.accuracy))
        for early, last in both
    )
    columns = ("exemplar_sets", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="exemplar_sets", columns=columns, rows=rows)


def p_true_threshold_table(data: StudyData) -> Table:
    """P(True)'s Unknown set and the accuracy on it, at some thresholds."""
    early, last = (threshold_curve(data, checkpoint) for checkpoint in CHECKPOINTS)
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            round(float(early.thresholds[i]), 6),
            round(float(early.share[i]), 2),
            *(round(float(values[i]), 2) for one in (early, last) for values in (one.accuracy, one.se)),
        )
        for i in _evenly_spaced_indices(early, _NUM_LISTED)
    )
    columns = ("threshold", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="p_true_thresholds", columns=columns, rows=rows)


def _value_or_reason(make: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return make(), ""
    except InsufficientDataError as reason:
        return None, str(reason)


def _auroc_cell(data: StudyData, checkpoint: CheckpointRef) -> float | None:
    try:
        return round1(p_true_auroc(data, checkpoint))
    except InsufficientDataError:
        return None


def _value_and_se(cell: Measurement) -> tuple[float, float]:
    return round(cell.value, 2), round(cell.se, 2)


def _evenly_spaced_indices(swept: ThresholdCurve, num: int) -> NDArray[np.int64]:
    """Places of about so many points, at even shares; the accuracy on very few questions says nothing."""
    enough = np.flatnonzero(swept.num >= MIN_UNKNOWN_QUESTIONS)
    if not len(enough):
        raise InsufficientDataError(f"fewer than {MIN_UNKNOWN_QUESTIONS} test questions have P(True)")
    wanted = np.linspace(swept.share[enough[0]], 100.0, num)
    return np.unique(enough[np.minimum(np.searchsorted(swept.share[enough], wanted), len(enough) - 1)])


def _draw_threshold_curve(axes: Any, swept: ThresholdCurve) -> None:
    at = _evenly_spaced_indices(swept, _NUM_DRAWN)
    x, y, se = swept.share[at], swept.accuracy[at], swept.se[at]
    axes.fill_between(x, np.maximum(y - se, 0.0), y + se, color=ORANGE, alpha=0.2, linewidth=0)
    marker = "s" if len(at) <= 12 else ""
    axes.plot(x, y, "-", color=ORANGE, marker=marker, label="P(True), by threshold")


def _draw_prefix_curve(axes: Any, curve: list[PrefixPoint]) -> None:
    x, y = [point.share for point in curve], [point.accuracy.value for point in curve]
    down = [min(point.accuracy.se, point.accuracy.value) for point in curve]  # an accuracy is never below 0
    up = [point.accuracy.se for point in curve]
    axes.errorbar(
        x,
        y,
        [down, up],
        color=BLUE,
        marker="o",
        markersize=4,
        elinewidth=1.2,
        capsize=2,
        label=f"SliCK, {curve[0].sets} to {curve[-1].sets} exemplar sets",
    )
    axes.annotate("1 set", (x[0], y[0]), xytext=(8, -12), textcoords="offset points", fontsize=11, color=MUTED)
