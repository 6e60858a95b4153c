"""Tables and the figure of the section on what lies behind Unknown."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slick.report.charts import CATEGORY_COLOURS, INK, MUTED
from slick.report.measurements import InsufficientDataError, format_with_interval, round1, value_or_reason
from slick.report.statistics import hidden
from slick.report.statistics.answer_spread import AnswerSpread, value_interval
from slick.report.statistics.hidden import Rankings
from slick.report.statistics.intervals import RankStatistic
from slick.report.tables import Row, Table
from slick.types import Category

_RANKED_FIRST, _RANKED_BELOW = "ranked correctly, never generated", "absent, or not told apart from absent"


def planted_k(
    rankings: Rankings, strengths: Mapping[str, str], included: set[str], unknown: bool, *, own: bool = False
) -> RankStatistic:
    """K by log-probability of the facts of some planted strengths, Unknown or Known, with its interval.

    Args:
        rankings: of the study.
        strengths: question_id -> planted strength.
        included: strengths.
        unknown: whether the facts are labelled Unknown.
        own: against the model's own wrong answers instead of distractors.

    Raises:
        InsufficientDataError: there are too few such facts.
    """
    mask = np.array([strengths.get(name) in included for name in rankings.question_ids.tolist()], dtype=bool)
    mask &= rankings.mask(Category.UNKNOWN) == unknown
    if own:
        return hidden.mean_interval(rankings.own[hidden.LOG_PROBABILITY][mask], rankings.clusters[mask])
    return hidden.distractor_interval(rankings, hidden.LOG_PROBABILITY, mask)


def k_figure(rankings: Rankings) -> Callable[[Any], None]:
    """K against distractors: a group of points per category, a marker per measure."""
    marks = {hidden.LOG_PROBABILITY: "o", hidden.PER_TOKEN: "s", hidden.P_TRUE: "^"}
    points = []
    for row, category in enumerate(Category):
        for number, measure in enumerate(hidden.MEASURES):
            statistic, _ = value_or_reason(hidden.distractor_interval, rankings, measure, rankings.mask(category))
            if statistic is not None:
                points.append((-row - 0.2 * (number - 1), measure, category, statistic))
    if not points:
        raise InsufficientDataError(f"needs {hidden.MIN_QUESTIONS} questions of a category with distractors")

    def plot(axes: Any) -> None:
        axes.axvline(50, color=MUTED, linewidth=1.2, linestyle=(0, (6, 3)))
        for y, measure, category, statistic in points:
            value, low, high = (100 * part for part in statistic[:3])
            colour, _ = CATEGORY_COLOURS[category]
            axes.errorbar([value], [y], xerr=[[value - low], [high - value]], fmt=marks[measure], color=colour)
        for measure, marker in marks.items():
            axes.plot([], [], marker, color=MUTED, label=measure)
        axes.set_yticks([-row for row in range(len(Category))], [str(category) for category in Category])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-len(Category) + 0.5, 0.5)
        axes.set_xlim(0, 103)
        axes.set_xlabel("K against distractors (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=1, fontsize=11)

    return plot


def split_table(rankings: Rankings) -> Table:
    """The split of the Unknown questions by each measure."""
    tested = hidden.claim_measures(rankings)
    rows: list[Row] = []
    for measure in hidden.MEASURES:
        share = hidden.hidden_share(rankings, measure, num_tests=len(tested))
        verdict = share.verdict if measure in tested else "not tested"
        rows.append(
            (
                measure,
                share.num,
                format_percent_interval(*share.k[:3], unit=""),
                format_percent_interval(share.share, share.low, share.high, unit=""),
                round1(100 * (1 - max(share.share, 0.0))),
                round1(100 * share.above_distractors),
                round1(100 * share.above_own),
                verdict,
            )
        )
    columns = ("measure", "questions", "K, distractors", _RANKED_FIRST, _RANKED_BELOW)
    above = ("above all distractors", "above own answers")
    return Table(name="hidden_split", columns=(*columns, *above, "hidden knowledge"), rows=tuple(rows))


def k_table(rankings: Rankings) -> Table:
    """K by category, kind of wrong answers and measure."""
    rows: list[Row] = []
    for category in Category:
        mask = rankings.mask(category)
        for name, values in (("own", rankings.own), ("distractors", rankings.against_distractors)):
            weights = rankings.num_distractors[mask] if name == "distractors" else None
            cells = [
                value_or_reason(hidden.mean_interval, values[measure][mask], rankings.clusters[mask], weights)[0]
                for measure in hidden.MEASURES
            ]
            num = int(np.isfinite(values[hidden.LOG_PROBABILITY][mask]).sum())
            formatted = (None if cell is None else format_percent_interval(*cell[:3], unit="") for cell in cells)
            rows.append((str(category), name, num, *formatted))
    return Table(
        name="hidden_k", columns=("category", "wrong answers", "questions", *hidden.MEASURES), rows=tuple(rows)
    )


def spread_table(spread: AnswerSpread) -> Table:
    """Entropy and agreement by category."""
    rows: list[Row] = []
    for category in Category:
        mask = spread.categories == category
        entropy, _ = value_or_reason(value_interval, spread.entropy[mask], spread.clusters[mask])
        agreement, _ = value_or_reason(hidden.mean_interval, spread.agreement[mask], spread.clusters[mask])
        rows.append(
            (
                str(category),
                int(mask.sum()),
                None if entropy is None else format_with_interval(*entropy[:3], ".2f"),
                None if agreement is None else format_percent_interval(*agreement[:3], unit=""),
            )
        )
    columns = ("category", "questions", "entropy (bits)", "agreement (%)")
    return Table(name="hidden_spread", columns=columns, rows=tuple(rows))


def unknown_table(rankings: Rankings) -> Table:
    """The Unknown questions, those with the highest ranks first."""
    rows: list[Row] = []
    for i in np.flatnonzero(rankings.mask(Category.UNKNOWN) & (rankings.num_distractors > 0)):
        own = rankings.own[hidden.LOG_PROBABILITY][i]
        is_first = rankings.against_distractors[hidden.LOG_PROBABILITY][i] == 1
        rows.append(
            (
                str(rankings.question_ids[i]),
                str(rankings.relations[i]),
                str(rankings.gold[i]),
                "yes" if is_first else "no",
                int(rankings.num_distractors[i]),
                *(
                    round1(100 * float(rankings.against_distractors[measure][i]))
                    for measure in (hidden.LOG_PROBABILITY, hidden.P_TRUE)
                ),
                round1(100 * float(own)) if np.isfinite(own) else None,
            )
        )
    if not rows:
        raise InsufficientDataError("no Unknown question has a distractor")
    rows.sort(key=lambda row: (-float(row[5] or 0), -int(row[4] or 0), str(row[0])))
    columns = ("question_id", "relation", "answer", "above_all_distractors", "distractors")
    ks = ("K_log_probability", "K_p_true", "K_own_log_probability")
    return Table(name="hidden_unknown", columns=(*columns, *ks), rows=tuple(rows))


def planted_table(rankings: Rankings, strengths: Mapping[str, str]) -> Table:
    """K by planted strength, of Unknown and of Known facts."""
    rows: list[Row] = []
    by_strength = Counter(
        (strengths[name], bool(is_unknown))
        for name, is_unknown in zip(rankings.question_ids.tolist(), rankings.mask(Category.UNKNOWN), strict=True)
        if name in strengths
    )
    for strength in ("never", "minority", "contested", "firm"):
        for unknown in (True, False):
            if not by_strength[strength, unknown]:
                continue
            statistics = [
                value_or_reason(planted_k, rankings, strengths, {strength}, unknown, own=own)[0]
                for own in (False, True)
            ]
            cells = (None if item is None else format_percent_interval(*item[:3], unit="") for item in statistics)
            first = _first_of_strength(rankings, strengths, strength, unknown)
            label = "Unknown" if unknown else "Known"
            rows.append((strength, label, by_strength[strength, unknown], first, *cells))
    columns = ("planted", "label", "facts", "above all distractors", "K, distractors", "K, own wrong answers")
    return Table(name="hidden_planted", columns=columns, rows=tuple(rows))


def _first_of_strength(rankings: Rankings, strengths: Mapping[str, str], strength: str, unknown: bool) -> float | None:
    mask = np.array([strengths.get(name) == strength for name in rankings.question_ids.tolist()], dtype=bool)
    first = rankings.against_distractors[hidden.LOG_PROBABILITY][mask & (rankings.mask(Category.UNKNOWN) == unknown)]
    first = first[np.isfinite(first)]
    return round1(100 * float((first == 1).mean())) if len(first) else None


def format_percent_interval(value: float, low: float, high: float, unit: str = " %") -> str:
    """A share in [0, 1] and its interval, in percent."""
    return format_with_interval(100 * value, 100 * low, 100 * high, unit=unit)
