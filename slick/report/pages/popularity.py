"""The section on popularity: what is known of popular subjects, and whether it is they that Unknown rows harm."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z, percent, tenths, when_label
from slick.analysis.popularity import Correlation, Popularity, category_shares, correlation, popularity_bins
from slick.analysis.popularity_harm import Harm, harms, known_popularity, row_popularity
from slick.analysis.terms import LAST, POOLED, NotTestable
from slick.report.dots import dots, rows_of_dots
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import Section, drawn, numbers, wide
from slick.report.pages.popularity_tables import (
    category_table,
    correlation_table,
    correlation_text,
    harm_table,
    quantile_table,
    rows_table,
)
from slick.report.style import BLUE, INK, VERMILLION
from slick.types import Category

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
                "Popularity of the training rows: median, quartiles, and the median of Known and of Unknown rows; "
                "test accuracy at convergence. Matched: percent of a set's rows that find a partner of the same "
                "quantile in the set without Unknown rows; where it is low, these sets cannot tell the harm of Unknown "
                "rows from that of unpopular ones.",
                lambda: rows_table(data, ROW_KINDS),
            ),
            numbers(
                "Spearman's rank correlation of popularity with P_Correct by relation, with 95 % intervals.",
                lambda: correlation_table(known_popularity(data)),
            ),
            numbers("How many rows of each set are in each quantile, in percent.", lambda: quantile_table(data)),
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
    said = f"P_Correct of {name} answers {verb} with popularity (rank correlation {correlation_text(found)})."
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
    listed = ", ".join(f"{tenths(change.value):+.1f}" for change in changes)
    return (
        f"At {when_label(LAST)} {percent(most)} Unknown rows harm Known test questions, more than chance explains, in "
        f"{harmed} of {len(changes)} quantiles of popularity (from the least popular {listed} points). "
        + _matched_words(data, most)
    )


def _matched_words(data: StudyData, share: float) -> str:
    """How far the sets that were compared can be matched on the popularity of their rows."""
    name = dict(data.sweep())[share]
    matched = next((one.matched for one in row_popularity(data) if one.name == name), None)
    if matched is None:
        return ""
    return f"{percent(matched)} of their training rows can be matched on popularity with rows of the set without them. "


def _left_out(data: StudyData) -> str:
    if data.popularity is None or not data.popularity.num_without:
        return ""
    return f" {data.popularity.num_without:,} annotated questions of unknown popularity are left out."


def _best_correlation(known: Popularity) -> tuple[str, Correlation]:
    """With sampled answers, which tell more degrees of knowledge, or with greedy ones where samples were left out."""
    if np.isnan(known.sampled).any():
        return "greedy", correlation(known.values, known.greedy)
    return "sampled", correlation(known.values, known.sampled)
