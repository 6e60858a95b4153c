"""How popular the subjects of annotated questions and of training rows are, where the questions' source says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.charts import BLUE, CATEGORY_COLOURS, INK, VERMILLION, format_dot_axes, plot_interval_dots
from slick.report.data import StudyData
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    Z_95,
    InsufficientDataError,
    checkpoint_label,
    format_percent,
    round1,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.popularity import (
    HarmEstimate,
    PopularityData,
    RankCorrelation,
    VariantPopularity,
    category_shares,
    estimate_harm,
    load_popularity,
    popularity_bins,
    popularity_correlation,
    require_popularity,
    variant_popularity,
)
from slick.report.tables import CellValue, Table
from slick.types import ALL_CATEGORIES, Category

ROW_KINDS = ("unknown", "category", "natural", "concentrated")
"""Fine-tuning sets whose rows the shown table compares."""


@section(
    "popularity", title="Popular and unpopular subjects", group=GROUP_EXTENSIONS, order=150, experiment="popularity"
)
def popularity_section(data: StudyData) -> SectionBody:
    """The section; without popularity in the source of the questions it says what is missing."""
    return SectionBody(
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
                "Popularity of the training rows: median, quartiles, and the median of Known and of Unknown rows; test "
                "accuracy at convergence. Matched: percent of a set's rows that find a partner of the same quantile in "
                "the set without Unknown rows; where it is low, these sets cannot tell the harm of Unknown rows from "
                "that of unpopular ones.",
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
        f"At {checkpoint_label(CONVERGENCE)} {format_percent(most)} Unknown rows harm Known test questions, more than "
        f"chance explains, in {harmed} of {len(changes)} quantiles of popularity (from the least popular {listed} "
        "points). " + _matched_sentence(data, most)
    )


def _matched_sentence(data: StudyData, share: float) -> str:
    """How far the sets that were compared can be matched on the popularity of their rows."""
    name = dict(data.sweep_variants())[share]
    matched_share = next((one.matched_share for one in variant_popularity(data) if one.name == name), None)
    if matched_share is None:
        return ""
    return (
        f"{format_percent(matched_share)} of their training rows can be matched on popularity with rows of the set "
        "without them. "
    )


def _left_out_sentence(data: StudyData) -> str:
    popularity = data.part(load_popularity, None, data.variants)
    if popularity is None or not popularity.num_unknown_popularity:
        return ""
    return f" {popularity.num_unknown_popularity:,} annotated questions of unknown popularity are left out."


def _best_correlation(known: PopularityData) -> tuple[str, RankCorrelation]:
    """With sampled answers, which tell more degrees of knowledge, or with greedy ones where samples were left out."""
    if np.isnan(known.sampled).any():
        return "greedy", popularity_correlation(known.values, known.greedy)
    return "sampled", popularity_correlation(known.values, known.sampled)


def variant_popularity_table(data: StudyData, kinds: tuple[str, ...]) -> Table:
    """One row a fine-tuning set: how popular its rows are, and its test accuracy where it was trained."""
    rows: list[tuple[CellValue, ...]] = []
    for one in variant_popularity(data):
        if data.variants[one.name].kind not in kinds:
            continue
        low, middle, high = (_format_number(value) for value in one.quartiles)
        medians = (_format_number(one.median_known), _format_number(one.median_unknown))
        matched_share = None if one.matched_share is None else round1(100 * one.matched_share)
        rows.append(
            (
                one.name,
                one.num,
                middle,
                f"{low} to {high}",
                *medians,
                matched_share,
                _accuracy_at_convergence(data, one),
            )
        )
    columns = ("fine-tuned on", "rows", "median", "quartiles", "of Known", "of Unknown")
    return Table(name="popularity_rows", columns=(*columns, "matched (%)", "accuracy (%)"), rows=tuple(rows))


def quantile_table(data: StudyData) -> Table:
    """One row a fine-tuning set, of every kind: percent of its rows in each quantile."""
    labels = popularity_bins(require_popularity(data)).labels
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (one.name, one.num, *(round(100 * share, 2) for share in one.shares)) for one in variant_popularity(data)
    )
    return Table(name="popularity_quantiles", columns=("fine-tuned on", "rows", *labels), rows=rows)


def correlation_table(known: PopularityData) -> Table:
    """All questions, then each relation: popularity against greedy and against sampled answers."""
    rows: list[tuple[CellValue, ...]] = []
    for relation in (ALL_CATEGORIES, *np.unique(known.relations).tolist()):
        mask = np.ones(len(known.values), dtype=bool) if relation == ALL_CATEGORIES else known.relations == relation
        cells: list[CellValue] = []
        missing_reason: list[str] = []
        for p_correct in (known.greedy, known.sampled):
            try:
                cells.append(format_correlation(popularity_correlation(known.values[mask], p_correct[mask])))
            except InsufficientDataError as reason:
                cells.append(None)
                missing_reason.append(str(reason))
        rows.append((relation, int(mask.sum()), *cells, "; ".join(dict.fromkeys(missing_reason))))
    columns = ("relation", "questions", "greedy answers", "sampled answers", "missing")
    return Table(name="popularity_correlation", columns=columns, rows=tuple(rows), total_rows=frozenset({0}))


def popularity_category_table(known: PopularityData) -> Table:
    """One row a quantile: questions, and percent of each category."""
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)
    counts = np.bincount(bins.bin_of_question)
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (label, int(num), *(round(float(share), 2) for share in shares))
        for label, num, shares in zip(bins.labels, counts, shares_BC, strict=True)
    )
    columns = ("popularity", "questions", *(f"{category}_percent" for category in Category))
    return Table(name="popularity_categories", columns=columns, rows=rows)


def harm_table(data: StudyData) -> Table:
    """Every comparison, with reasons for what is missing."""
    labels = popularity_bins(require_popularity(data)).labels
    rows: list[tuple[CellValue, ...]] = []
    for one in estimate_harm(data):
        cells: tuple[CellValue, ...] = (None,) * 7
        if one.comparison is not None:
            first, second, change, num = one.comparison
            values = (
                first.value,
                second.value,
                change.value,
                change.value - Z_95 * change.se,
                change.value + Z_95 * change.se,
            )
            cells = (num, *(round(value, 3) for value in values), change.num_seeds)
        rows.append(
            (
                round(100 * one.share),
                checkpoint_label(one.checkpoint),
                one.category,
                labels[one.quantile],
                *cells,
                one.missing_reason,
            )
        )
    columns = (
        "unknown_percent",
        "checkpoint",
        "test_questions",
        "popularity",
        "questions",
        "accuracy_percent",
        "accuracy_without_unknown",
        "change_points",
        "low",
        "high",
        "seeds",
        "missing",
    )
    return Table(name="popularity_harm", columns=columns, rows=tuple(rows))


def format_correlation(found: RankCorrelation) -> str:
    """A correlation and its 95 % interval.

    >>> format_correlation(RankCorrelation(0.437, 0.41, 0.4612, 4720))
    '0.44 (0.41 to 0.46)'
    """
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _format_number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _accuracy_at_convergence(data: StudyData, one: VariantPopularity) -> float | None:
    try:
        return round1(data.accuracy(one.name, CONVERGENCE).value)
    except InsufficientDataError:
        return None
