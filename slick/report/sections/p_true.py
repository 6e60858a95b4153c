"""SliCK labels compared with P(True) (paper: figure 5)."""

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
    CheckpointRef,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    format_with_interval,
    is_significant,
    round1,
    value_or_reason,
)
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, figure_exhibit
from slick.report.sections import section
from slick.report.statistics import p_true
from slick.report.tables import Row, Table

CHECKPOINTS = (EARLY_STOP, CONVERGENCE)
_NUM_DRAWN, _NUM_LISTED = 200, 25
"""Number of points of the P(True) curve in the figure and in its table."""

ComparisonByCheckpoint = dict[str, p_true.PTrueComparison]


@section("p_true", title="SliCK labels compared with P(True)", group=GROUP_PAPER, order=90, experiment="p_true")
def p_true_section(data: StudyData) -> SectionBody:
    """Accuracy of D_Natural on the questions that SliCK and P(True) label Unknown; SliCK alone without P(True)."""
    compared = cache(
        lambda: {checkpoint: p_true.compare_at_equal_share(data, checkpoint) for checkpoint in CHECKPOINTS}
    )  # the bootstrap is slow
    return SectionBody(
        text="P(True) is the probability that the model assigns to the gold answer being true when prompted to verify "
        "it; a threshold on P(True) labels the questions below it Unknown (paper: section 6). Of two methods that "
        "label equally many questions Unknown, the better one selects questions that are answered correctly less often "
        "after fine-tuning on D_Natural.",
        result=" ".join(summary_sentences(data, compared)),
        exhibits=(
            *(
                figure_exhibit(
                    "Percent of test questions labelled Unknown, and accuracy of D_Natural on them, at "
                    f"{checkpoint_label(checkpoint)} (paper: figure 5, which does not state the checkpoint). Bands and "
                    "bars: one standard error.",
                    f"p_true_{checkpoint}",
                    "Accuracy on the questions labelled Unknown against their share, at "
                    f"{checkpoint_label(checkpoint)}",
                    lambda checkpoint=checkpoint: p_true_figure(data, checkpoint),  # type: ignore[misc]
                )
                for checkpoint in CHECKPOINTS
            ),
            collapsed_table_exhibit(
                "SliCK's Unknown questions, and equally many of lowest P(True); ties at the edge have equal weights. "
                "Accuracies in percent, differences in points with 95 % intervals. Told apart: AUROC of P(True) as a "
                "predictor of D_Natural's correct answers; 50 % is chance.",
                lambda: comparison_table(data, compared()),
            ),
            collapsed_table_exhibit("Data of the figures: SliCK with fewer exemplar sets.", lambda: prefix_table(data)),
            collapsed_table_exhibit("Data of the figures: P(True) by threshold.", lambda: p_true_threshold_table(data)),
        ),
    )


def summary_sentences(data: StudyData, compared: Callable[[], ComparisonByCheckpoint]) -> list[str]:
    """The comparison in two sentences; empty without data."""
    comparisons, _ = value_or_reason(compared)
    auroc, _ = value_or_reason(p_true.p_true_auroc, data, EARLY_STOP)
    if comparisons is None or auroc is None:
        return []
    parts = [
        f"{format_with_error(comparison.slick)} against {format_with_error(comparison.p_true)} % at "
        f"{checkpoint_label(checkpoint)}"
        for checkpoint, comparison in comparisons.items()
    ]
    first = comparisons[EARLY_STOP]
    phrases = dict.fromkeys(_comparison_phrase(comparison) for comparison in comparisons.values())
    return [
        f"Here each labels {first.num:,} questions Unknown, {first.share:.0f} %. SliCK's are answered correctly "
        f"{' and '.join(phrases)}: {', and '.join(parts)}.",
        f"P(True) predicts whether D_Natural answers a question correctly at early stop with an AUROC of {auroc:.0f} % "
        "(chance: 50 %).",
        *(
            [f"But {caveat}."]
            if (scores := p_true.p_true_scores(data)) is not None and (caveat := scores.caveat)
            else []
        ),
    ]


def _comparison_phrase(comparison: p_true.PTrueComparison) -> str:
    if not is_significant(comparison.gap):
        return "about as often as P(True)'s (within noise)"
    return f"{'less' if comparison.gap.value < 0 else 'more'} often than P(True)'s"


def p_true_figure(data: StudyData, checkpoint: CheckpointRef) -> Callable[[Any], None]:
    """The P(True) curve, the SliCK curve over the number of exemplar sets, and the SliCK point, as far as available."""
    p_true_curve, p_true_reason = value_or_reason(p_true.threshold_curve, data, checkpoint)
    slick_curve, slick_reason = value_or_reason(p_true.prefix_curve, data, checkpoint)
    point, _ = value_or_reason(p_true.slick_point, data, checkpoint)
    if p_true_curve is None and slick_curve is None:
        raise InsufficientDataError(f"{p_true_reason}; {slick_reason}")

    def plot(axes: Any) -> None:
        if p_true_curve is not None:
            _draw_threshold_curve(axes, p_true_curve)
        if slick_curve is not None:
            _draw_prefix_curve(axes, slick_curve)
        if point is not None:
            axes.plot([point.share], [point.accuracy.value], "o", color=BLUE, markersize=10, zorder=5, label="SliCK")
        axes.set_xlabel("Test questions labelled Unknown (%)")
        axes.set_ylabel("Accuracy on them (%)")
        axes.set_xlim(0, 102 if p_true_curve is not None else None)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend(loc="lower center", bbox_to_anchor=(0.44, 1.0), ncols=2, fontsize=11, handlelength=2.2)

    return plot


def _draw_threshold_curve(axes: Any, curve: p_true.ThresholdCurve) -> None:
    indices = _evenly_spaced_indices(curve, _NUM_DRAWN)
    x, y, se = curve.share[indices], curve.accuracy[indices], curve.se[indices]
    axes.fill_between(x, np.maximum(y - se, 0.0), y + se, color=ORANGE, alpha=0.2, linewidth=0)
    marker = "s" if len(indices) <= 12 else ""
    axes.plot(x, y, "-", color=ORANGE, marker=marker, label="P(True), by threshold")


def _draw_prefix_curve(axes: Any, curve: list[p_true.PrefixPoint]) -> None:
    x, y = [point.share for point in curve], [point.accuracy.value for point in curve]
    down = [min(point.accuracy.se, point.accuracy.value) for point in curve]  # an accuracy is not negative
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


def _evenly_spaced_indices(curve: p_true.ThresholdCurve, num: int) -> NDArray[np.int64]:
    """Indices of about `num` points at even shares, without points of fewer than `MIN_UNKNOWN_QUESTIONS` questions."""
    eligible = np.flatnonzero(curve.num >= p_true.MIN_UNKNOWN_QUESTIONS)
    if not len(eligible):
        raise InsufficientDataError(f"fewer than {p_true.MIN_UNKNOWN_QUESTIONS} test questions have P(True)")
    shares = np.linspace(curve.share[eligible[0]], 100.0, num)
    return np.unique(eligible[np.minimum(np.searchsorted(curve.share[eligible], shares), len(eligible) - 1)])


def comparison_table(data: StudyData, compared: ComparisonByCheckpoint) -> Table:
    """SliCK and P(True) at SliCK's share, one row per checkpoint."""
    rows: list[Row] = []
    for checkpoint, comparison in compared.items():
        low, high = confidence_interval(comparison.gap)
        auroc, _ = value_or_reason(p_true.p_true_auroc, data, checkpoint)
        rows.append(
            (
                checkpoint_label(checkpoint),
                comparison.num,
                round1(comparison.share),
                *(round1(cell.value) for cell in (comparison.slick, comparison.p_true)),
                format_with_interval(comparison.gap.value, low, high, "+.1f"),
                round(comparison.threshold, 4),
                None if auroc is None else round1(auroc),
                comparison.gap.num_seeds,
            )
        )
    columns = ("D_Natural at", "Unknown", "% of all", "SliCK", "P(True)", "difference")
    return Table(name="p_true", columns=(*columns, "P(True) below", "told apart (%)", "seeds"), rows=tuple(rows))


def prefix_table(data: StudyData) -> Table:
    """Share of SliCK's Unknown questions and accuracy on them, by number of exemplar sets."""
    both = zip(*(p_true.prefix_curve(data, checkpoint) for checkpoint in CHECKPOINTS), strict=True)
    rows: tuple[Row, ...] = tuple(
        (early.sets, round(early.share, 2), *_value_and_se(early.accuracy), *_value_and_se(last.accuracy))
        for early, last in both
    )
    columns = ("exemplar_sets", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="exemplar_sets", columns=columns, rows=rows)


def p_true_threshold_table(data: StudyData) -> Table:
    """Share of questions below some thresholds on P(True) and accuracy on them."""
    early, last = (p_true.threshold_curve(data, checkpoint) for checkpoint in CHECKPOINTS)
    rows: tuple[Row, ...] = tuple(
        (
            round(float(early.thresholds[i]), 6),
            round(float(early.share[i]), 2),
            *(round(float(values[i]), 2) for curve in (early, last) for values in (curve.accuracy, curve.se)),
        )
        for i in _evenly_spaced_indices(early, _NUM_LISTED)
    )
    columns = ("threshold", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="p_true_thresholds", columns=columns, rows=rows)


def _value_and_se(cell: Measurement) -> tuple[float, float]:
    return round(cell.value, 2), round(cell.se, 2)
