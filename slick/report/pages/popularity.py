"""The section on popularity: what is known of popular subjects, and whether it is they that Unknown rows harm."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z_95, checkpoint_label, format_percent, round1
from slick.analysis.popularity import (
    PopularityData,
    RankCorrelation,
    category_shares,
    popularity_bins,
    popularity_correlation,
)
from slick.analysis.popularity_harm import HarmEstimate, estimate_harm, require_popularity, variant_popularity
from slick.analysis.terms import ANY_KNOWN, CONVERGENCE, InsufficientDataError
from slick.report.dots import format_dot_axes, plot_interval_dots
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.pages.popularity_tables import (
    correlation_table,
    format_correlation,
    harm_table,
    popularity_category_table,
    quantile_table,
    variant_popularity_table,
)
from slick.report.style import BLUE, INK, VERMILLION
from slick.types import Category

ROW_KINDS = ("unknown", "category", "natural", "concentrated")
"""Fine-tuning sets whose rows the shown table compares."""


def popularity_section(data: StudyData) -> Section:
    """The section; without popularity in the source of the questions it says what is missing."""
    return Section(
        name="popularity",
        title="Popular and unpopular subjects",
        text=f"{summary_text(data)}What a model does not know is mostly about unpopular subjects, and fine-tuning "
        f"on these "
        "may harm by itself (Ghosal et al. 2024, arXiv:2406.14785). So the harm of Unknown rows is looked at within "
        "quantiles of popularity, cut over all annotated questions; in a world popularity is the number of documents "
        f"that mention a subject.{_left_out_sentence(data)}",
        exhibits=(
            figure_exhibit(
                "Categories of the questions in each quantile of popularity, in percent.",
                "popularity_categories",
                "Share of each category by quantile of popularity",
                lambda: popularity_category_figure(require_popularity(data)),
            ),
            figure_exhibit(
                "Change of accuracy on Known test questions from no Unknown rows to a half and to nothing else, at "
                "convergence, by popularity of the test question, in points with 95 % intervals.",
                "popularity_harm",
                "Change of accuracy with Unknown rows, by quantile of popularity",
                lambda: harm_figure(data),
            ),
            table_exhibit(
                "Popularity of the training rows: median, quartiles, and the median of Known and of Unknown rows; "
                "test accuracy at convergence. Matched: percent of a set's rows that find a partner of the same "
                "quantile in the set without Unknown rows; where it is low, these sets cannot tell the harm of Unknown "
                "rows from that of unpopular ones.",
                lambda: variant_popularity_table(data, ROW_KINDS),
            ),
            collapsed_table_exhibit(
                "Spearman's rank correlation of popularity with P_Correct by relation, with 95 % intervals.",
                lambda: correlation_table(require_popularity(data)),
            ),
            collapsed_table_exhibit(
                "How many rows of each set are in each quantile, in percent.", lambda: quantile_table(data)
            ),
            collapsed_table_exhibit(
                "All numbers of the first figure.", lambda: popularity_category_table(require_popularity(data))
            ),
            collapsed_table_exhibit(
                "All numbers of the second figure, also at early stop and on all test questions.",
                lambda: harm_table(data),
            ),
        ),
    )


def summary_text(data: StudyData) -> str:
    """What was found, in one or two sentences; nothing where nothing can be told."""
    try:
        known = require_popularity(data)
        name, found = _best_correlation(known)
    except InsufficientDataError:
        return ""
    verb = "rises" if found.low > 0 else "falls" if found.high < 0 else "neither rises nor falls, beyond chance,"
    said = f"P_Correct of {name} answers {verb} with popularity (rank correlation {format_correlation(found)})."
    return f"{said} {_harm_sentences(data)}"


def popularity_category_figure(known: PopularityData) -> Callable[[Any], None]:
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
                    axes.annotate(
                        f"{wide_:.0f}",
                        (start + wide_ / 2, row),
                        ha="center",
                        va="center",
                        fontsize=10.5,
                        color=INK if category == Category.WEAKLY_KNOWN else "white",
                    )
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
    labels = popularity_bins(require_popularity(data)).labels
    found = [one for one in estimate_harm(data) if (one.checkpoint, one.category) == (CONVERGENCE, ANY_KNOWN)]
    if not any(one.comparison for one in found):
        raise InsufficientDataError("; ".join(dict.fromkeys(one.missing_reason for one in found)))
    shares = sorted({one.share for one in found})

    def plot(axes: Any) -> None:
        for i, share in enumerate(shares):
            colour, marker = ((BLUE, "o"), (VERMILLION, "s"))[share == 1.0]
            cells = [one.comparison.change if one.comparison else None for one in found if one.share == share]
            shift = 0.32 * (i - (len(shares) - 1) / 2)
            plot_interval_dots(axes, cells, colour, marker, shift=shift, label=f"{format_percent(share)} Unknown")
        format_dot_axes(axes, labels, "Change from 0 % Unknown (points)")
        axes.set_ylabel("Popularity")

    return plot


def _harm_sentences(data: StudyData) -> str:
    """In how many quantiles the largest share of Unknown rows harms Known questions at convergence."""
    try:
        found = [
            one
            for one in estimate_harm(data)
            if (one.checkpoint, one.category) == (CONVERGENCE, ANY_KNOWN) and one.comparison
        ]
    except InsufficientDataError:
        return ""
    most = max((one.share for one in found), default=0.0)
    mine: list[HarmEstimate] = [one for one in found if one.share == most]
    changes = [one.comparison.change for one in mine if one.comparison]
    if not changes:
        return ""
    harmed = sum(change.value < -Z_95 * change.se for change in changes)
    listed = ", ".join(f"{round1(change.value):+.1f}" for change in changes)
    return (
        f"At {checkpoint_label(CONVERGENCE)} {format_percent(most)} Unknown rows harm Known test questions, more "
        f"than chance explains, in "
        f"{harmed} of {len(changes)} quantiles of popularity (from the least popular {listed} points). "
        + _matched_sentence(data, most)
    )


def _matched_sentence(data: StudyData, share: float) -> str:
    """How far the sets that were compared can be matched on the popularity of their rows."""
    name = dict(data.sweep_variants())[share]
    matched_share = next((one.matched_share for one in variant_popularity(data) if one.name == name), None)
    if matched_share is None:
        return ""
    return (
        f"{format_percent(matched_share)} of their training rows can be matched on popularity "
        f"with rows of the set without them. "
    )


def _left_out_sentence(data: StudyData) -> str:
    if data.popularity is None or not data.popularity.num_unknown_popularity:
        return ""
    return f" {data.popularity.num_unknown_popularity:,} annotated questions of unknown popularity are left out."


def _best_correlation(known: PopularityData) -> tuple[str, RankCorrelation]:
    """With sampled answers, which tell more degrees of knowledge, or with greedy ones where samples were left out."""
    if np.isnan(known.sampled).any():
        return "greedy", popularity_correlation(known.values, known.greedy)
    return "sampled", popularity_correlation(known.values, known.sampled)
