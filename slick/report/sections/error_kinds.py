"""Kinds of wrong answers to WeaklyKnown and Unknown questions: one answer, two rivals, scattered, refused or empty.

The kinds follow the error types of Orgad et al. 2024 (arXiv:2410.02707), whose threshold is half of the answers at
temperature 1. Here the temperature is lower, so answers agree more, and only wrong answers are classified; the
threshold is four fifths. `threshold_sensitivity` gives the results for other thresholds.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.matching import normalize
from slick.report.answers import DecodingMode, QuestionAnswers, answer_collector, collected
from slick.report.charts import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    VERMILLION,
    label_line_ends,
    plot_stacked_bars,
    shorten_label,
)
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.page import (
    GROUP_EXTENSIONS,
    Exhibit,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    table_exhibit,
)
from slick.report.sections import section
from slick.report.sections.planted import load_planted
from slick.report.statistics.planted import STRENGTHS, PlantedFacts
from slick.report.tables import CellValue, Row, Table
from slick.rng import row_key
from slick.study import Manifest
from slick.types import ALL_CATEGORIES, Category

DOMINANCE_THRESHOLD = 0.8
"""Minimum share of the wrong answers for one text, or for two together; a rival needs at least the remainder."""

MAJORITY_THRESHOLD = 0.5
"""Minimum share of refusals, or of empty answers, for the kind refused, or empty."""

MIN_WRONG_ANSWERS = 5
"""Minimum number of wrong answers of a question; with four, a single answer would count as a rival."""

SENSITIVITY_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Values of `DOMINANCE_THRESHOLD` to compare."""

SINGLE_ANSWER, TWO_ANSWERS, SCATTERED, REFUSED, EMPTY, TOO_FEW = ERROR_KINDS = (
    "one answer",
    "two rivals",
    "scattered",
    "refused",
    "empty",
    "too few",
)

CLASSIFIED_CATEGORIES = (Category.WEAKLY_KNOWN, Category.UNKNOWN)
"""The categories without a correct greedy answer."""

MAX_EXAMPLE_ANSWERS = 4
"""Answers shown per example."""

REFUSAL_PHRASES = (
    *("I don't know", "I do not know", "I don't have", "I do not have", "I'm not sure", "I am not sure", "not sure"),
    *("I am unsure", "I'm unsure", "no idea", "cannot answer", "can't answer", "unable to answer", "not known"),
    *("cannot be determined", "no information", "not enough information", "it is unclear", "not available"),
)
"""An answer that contains one of these as whole words is a refusal."""

REFUSAL_ANSWERS = ("unknown", "unsure", "unclear", "uncertain", "none", "nobody knows", "n/a", "no answer")
"""An answer that equals one of these is a refusal; within a longer answer they may be part of a name."""

KIND_COLOURS = {
    SINGLE_ANSWER: VERMILLION,
    TWO_ANSWERS: ORANGE,
    SCATTERED: BLUE,
    REFUSED: GREEN,
    EMPTY: MUTED,
    TOO_FEW: "#c3c8cf",
}
"""Colours of the bars."""

_LIGHT_KINDS = {TWO_ANSWERS, TOO_FEW}
"""Kinds with dark text on their bars."""


class WrongAnswerCounts(NamedTuple):
    """Counts of the wrong answers to one question."""

    first: int
    """Count of the most frequent text."""
    second: int
    total: int
    refused: int
    empty: int
    distinct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorExample:
    """An example question of one kind."""

    kind: str
    category: str
    relation: str
    question: str
    gold: tuple[str, ...]
    answers: tuple[tuple[str, int], ...]
    """The most frequent wrong answers with their counts."""
    total: int
    """Number of wrong answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKinds:
    """Wrong answers of all WeaklyKnown and Unknown questions; Q questions."""

    decoding: DecodingMode
    """The answers used: the sampled ones, or the greedy ones if sampled ones were not stored completely."""
    question_ids: NDArray[np.str_]
    """Shape (Q,), ascending."""
    categories: NDArray[np.str_]
    """Shape (Q,)."""
    relations: NDArray[np.str_]
    """Shape (Q,)."""
    counts_Q6: NDArray[np.int32]
    """Columns as in `WrongAnswerCounts`."""
    num_questions: Mapping[tuple[str, str], int]
    """(relation, category) -> number of annotated questions, including other categories."""
    examples: tuple[ErrorExample, ...]

    def kinds(self, threshold: float = DOMINANCE_THRESHOLD) -> NDArray[np.str_]:
        """The kind of each question, shape (Q,)."""
        return classify_errors(self.counts_Q6, threshold)

    def mask(self, category: str, relation: str = ALL_CATEGORIES) -> NDArray[np.bool_]:
        """Mask of the questions of a category and relation, shape (Q,); each may be `ALL_CATEGORIES`."""
        return np.isin(self.categories, [category] if category != ALL_CATEGORIES else CLASSIFIED_CATEGORIES) & (
            np.isin(self.relations, [relation]) | (relation == ALL_CATEGORIES)
        )


@section("error_kinds", title="Kinds of wrong answers", group=GROUP_EXTENSIONS, order=170, experiment="error_audit")
def error_kinds_section(data: StudyData) -> SectionBody:
    """Kinds of wrong answers by category, relation and planted strength."""
    return SectionBody(
        text=_kinds_text(data),
        result=_unknown_kinds_sentence(data),
        exhibits=(
            figure_exhibit(
                "WeaklyKnown and Unknown questions by kind of wrong answers.",
                "error_kinds",
                "Stacked bars: shares of the kinds of wrong answers among WeaklyKnown and Unknown questions",
                lambda: error_kind_bars(_require_error_kinds(data)),
            ),
            figure_exhibit(
                "Unknown questions by relation, sorted by the share of questions with one answer.",
                "error_kinds_by_relation",
                "Stacked bars: shares of the kinds of wrong answers among Unknown questions of each relation",
                lambda: error_kind_bars_by_relation(_require_error_kinds(data)),
            ),
            table_exhibit(
                "Number of questions of each kind, and their share of the category and of all annotated questions (%).",
                lambda: error_kinds_table(_require_error_kinds(data)),
            ),
            table_exhibit(
                "Examples, sampled with a fixed seed; counts in brackets.",
                lambda: error_examples_table(_require_error_kinds(data)),
            ),
            *_planted_exhibits(data),
            collapsed_table_exhibit(
                "By relation and category (%).", lambda: error_kinds_by_relation_table(_require_error_kinds(data))
            ),
            collapsed_table_exhibit(
                f"Number of questions of each kind with other thresholds than {100 * DOMINANCE_THRESHOLD:.0f} %; Orgad "
                "et al. use 50 %.",
                lambda: sensitivity_table(_require_error_kinds(data)),
            ),
        ),
    )


def _kinds_text(data: StudyData) -> str:
    text = (
        f"A question is classified by its wrong answers: one answer, if at least {100 * DOMINANCE_THRESHOLD:.0f} % of "
        "them agree; two rivals, if two answers together make up that share and the second at least "
        f"{100 * (1 - DOMINANCE_THRESHOLD):.0f} %; otherwise scattered. Refused, or empty, if at least "
        f"{100 * MAJORITY_THRESHOLD:.0f} % of them are. Questions with fewer than {MIN_WRONG_ANSWERS} wrong answers "
        "are not classified. The kinds follow Orgad et al. 2024 (arXiv:2410.02707), whose threshold is half of the "
        "answers at temperature 1; the threshold is higher here because answers agree more at a lower temperature."
    )
    errors: ErrorKinds | None = collected(data, collect_error_kinds)
    if errors is None:
        return text
    if errors.decoding == "greedy":
        text += " The annotation did not store complete samples (labels mode), so greedy answers are used."
    return text


def _unknown_kinds_sentence(data: StudyData) -> str:
    """The kinds of the Unknown questions; empty without data."""
    errors: ErrorKinds | None = collected(data, collect_error_kinds)
    if errors is None or not (unknown := errors.mask(CLASSIFIED_CATEGORIES[-1])).any():
        return ""
    share = kind_percentages(errors, unknown)
    return (
        f"Of {int(unknown.sum()):,} Unknown questions, {share[SINGLE_ANSWER]:.0f} % have one answer, "
        f"{share[TWO_ANSWERS]:.0f} % two rivals, and {share[REFUSED]:.0f} % are refused."
    )


def _planted_exhibits(data: StudyData) -> tuple[Exhibit, ...]:
    """The table by planted strength, if facts were planted."""
    planted = data.load_cached(load_planted, None)
    if planted is None:
        return ()
    return (
        table_exhibit(
            "Shares of the kinds by planted strength (%): with a rival mentioned more often (minority) or equally "
            "often (contested), or never planted.",
            lambda: error_kinds_by_strength_table(_require_error_kinds(data), planted),
        ),
    )


def error_kind_bars(errors: ErrorKinds) -> Callable[[Any], None]:
    """One stacked bar per category, with the kinds labelled at the last one."""
    of_category = {
        str(category): kind_percentages(errors, errors.mask(category))
        for category in CLASSIFIED_CATEGORIES
        if errors.mask(category).any()
    }
    if not of_category:
        raise InsufficientDataError("there are no WeaklyKnown or Unknown questions")

    def plot(axes: Any) -> None:
        labels = []
        for x, (name, of_kind) in enumerate(of_category.items()):
            bottom = 0.0
            for kind, share in of_kind.items():
                axes.bar(x, share, 0.7, bottom=bottom, color=KIND_COLOURS[kind], edgecolor="white", linewidth=0.8)
                if share >= 5:
                    colour = INK if kind in _LIGHT_KINDS else "white"
                    axes.text(x, bottom + share / 2, f"{share:.0f}", ha="center", va="center", color=colour)
                if name == list(of_category)[-1] and any(shares[kind] for shares in of_category.values()):
                    labels.append((bottom + share / 2, kind, KIND_COLOURS[kind] if kind not in _LIGHT_KINDS else INK))
                bottom += share
        axes.set_ylim(0, 100)
        axes.set_xlim(-0.5, len(of_category) + 0.25)
        axes.set_xticks(range(len(of_category)), list(of_category))
        axes.grid(visible=False, axis="x")
        axes.spines["bottom"].set_bounds(-0.5, len(of_category) - 0.5)
        axes.set_ylabel("Questions (%)")
        label_line_ends(axes, len(of_category) - 0.65, labels)
        axes.set_ylim(0, 100)

    return plot


def error_kind_bars_by_relation(errors: ErrorKinds) -> Callable[[Any], None]:
    """One stacked bar per relation, Unknown questions only."""
    category = CLASSIFIED_CATEGORIES[-1]
    of_relation = {
        relation: kind_percentages(errors, errors.mask(category, relation))
        for relation in relations_with_category(errors, category)
    }
    if not of_relation:
        raise InsufficientDataError("there are no Unknown questions")
    order = sorted(of_relation, key=lambda relation: (of_relation[relation][SINGLE_ANSWER], relation))
    shown = [kind for kind in ERROR_KINDS if any(shares[kind] for shares in of_relation.values())]

    def plot(axes: Any) -> None:
        axes.figure.set_size_inches(5.3, max(4.0, 1.2 + 0.24 * len(order)))
        parts = {kind: [of_relation[relation][kind] for relation in order] for kind in shown}
        plot_stacked_bars(axes, range(len(order)), parts, KIND_COLOURS, height=0.78, min_label=np.inf, linewidth=0.6)
        axes.set_yticks(range(len(order)), [shorten_label(relation) for relation in order])
        axes.margins(y=0.01)
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.set_xlabel("Unknown questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3, fontsize=11, handlelength=1.0)

    return plot


def error_kinds_table(errors: ErrorKinds) -> Table:
    """Number and share of questions of each kind by category."""
    total = sum(errors.num_questions.values())
    kinds = errors.kinds()
    masks = {str(category): errors.mask(category) for category in CLASSIFIED_CATEGORIES}
    rows: list[Row] = []
    for kind in ERROR_KINDS:
        cells: list[CellValue] = []
        for mask in masks.values():
            num = int((kinds[mask] == kind).sum())
            cells += [num, _percent(num, int(mask.sum()))]
        rows.append((kind, *cells, _percent(int((kinds == kind).sum()), total)))
    sums = [value for mask in masks.values() for value in (int(mask.sum()), _percent(int(mask.sum()), int(mask.sum())))]
    rows.append(("total", *sums, _percent(len(kinds), total)))
    columns = ("wrong answers", *(name for category in masks for name in (category, f"% of {category}")))
    return Table(
        name="error_kinds",
        columns=(*columns, "% of all questions"),
        rows=tuple(rows),
        total_rows=frozenset({len(rows) - 1}),
    )


def error_kinds_by_relation_table(errors: ErrorKinds) -> Table:
    """Shares of the kinds by relation and category."""
    kinds, distinct = errors.kinds(), errors.counts_Q6[:, 5]
    rows: list[Row] = []
    for relation in (ALL_CATEGORIES, *relations_with_category(errors)):
        for category in CLASSIFIED_CATEGORIES:
            mask = errors.mask(category, relation)
            num = int(mask.sum())
            if num:
                parts = (_percent(int((kinds[mask] == kind).sum()), num) for kind in ERROR_KINDS)
                rows.append((relation, str(category), num, *parts, float(np.median(distinct[mask]))))
    columns = ("relation", "category", "questions", *ERROR_KINDS, "distinct wrong answers (median)")
    return Table(name="error_kinds_by_relation", columns=columns, rows=tuple(rows), total_rows=frozenset({0, 1}))


def error_kinds_by_strength_table(errors: ErrorKinds, planted: PlantedFacts) -> Table:
    """Shares of the kinds by planted strength."""
    strength = dict(zip(planted.question_ids.tolist(), planted.strength.tolist(), strict=True))
    of_question = np.array([strength.get(question_id, "") for question_id in errors.question_ids.tolist()])
    rows: list[Row] = []
    for name in STRENGTHS:
        mask = of_question == name
        if mask.any():
            rows.append(
                (name, int(mask.sum()), *(round(share, 1) for share in kind_percentages(errors, mask).values()))
            )
    if not rows:
        raise InsufficientDataError("no WeaklyKnown or Unknown question is a fact of the world")
    return Table(name="error_kinds_planted", columns=("planted", "questions", *ERROR_KINDS), rows=tuple(rows))


def sensitivity_table(errors: ErrorKinds) -> Table:
    """Number of questions of each kind by threshold."""
    by_threshold = threshold_sensitivity(errors)
    rows: tuple[Row, ...] = tuple(
        (f"{100 * threshold:.0f} %", *(by_threshold[threshold][kind] for kind in ERROR_KINDS))
        for threshold in SENSITIVITY_THRESHOLDS
    )
    return Table(name="error_kinds_limits", columns=("limit", *ERROR_KINDS), rows=rows)


def error_examples_table(errors: ErrorKinds) -> Table:
    """Example questions of each kind with their wrong answers."""
    if not errors.examples:
        raise InsufficientDataError("there are no WeaklyKnown or Unknown questions")
    rows: tuple[Row, ...] = tuple(
        (
            example.kind,
            example.category,
            example.relation,
            example.question,
            " | ".join(example.gold),
            ", ".join(f"{text or '(empty)'} ({num})" for text, num in example.answers) + f", of {example.total}",
        )
        for example in errors.examples
    )
    columns = ("kind", "category", "relation", "question", "gold", "wrong answers, most frequent first")
    return Table(name="error_kinds_examples", columns=columns, rows=rows, text_columns=frozenset({3, 4, 5}))


def _percent(num: int, total: int) -> float | None:
    return round(100 * num / total, 1) if total else None


def kind_percentages(errors: ErrorKinds, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Percent of each kind among the questions of the mask."""
    kinds = errors.kinds()[mask]
    return {kind: 100.0 * float((kinds == kind).mean()) for kind in ERROR_KINDS}


def relations_with_category(errors: ErrorKinds, category: str = ALL_CATEGORIES) -> list[str]:
    """Relations with questions of the category, sorted."""
    return [str(relation) for relation in np.unique(errors.relations[errors.mask(category)])]


def threshold_sensitivity(errors: ErrorKinds) -> dict[float, dict[str, int]]:
    """Number of questions by threshold and kind."""
    return {
        threshold: {kind: int((errors.kinds(threshold) == kind).sum()) for kind in ERROR_KINDS}
        for threshold in SENSITIVITY_THRESHOLDS
    }


def _require_error_kinds(data: StudyData) -> ErrorKinds:
    errors: ErrorKinds | None = collected(data, collect_error_kinds)
    if errors is None:
        raise InsufficientDataError(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return errors


class ErrorKindCollector:
    """Collects the kinds of error from a stream of questions."""

    def __init__(
        self, decoding: DecodingMode, phrases: Iterable[str] = (), *, seed: int = 0, num_examples: int = 3
    ) -> None:
        """An empty collector.

        Args:
            decoding: the answers to use.
            phrases: refusal phrases besides the built-in ones.
            seed: of the choice of examples.
            num_examples: per kind and category.
        """
        self._decoding, self._seed, self._num_examples = decoding, seed, num_examples
        self._refuses = make_refusal_detector(phrases)
        self._rows: list[tuple[str, str, str, WrongAnswerCounts]] = []
        self._num: Counter[tuple[str, str]] = Counter()
        self._examples: defaultdict[tuple[str, str], list[tuple[int, str, ErrorExample]]] = defaultdict(list)

    def add(self, question: QuestionAnswers) -> None:
        """Add one question."""
        self._num[question.relation, question.category] += 1
        if question.category not in CLASSIFIED_CATEGORIES:
            return
        counts: Counter[str] = Counter()
        spelling: dict[str, str] = {}
        for text, num in question.wrong_answers(self._decoding).most_common():
            counts[normalize(text)] += num
            spelling.setdefault(normalize(text), text)
        wrong = count_wrong_answers(counts, [key for key, text in spelling.items() if self._refuses(text)])
        self._rows.append((question.question_id, question.category, question.relation, wrong))
        kind = str(classify_errors(np.array([wrong]))[0])
        example = ErrorExample(
            kind=kind,
            category=question.category,
            relation=question.relation,
            question=question.question,
            gold=question.gold,
            answers=tuple((spelling[key], num) for key, num in counts.most_common(MAX_EXAMPLE_ANSWERS)),
            total=wrong.total,
        )
        kept = self._examples[question.category, kind]
        item = (-int(row_key(self._seed, "error kinds", question.question_id)), question.question_id, example)
        (heapq.heappush if len(kept) < self._num_examples else heapq.heappushpop)(kept, item)

    def result(self) -> ErrorKinds:
        """The result over all questions added, independent of their order."""
        rows = sorted(self._rows, key=lambda row: row[0])
        order = [(str(category), kind) for category in CLASSIFIED_CATEGORIES for kind in ERROR_KINDS]
        return ErrorKinds(
            decoding=self._decoding,
            question_ids=np.array([row[0] for row in rows], dtype=str),
            categories=np.array([row[1] for row in rows], dtype=str),
            relations=np.array([row[2] for row in rows], dtype=str),
            counts_Q6=np.array([row[3] for row in rows], dtype=np.int32).reshape(-1, 6),
            num_questions=dict(self._num),
            examples=tuple(example for key in order for _, _, example in sorted(self._examples[key], reverse=True)),
        )


@answer_collector
def collect_error_kinds(data: StudyData, annotate: Manifest) -> ErrorKindCollector:
    """Collect wrong sampled answers if they are stored completely, else greedy ones."""
    return ErrorKindCollector("greedy" if annotate.settings.get("mode") == "labels" else "sampled", [data.idk_phrase])


def classify_errors(counts_Q6: NDArray[np.int32], threshold: float = DOMINANCE_THRESHOLD) -> NDArray[np.str_]:
    """The kind of each question, shape (Q,); columns as in `WrongAnswerCounts`.

    >>> tallies = np.array([(9, 1, 10, 0, 0, 2), (6, 3, 10, 0, 0, 3), (4, 3, 10, 0, 0, 4)])
    >>> [str(kind) for kind in classify_errors(tallies)]
    ['one answer', 'two rivals', 'scattered']
    """
    first, second, total, refused, empty, _ = counts_Q6.T
    tolerance = 1e-9  # tolerance for rounding: in floating point, a fifth of 10 is less than 2
    conditions = [
        total < MIN_WRONG_ANSWERS,
        empty >= MAJORITY_THRESHOLD * total,
        refused >= MAJORITY_THRESHOLD * total,
        first >= threshold * total - tolerance,
        (first + second >= threshold * total - tolerance) & (second >= (1 - threshold) * total - tolerance),
    ]
    return np.select(conditions, [TOO_FEW, EMPTY, REFUSED, SINGLE_ANSWER, TWO_ANSWERS], SCATTERED)


def count_wrong_answers(counts: Mapping[str, int], refusing: Iterable[str] = ()) -> WrongAnswerCounts:
    """Count the wrong answers to one question.

    Args:
        counts: normalised text to count; the empty text is an empty answer.
        refusing: those of the texts that are refusals.

    >>> count_wrong_answers({"oslo": 6, "bergen": 3, "": 1})
    WrongAnswerCounts(first=6, second=3, total=10, refused=0, empty=1, distinct=2)
    """
    frequencies = sorted((num for text, num in counts.items() if text), reverse=True)
    first, second = (*frequencies, 0, 0)[:2]
    refused = sum(counts.get(text, 0) for text in refusing if text)
    return WrongAnswerCounts(first, second, sum(counts.values()), refused, counts.get("", 0), len(frequencies))


def make_refusal_detector(phrases: Iterable[str] = ()) -> Callable[[str], bool]:
    """A predicate for refusals, by `REFUSAL_PHRASES`, `REFUSAL_ANSWERS` and further phrases.

    >>> refuses = make_refusal_detector(["No clue"])
    >>> [refuses(text) for text in ("I don’t know.", "Unknown", "Unknown Pleasures", "no clue", "Oslo")]
    [True, True, False, True, False]
    """
    contained = [
        f" {_normalize_apostrophes(phrase)} "
        for phrase in (*REFUSAL_PHRASES, *phrases)
        if _normalize_apostrophes(phrase)
    ]
    exact = {_normalize_apostrophes(phrase) for phrase in REFUSAL_ANSWERS}

    @cache
    def refuses(text: str) -> bool:
        normalized = _normalize_apostrophes(text)
        return normalized in exact or any(phrase in f" {normalized} " for phrase in contained)

    return refuses


def _normalize_apostrophes(text: str) -> str:
    return normalize(text.replace("\u2019", "'"))
