"""The section on popularity: what is known of popular subjects, and whether it is they that Unknown rows harm."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.popularity import Correlation, Popularity, category_shares, correlation, popularity_bins
from slick.analysis.popularity_harm import Harm, RowPopularity, harms, known_popularity, row_popularity
from slick.analysis.terms import LAST, POOLED, NotTestable
from slick.analysis.verdict import Z, percent, tenths, when_label
from slick.report.dots import change_text, dots, rows_of_dots
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import Section, drawn, numbers, wide
from slick.report.style import BLUE, INK, VERMILLION
from slick.report.tables import Table, Value
from slick.types import ALL, Category

ROW_KINDS = ("unknown", "category", "natural", "concentrated")
"""Fine-tuning sets whose rows the shown table compares."""


def section(data: StudyData) -> Section:
    """The section; without popularity in the source of the questions it says what is missing."""
    return Section(
        name="popularity",
        title="Popular and unpopular subjects",
        text=f"{words(data)}What a model does not know is mostly about unpopular subjects, and fine-tuning on these "
        "may harm by itself (Ghosal et al. 2024, arXiv:2406.14785). So the harm of Unknown rows is looked at within "
        "quantiles of popularity, cut over all annotated questions; in a world popularity is the number of documents "
        f"that mention a subject.{_left_out(data)}",
        exhibits=(
            drawn(
                "Categories of the questions in each quantile of popularity, in percent.",
                "popularity_categories",
                "Share of each category by quantile of popularity",
                lambda: category_figure(known_popularity(data)),
            ),
            drawn(
                "Change of accuracy on Known test questions from no Unknown rows to a half and to nothing else, at "
                "convergence, by popularity of the test question, in points with 95 % intervals.",
                "popularity_harm",
                "Change of accuracy with Unknown rows, by quantile of popularity",
                lambda: harm_figure(data),
            ),
            wide(
                "Popularity of the training rows. Matched: percent of a set's rows that find a partner of the same "
                "quantile in the set without Unknown rows; where it is low, these sets cannot tell the harm of Unknown "
                "rows from that of unpopular ones.",
                lambda: rows_table(data, ROW_KINDS),
            ),
            wide(
                "Spearman's rank correlation of popularity with P_Correct, with 95 % intervals.",
                lambda: correlation_table(known_popularity(data)),
            ),
            numbers("All numbers of the first figure.", lambda: category_table(known_popularity(data))),
            numbers(
                "All numbers of the second figure, also at early stop and on all test questions.",
                lambda: harm_table(data),
            ),
        ),
    )


def words(data: StudyData) -> str:
    """What was found, in one or two sentences; nothing where nothing can be told."""
    try:
        known = known_popularity(data)
        name, found = _best_correlation(known)
    except NotTestable:
        return ""
    verb = "rises" if found.low > 0 else "falls" if found.high < 0 else "neither rises nor falls, beyond chance,"
    said = f"P_Correct of {name} answers {verb} with popularity (rank correlation {_correlation(found)})."
    return f"{said} {_harm_words(data)}"


def category_figure(known: Popularity) -> Callable[[Any], None]:
    """Bars of 100 %, one a quantile, parted by category.

    Raises:
        NotTestable: all subjects are equally popular.
    """
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)

    def plot(axes: Any) -> None:
        left = np.zeros(len(bins.labels))
        for column, category in enumerate(Category):
            colour = CATEGORY_COLOURS[category][0]
            width: NDArray[np.float64] = shares_BC[:, column]
            axes.barh(range(len(width)), width, 0.72, left=left, color=colour, edgecolor="white", label=str(category))
            for row, (start, wide_) in enumerate(zip(left, width, strict=True)):
                if wide_ >= 6:
                    axes.annotate(f"{wide_:.0f}", (start + wide_ / 2, row), ha="center", va="center", fontsize=10.5,
                                  color=INK if category == Category.WEAKLY_KNOWN else "white")  # fmt: skip
            left += width
        axes.set_yticks(range(len(left)), bins.labels)
        axes.set_ylim(len(left) - 0.5, -0.5)
        axes.set_ylabel("Popularity")
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.44, 1.0), ncols=2, fontsize=11)

    return plot


def harm_figure(data: StudyData) -> Callable[[Any], None]:
    """A dot for each quantile and share of Unknown rows.

    Raises:
        NotTestable: nothing could be compared.
    """
    labels = popularity_bins(known_popularity(data)).labels
    found = [one for one in harms(data) if (one.when, one.category) == (LAST, POOLED)]
    if not any(one.compared for one in found):
        raise NotTestable("; ".join(dict.fromkeys(one.why for one in found)))
    shares = sorted({one.share for one in found})

    def plot(axes: Any) -> None:
        for i, share in enumerate(shares):
            colour, marker = ((BLUE, "o"), (VERMILLION, "s"))[share == 1.0]
            cells = [one.compared.change if one.compared else None for one in found if one.share == share]
            shift = 0.32 * (i - (len(shares) - 1) / 2)
            dots(axes, cells, colour, marker, shift=shift, label=f"{percent(share)} Unknown")
        rows_of_dots(axes, labels, "Change from 0 % Unknown (points)")
        axes.set_ylabel("Popularity")

    return plot


def rows_table(data: StudyData, kinds: tuple[str, ...]) -> Table:
    """One row a fine-tuning set: how popular its rows are, and its test accuracy where it was trained."""
    labels = popularity_bins(known_popularity(data)).labels
    rows: list[tuple[Value, ...]] = []
    for one in row_popularity(data):
        if data.variants[one.name].kind not in kinds:
            continue
        low, middle, high = (_number(value) for value in one.quartiles)
        medians = (_number(one.median_known), _number(one.median_unknown))
        matched = None if one.matched is None else tenths(100 * one.matched)
        shares = (tenths(100 * share) for share in one.shares)
        rows.append((one.name, one.num, middle, f"{low} to {high}", *medians, *shares, matched, _at_the_end(data, one)))
    bins = tuple(f"popularity {label} (%)" for label in labels)
    columns = ("fine-tuned on", "rows", "median", "quartiles", "median of Known", "median of Unknown", *bins)
    return Table(name="popularity_rows", columns=(*columns, "matched (%)", "test accuracy (%)"), rows=tuple(rows))


def correlation_table(known: Popularity) -> Table:
    """All questions, then each relation: popularity against greedy and against sampled answers."""
    rows: list[tuple[Value, ...]] = []
    for relation in (ALL, *np.unique(known.relations).tolist()):
        mask = np.ones(len(known.values), dtype=bool) if relation == ALL else known.relations == relation
        cells: list[Value] = []
        why: list[str] = []
        for p_correct in (known.greedy, known.sampled):
            try:
                cells.append(_correlation(correlation(known.values[mask], p_correct[mask])))
            except NotTestable as reason:
                cells.append(None)
                why.append(str(reason))
        rows.append((relation, int(mask.sum()), *cells, "; ".join(dict.fromkeys(why))))
    columns = ("relation", "questions", "greedy answers", "sampled answers", "missing")
    return Table(name="popularity_correlation", columns=columns, rows=tuple(rows), total_rows=frozenset({0}))


def category_table(known: Popularity) -> Table:
    """One row a quantile: questions, and percent of each category."""
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)
    counts = np.bincount(bins.of_question)
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (label, int(num), *(round(float(share), 2) for share in shares))
        for label, num, shares in zip(bins.labels, counts, shares_BC, strict=True)
    )
    columns = ("popularity", "questions", *(f"{category}_percent" for category in Category))
    return Table(name="popularity_categories", columns=columns, rows=rows)


def harm_table(data: StudyData) -> Table:
    """Every comparison, with reasons for what is missing."""
    labels = popularity_bins(known_popularity(data)).labels
    rows: list[tuple[Value, ...]] = []
    for one in harms(data):
        cells: tuple[Value, ...] = (None,) * 7
        if one.compared is not None:
            first, second, change, num = one.compared
            values = (
                first.value,
                second.value,
                change.value,
                change.value - Z * change.se,
                change.value + Z * change.se,
            )
            cells = (num, *(round(value, 3) for value in values), change.num_seeds)
        rows.append((round(100 * one.share), when_label(one.when), one.category, labels[one.quantile], *cells, one.why))
    columns = ("unknown_percent", "checkpoint", "test_questions", "popularity", "questions", "accuracy_percent",
               "accuracy_without_unknown", "change_points", "low", "high", "seeds", "missing")  # fmt: skip
    return Table(name="popularity_harm", columns=columns, rows=tuple(rows))


def _harm_words(data: StudyData) -> str:
    """In how many quantiles the largest share of Unknown rows harms Known questions at convergence."""
    try:
        found = [one for one in harms(data) if (one.when, one.category) == (LAST, POOLED) and one.compared]
    except NotTestable:
        return ""
    most = max((one.share for one in found), default=0.0)
    mine: list[Harm] = [one for one in found if one.share == most]
    changes = [one.compared.change for one in mine if one.compared]
    if not changes:
        return ""
    harmed = sum(change.value < -Z * change.se for change in changes)
    listed = ", ".join(change_text(change) for change in changes)
    return (
        f"At convergence {percent(most)} Unknown rows harm Known test questions, more than chance explains, in "
        f"{harmed} of {len(changes)} quantiles of popularity (from the least popular: {listed} points). "
    )


def _left_out(data: StudyData) -> str:
    if data.popularity is None or not data.popularity.num_without:
        return ""
    return f" {data.popularity.num_without:,} annotated questions of unknown popularity are left out."


def _best_correlation(known: Popularity) -> tuple[str, Correlation]:
    """With sampled answers, which tell more degrees of knowledge, or with greedy ones where samples were left out."""
    if np.isnan(known.sampled).any():
        return "greedy", correlation(known.values, known.greedy)
    return "sampled", correlation(known.values, known.sampled)


def _correlation(found: Correlation) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _at_the_end(data: StudyData, one: RowPopularity) -> float | None:
    try:
        return tenths(data.accuracy(one.name, LAST).value)
    except NotTestable:
        return None
