"""The section that sets SliCK's labels beside P(True): figure 5, the numbers at SliCK's share, and what they say."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z, interval, points, tenths, when_label
from slick.analysis.p_true import (
    LEAST_ROWS,
    Comparison,
    PrefixPoint,
    Sweep,
    compare,
    prefix_curve,
    separation,
    slick_point,
    sweep,
)
from slick.analysis.terms import EARLY, LAST, Cell, NotTestable, When
from slick.report.page import PAPER, Section, drawn, numbers, wide
from slick.report.style import BLUE, MUTED, ORANGE
from slick.report.tables import Table, Value

CHECKPOINTS = (EARLY, LAST)
_DRAWN, _LISTED = 200, 25
"""Points of P(True)'s curve in the figure and in its table."""

Compared = dict[str, Comparison]


def section(data: StudyData) -> Section:
    """The section; without P(True) it shows SliCK alone and says what is missing."""
    compared = cache(lambda: {when: compare(data, when) for when in CHECKPOINTS})  # resampling takes a moment
    return Section(
        name="p_true",
        group=PAPER,
        title="SliCK's labels against P(True)",
        text=" ".join(
            [
                "A model can also be asked whether an answer is right. P(True) is the probability that it says so of a "
                "question's gold answer, and a threshold on it calls the questions below Unknown (paper: section 6). "
                "Of two ways to call as many questions Unknown, the better is the one whose questions are answered "
                "right less often after fine-tuning on D_Natural.",
                *words(data, compared),
            ]
        ),
        exhibits=(
            *(
                drawn(
                    f"Test questions called Unknown, and D_Natural's accuracy on them, at {when_label(when)} (paper: "
                    "figure 5, which does not say at which checkpoint). Bands and bars: one standard error.",
                    f"p_true_{when}",
                    f"Accuracy on the questions called Unknown against their share, at {when_label(when)}",
                    lambda when=when: figure(data, when),  # type: ignore[misc]
                )
                for when in CHECKPOINTS
            ),
            wide(
                "SliCK's Unknown questions, and as many of least P(True); of those of equal P(True) at the edge each "
                "counts in part. Accuracies in percent, differences in points with 95 % intervals. Told apart: the "
                "chance that P(True) is higher for a question that D_Natural answers right than for one it does not; "
                "50 % is luck.",
                lambda: comparison_table(data, compared()),
            ),
            numbers("SliCK with fewer exemplar sets: the numbers of the figures.", lambda: prefix_table(data)),
            numbers("P(True) by threshold: the numbers of the figures.", lambda: sweep_table(data)),
        ),
    )


def words(data: StudyData, compared: Callable[[], Compared]) -> list[str]:
    """What the comparison says, in two sentences; nothing where it cannot be made."""
    try:
        found = compared()
        told = {when: separation(data, when) for when in CHECKPOINTS}
    except NotTestable:
        return []
    parts = [f"{points(one.slick)} against {points(one.p_true)} % at {when_label(when)}" for when, one in found.items()]
    first = found[EARLY]
    return [
        f"Here each calls {first.num:,} questions Unknown, {first.share:.0f} %; SliCK's are answered right "
        f"{' and '.join(_verdict(one) for one in _alike(list(found.values())))}: {', and '.join(parts)}.",
        f"Of a question that D_Natural answers right at early stop and one that it does not, P(True) is higher for the "
        f"first in {told[EARLY]:.0f} % of all pairs; luck makes 50 %.",
        *([f"But {caveat}."] if data.p_true is not None and (caveat := data.p_true.caveat) else []),
    ]


def _alike(found: list[Comparison]) -> list[Comparison]:
    """One of them where both say the same."""
    return found[:1] if len({_verdict(one) for one in found}) == 1 else found


def _verdict(one: Comparison) -> str:
    if abs(one.gap.value) <= Z * one.gap.se:
        return "as often as P(True)'s within noise"
    return f"{'less' if one.gap.value < 0 else 'more'} often than P(True)'s"


def figure(data: StudyData, when: When) -> Callable[[Any], None]:
    """P(True)'s curve, SliCK's over the number of exemplar sets, and SliCK's point; what is missing is left out.

    Raises:
        NotTestable: there is neither.
    """
    swept, why = _or_reason(lambda: sweep(data, when))
    curve, other = _or_reason(lambda: prefix_curve(data, when))
    point, _ = _or_reason(lambda: slick_point(data, when))
    if swept is None and curve is None:
        raise NotTestable(f"{why}; {other}")

    def plot(axes: Any) -> None:
        if swept is not None:
            _draw_sweep(axes, swept)
        if curve is not None:
            _draw_curve(axes, curve)
        if point is not None:
            axes.plot([point.share], [point.accuracy.value], "o", color=BLUE, markersize=10, zorder=5, label="SliCK")
        axes.set_xlabel("Test questions called Unknown (%)")
        axes.set_ylabel("Accuracy on them (%)")
        axes.set_xlim(0, 102 if swept is not None else None)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend(loc="lower center", bbox_to_anchor=(0.44, 1.0), ncols=2, fontsize=11, handlelength=2.2)

    return plot


def comparison_table(data: StudyData, compared: Compared) -> Table:
    """SliCK and P(True) at SliCK's share, one row a checkpoint."""
    rows: list[tuple[Value, ...]] = []
    for when, one in compared.items():
        low, high = interval(one.gap)
        rows.append(
            (
                when_label(when),
                one.num,
                tenths(one.share),
                *(tenths(cell.value) for cell in (one.slick, one.p_true)),
                f"{tenths(one.gap.value):+.1f} ({tenths(low):+.1f} to {tenths(high):+.1f})",
                round(one.threshold, 4),
                _told_apart(data, when),
                one.gap.num_seeds,
            )
        )
    columns = ("D_Natural at", "Unknown", "% of all", "SliCK", "P(True)", "difference")
    return Table(name="p_true", columns=(*columns, "P(True) below", "told apart (%)", "seeds"), rows=tuple(rows))


def prefix_table(data: StudyData) -> Table:
    """SliCK's Unknown set and the accuracy on it, by number of exemplar sets."""
    both = zip(*(prefix_curve(data, when) for when in CHECKPOINTS), strict=True)
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (early.sets, round(early.share, 2), *_numbers(early.accuracy), *_numbers(last.accuracy)) for early, last in both
    )
    columns = ("exemplar_sets", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="exemplar_sets", columns=columns, rows=rows)


def sweep_table(data: StudyData) -> Table:
    """P(True)'s Unknown set and the accuracy on it, at some thresholds."""
    early, last = (sweep(data, when) for when in CHECKPOINTS)
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (
            round(float(early.thresholds[i]), 6),
            round(float(early.share[i]), 2),
            *(round(float(values[i]), 2) for one in (early, last) for values in (one.accuracy, one.se)),
        )
        for i in _some(early, _LISTED)
    )
    columns = ("threshold", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="p_true_thresholds", columns=columns, rows=rows)


def _or_reason(make: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return make(), ""
    except NotTestable as reason:
        return None, str(reason)


def _told_apart(data: StudyData, when: When) -> float | None:
    try:
        return tenths(separation(data, when))
    except NotTestable:
        return None


def _numbers(cell: Cell) -> tuple[float, float]:
    return round(cell.value, 2), round(cell.se, 2)


def _some(swept: Sweep, num: int) -> NDArray[np.int64]:
    """Places of about so many points, at even shares; the accuracy on very few questions says nothing."""
    enough = np.flatnonzero(swept.num >= LEAST_ROWS)
    if not len(enough):
        raise NotTestable(f"fewer than {LEAST_ROWS} test questions have P(True)")
    wanted = np.linspace(swept.share[enough[0]], 100.0, num)
    return np.unique(enough[np.minimum(np.searchsorted(swept.share[enough], wanted), len(enough) - 1)])


def _draw_sweep(axes: Any, swept: Sweep) -> None:
    at = _some(swept, _DRAWN)
    x, y, se = swept.share[at], swept.accuracy[at], swept.se[at]
    axes.fill_between(x, np.maximum(y - se, 0.0), y + se, color=ORANGE, alpha=0.2, linewidth=0)
    marker = "s" if len(at) <= 12 else ""
    axes.plot(x, y, "-", color=ORANGE, marker=marker, label="P(True), by threshold")


def _draw_curve(axes: Any, curve: list[PrefixPoint]) -> None:
    x, y = [point.share for point in curve], [point.accuracy.value for point in curve]
    down = [min(point.accuracy.se, point.accuracy.value) for point in curve]  # an accuracy is never below 0
    up = [point.accuracy.se for point in curve]
    axes.errorbar(
        x, y, [down, up], color=BLUE, marker="o", markersize=4, elinewidth=1.2, capsize=2,
        label=f"SliCK, {curve[0].sets} to {curve[-1].sets} exemplar sets",
    )  # fmt: skip
    axes.annotate("1 set", (x[0], y[0]), xytext=(8, -12), textcoords="offset points", fontsize=11, color=MUTED)
