"""Knowledge and harm by popularity of the subject, if the source of the questions has it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.formatting import format_percent
from slick.report.charts import (
    BLUE,
    CATEGORY_COLOURS,
    VERMILLION,
    format_dot_axes,
    plot_interval_dots,
    plot_stacked_bars,
)
from slick.report.data import StudyData
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    Z_95,
    InsufficientDataError,
    checkpoint_label,
    format_with_interval,
    round1,
    rounded_with_interval,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.intervals import RankStatistic
from slick.report.statistics.popularity import (
    HarmEstimate,
    PopularityData,
    category_shares,
    estimate_harm,
    format_popularity,
    load_popularity,
    popularity_bins,
    popularity_correlation,
    require_popularity,
    variant_popularity,
)
from slick.report.tables import CellValue, Row, Table
from slick.types import ALL_CATEGORIES, Category

ROW_KINDS = ("unknown", "category", "natural", "concentrated")
"""Kinds of fine-tuning sets that the table compares."""


@section("popularity", title="Popularity of subjects", group=GROUP_EXTENSIONS, order=150, experiment="popularity")
def popularity_section(data: StudyData) -> SectionBody:
    """Categories and harm of Unknown rows by quantile of popularity."""
    result, *details = summary_sentences(data) or [""]
    return SectionBody(
        result=result,
        text=f"{''.join(f'{sentence} ' for sentence in details)}Unknown questions are mostly about unpopular "
        "subjects, and fine-tuning on these may harm by itself (Ghosal et al. 2024, arXiv:2406.14785). The harm of "
        "Unknown rows is therefore measured within quantiles of popularity over all annotated questions. In a "
        f"synthetic world, popularity is the number of documents that mention a subject.{_excluded_sentence(data)}",
        exhibits=(
            figure_exhibit(
                "Percent of questions per category in each quantile of popularity.",
                "popularity_categories",
                "Share of each category by quantile of popularity",
                lambda: popularity_category_figure(require_popularity(data)),
            ),
            figure_exhibit(
                "Change of accuracy on Known test questions from 0 % to 50 % and 100 % Unknown rows, at convergence, "
                "by popularity of the test question, in points with 95 % intervals.",
                "popularity_harm",
                "Change of accuracy with Unknown rows, by quantile of popularity",
                lambda: harm_figure(data),
            ),
            table_exhibit(
                "Popularity of the training rows: median, quartiles, and the medians of Known and of Unknown rows; "
                "test accuracy at convergence. Matched: percent of a set's rows that can be matched with a row of the "
                "same quantile in the set without Unknown rows. Where it is low, these sets do not separate the harm "
                "of Unknown rows from that of unpopular subjects.",
                lambda: variant_popularity_table(data, ROW_KINDS),
            ),
            collapsed_table_exhibit(
                "Spearman's rank correlation of popularity with P_Correct by relation, with 95 % intervals.",
                lambda: correlation_table(require_popularity(data)),
            ),
            collapsed_table_exhibit("Percent of the rows of each set in each quantile.", lambda: quantile_table(data)),
            collapsed_table_exhibit(
                "Data of the first figure.", lambda: popularity_category_table(require_popularity(data))
            ),
            collapsed_table_exhibit(
                "Data of the second figure, also at early stop and on all test questions.", lambda: harm_table(data)
            ),
        ),
    )


def summary_sentences(data: StudyData) -> list[str]:
    """The correlation of knowledge with popularity and the harm by quantile; empty without data."""
    best, _ = value_or_reason(lambda: _best_correlation(require_popularity(data)))
    if best is None:
        return []
    name, correlation = best
    verb = "rises" if correlation.low > 0 else "falls" if correlation.high < 0 else "does not change significantly"
    return [
        *_harm_sentences(data),
        f"P_Correct of {name} answers {verb} with popularity (rank correlation {_format_correlation(correlation)}).",
    ]


def _best_correlation(known: PopularityData) -> tuple[str, RankStatistic]:
    """The correlation with sampled answers, whose resolution is finer, or with greedy ones if samples were skipped."""
    if np.isnan(known.sampled).any():
        return "greedy", popularity_correlation(known.values, known.greedy)
    return "sampled", popularity_correlation(known.values, known.sampled)


def _format_correlation(correlation: RankStatistic) -> str:
    return format_with_interval(correlation.value, correlation.low, correlation.high, ".2f")


def _harm_at_convergence(data: StudyData) -> list[HarmEstimate]:
    """The harm to Known test questions at convergence, by share and quantile."""
    return [e for e in estimate_harm(data) if (e.checkpoint, e.category) == (CONVERGENCE, ANY_KNOWN)]


def _harm_sentences(data: StudyData) -> list[str]:
    """The number of quantiles in which the largest share of Unknown rows harms Known questions at convergence."""
    estimates, _ = value_or_reason(_harm_at_convergence, data)
    compared = [estimate for estimate in estimates or () if estimate.comparison]
    if not compared:
        return []
    largest_share = max(estimate.share for estimate in compared)
    changes = [
        estimate.comparison.change for estimate in compared if estimate.share == largest_share and estimate.comparison
    ]
    harmed = sum(change.value < -Z_95 * change.se for change in changes)
    values = ", ".join(f"{round1(change.value):+.1f}" for change in changes)
    return [
        f"At {checkpoint_label(CONVERGENCE)}, {format_percent(largest_share)} Unknown rows significantly reduce "
        f"accuracy on Known test questions in {harmed} of {len(changes)} quantiles of popularity (from the least "
        f"popular: {values} points).",
        *_matched_sentence(data, largest_share),
    ]


def _matched_sentence(data: StudyData, share: float) -> list[str]:
    """How many rows of the compared sets can be matched on popularity."""
    name = dict(data.sweep_variants())[share]
    matched_share = next((variant.matched_share for variant in variant_popularity(data) if variant.name == name), None)
    if matched_share is None:
        return []
    return [
        f"{format_percent(matched_share)} of their training rows can be matched on popularity with rows of the set "
        "without Unknown rows."
    ]


def _excluded_sentence(data: StudyData) -> str:
    popularity = data.load_cached(load_popularity, None, data.variants)
    if popularity is None or not popularity.num_unknown_popularity:
        return ""
    return f" {popularity.num_unknown_popularity:,} annotated questions of unknown popularity are excluded."


def popularity_category_figure(known: PopularityData) -> Callable[[Any], None]:
    """Stacked bars of the categories, one per quantile."""
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)

    parts = {str(category): shares_BC[:, column] for column, category in enumerate(Category)}
    colours = {str(category): CATEGORY_COLOURS[category][0] for category in Category}

    def plot(axes: Any) -> None:
        plot_stacked_bars(axes, range(len(bins.labels)), parts, colours, height=0.72, dark_text=[Category.WEAKLY_KNOWN])
        axes.set_yticks(range(len(bins.labels)), bins.labels)
        axes.set_ylim(len(bins.labels) - 0.5, -0.5)
        axes.set_ylabel("Popularity")
        axes.set_xlabel("Questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.44, 1.0), ncols=2, fontsize=11)

    return plot


def harm_figure(data: StudyData) -> Callable[[Any], None]:
    """Changes of accuracy with intervals by quantile and share of Unknown rows."""
    labels = popularity_bins(require_popularity(data)).labels
    estimates = _harm_at_convergence(data)
    if not any(estimate.comparison for estimate in estimates):
        raise InsufficientDataError("; ".join(dict.fromkeys(estimate.missing_reason for estimate in estimates)))
    shares = sorted({estimate.share for estimate in estimates})

    def plot(axes: Any) -> None:
        for i, share in enumerate(shares):
            colour, marker = ((BLUE, "o"), (VERMILLION, "s"))[share == 1.0]
            cells = [
                estimate.comparison.change if estimate.comparison else None
                for estimate in estimates
                if estimate.share == share
            ]
            shift = 0.32 * (i - (len(shares) - 1) / 2)
            plot_interval_dots(axes, cells, colour, marker, shift=shift, label=f"{format_percent(share)} Unknown")
        format_dot_axes(axes, labels, "Change from 0 % Unknown (points)")
        axes.set_ylabel("Popularity")

    return plot


def variant_popularity_table(data: StudyData, kinds: tuple[str, ...]) -> Table:
    """Popularity of the rows of each fine-tuning set, and its test accuracy if it was trained."""
    rows: list[Row] = []
    for variant in variant_popularity(data):
        if data.variants[variant.name].kind not in kinds:
            continue
        low, middle, high = map(format_popularity, variant.quartiles)
        medians = (None if m is None else format_popularity(m) for m in (variant.median_known, variant.median_unknown))
        accuracy, _ = value_or_reason(data.accuracy, variant.name, CONVERGENCE)
        matched_share = None if variant.matched_share is None else round1(100 * variant.matched_share)
        rows.append(
            (
                variant.name,
                variant.num,
                middle,
                f"{low} to {high}",
                *medians,
                matched_share,
                None if accuracy is None else round1(accuracy.value),
            )
        )
    columns = ("fine-tuned on", "rows", "median", "quartiles", "of Known", "of Unknown")
    return Table(name="popularity_rows", columns=(*columns, "matched (%)", "accuracy (%)"), rows=tuple(rows))


def quantile_table(data: StudyData) -> Table:
    """Percent of rows in each quantile, one row per fine-tuning set of any kind."""
    labels = popularity_bins(require_popularity(data)).labels
    rows: tuple[Row, ...] = tuple(
        (variant.name, variant.num, *(round(100 * share, 2) for share in variant.shares))
        for variant in variant_popularity(data)
    )
    return Table(name="popularity_quantiles", columns=("fine-tuned on", "rows", *labels), rows=rows)


def correlation_table(known: PopularityData) -> Table:
    """Rank correlations of popularity with P_Correct over all questions and by relation."""
    rows: list[Row] = []
    for relation in (ALL_CATEGORIES, *np.unique(known.relations).tolist()):
        mask = np.ones(len(known.values), dtype=bool) if relation == ALL_CATEGORIES else known.relations == relation
        cells: list[CellValue] = []
        reasons: list[str] = []
        for p_correct in (known.greedy, known.sampled):
            correlation, reason = value_or_reason(popularity_correlation, known.values[mask], p_correct[mask])
            cells.append(None if correlation is None else _format_correlation(correlation))
            reasons += [reason] if reason else []
        rows.append((relation, int(mask.sum()), *cells, "; ".join(dict.fromkeys(reasons))))
    columns = ("relation", "questions", "greedy answers", "sampled answers", "missing")
    return Table(name="popularity_correlation", columns=columns, rows=tuple(rows), total_rows=frozenset({0}))


def popularity_category_table(known: PopularityData) -> Table:
    """Number of questions and percent of each category by quantile."""
    bins = popularity_bins(known)
    shares_BC = 100 * category_shares(known, bins)
    counts = np.bincount(bins.bin_of_question)
    rows: tuple[Row, ...] = tuple(
        (label, int(num), *(round(float(share), 2) for share in shares))
        for label, num, shares in zip(bins.labels, counts, shares_BC, strict=True)
    )
    columns = ("popularity", "questions", *(f"{category}_percent" for category in Category))
    return Table(name="popularity_categories", columns=columns, rows=rows)


def harm_table(data: StudyData) -> Table:
    """Every comparison, with reasons for missing ones."""
    labels = popularity_bins(require_popularity(data)).labels
    rows: list[Row] = []
    for estimate in estimate_harm(data):
        cells: Row = (None,) * 7
        if estimate.comparison is not None:
            first, second, change, num = estimate.comparison
            accuracies = (round(first.value, 3), round(second.value, 3))
            cells = (num, *accuracies, *rounded_with_interval(change), change.num_seeds)
        rows.append(
            (
                round(100 * estimate.share),
                checkpoint_label(estimate.checkpoint),
                estimate.category,
                labels[estimate.quantile],
                *cells,
                estimate.missing_reason,
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
