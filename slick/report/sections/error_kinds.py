"""What a model says to questions it does not know: always the same, one of two, anything, or nothing. Pure.

After the error types of Orgad et al. 2024 (arXiv:2410.02707), who ask for half of the answers, drawn at temperature 1.
Here answers are drawn at a lower temperature, so that they agree more, and the wrong ones alone are sorted: the limit
is four fifths, which leaves no room for a rival with more than a fifth. `sensitivity` shows what other limits give.
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
from slick.report.charts import BLUE, GREEN, INK, MUTED, ORANGE, VERMILLION, label_line_ends
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
from slick.report.tables import CellValue, Table
from slick.rng import row_key
from slick.study import Manifest
from slick.types import ALL_CATEGORIES, Category

DOMINANCE_THRESHOLD = 0.8
"""Share of the wrong answers that one text, or two together, must have; a rival has at least what this leaves."""
MAJORITY_THRESHOLD = 0.5
"""From this share of refusals, or of empty answers, on a question counts as refused, or as empty: what most answers
do is what the model does."""
MIN_WRONG_ANSWERS = 5
"""Wrong answers that a question must have: with four, a single one would be a rival."""
SENSITIVITY_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Limits to compare, beside `ALWAYS`."""

SINGLE_ANSWER, TWO_ANSWERS, SCATTERED, REFUSED, EMPTY, TOO_FEW = ERROR_KINDS = (
    "one answer",
    "two rivals",
    "scattered",
    "refused",
    "empty",
    "too few",
)
CLASSIFIED_CATEGORIES = (Category.WEAKLY_KNOWN, Category.UNKNOWN)
"""The categories without a greedy hit."""
MAX_EXAMPLE_ANSWERS = 4
"""Answers shown of an example."""

REFUSAL_PHRASES = (
    *("I don't know", "I do not know", "I don't have", "I do not have", "I'm not sure", "I am not sure", "not sure"),
    *("I am unsure", "I'm unsure", "no idea", "cannot answer", "can't answer", "unable to answer", "not known"),
    *("cannot be determined", "no information", "not enough information", "it is unclear", "not available"),
)
"""An answer with one of these in it, as whole words, refuses."""
REFUSAL_ANSWERS = ("unknown", "unsure", "unclear", "uncertain", "none", "nobody knows", "n/a", "no answer")
"""An answer that is one of these, and no more, refuses: as a part of an answer they may be a name."""


class WrongAnswerCounts(NamedTuple):
    """The wrong answers to one question."""

    first: int
    """How many are the most frequent text."""
    second: int
    total: int
    refused: int
    empty: int
    distinct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorExample:
    """A question of one kind."""

    kind: str
    category: str
    relation: str
    question: str
    gold: tuple[str, ...]
    answers: tuple[tuple[str, int], ...]
    """The most frequent wrong answers, with how often."""
    total: int
    """All wrong answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKinds:
    """Every WeaklyKnown and Unknown question by its wrong answers; Q questions."""

    decoding: DecodingMode
    """Which answers were looked at: the sampled ones, or the greedy ones where no others were kept whole."""
    question_ids: NDArray[np.str_]
    """Shape (Q,), ascending."""
    categories: NDArray[np.str_]
    """Shape (Q,)."""
    relations: NDArray[np.str_]
    """Shape (Q,)."""
    counts_Q6: NDArray[np.int32]
    """Columns as in `Tally`."""
    num_questions: Mapping[tuple[str, str], int]
    """(relation, category) to all annotated questions, Known ones too."""
    examples: tuple[ErrorExample, ...]

    def kinds(self, threshold: float = DOMINANCE_THRESHOLD) -> NDArray[np.str_]:
        """The kind of each question, shape (Q,)."""
        return classify_errors(self.counts_Q6, threshold)

    def mask(self, category: str, relation: str = ALL_CATEGORIES) -> NDArray[np.bool_]:
        """True for the questions of a category and relation, each of which may be `ALL_CATEGORIES`."""
        return np.isin(self.categories, [category] if category != ALL_CATEGORIES else CLASSIFIED_CATEGORIES) & (
            np.isin(self.relations, [relation]) | (relation == ALL_CATEGORIES)
        )


class ErrorKindCollector:
    """Goes through all questions, one at a time."""

    def __init__(
        self, decoding: DecodingMode, phrases: Iterable[str] = (), *, seed: int = 0, num_examples: int = 3
    ) -> None:
        """Prepare.

        Args:
            way: which answers to look at.
            phrases: further ones that refuse, such as the study's own.
            seed: of the examples.
            num_examples: of each kind and category.
        """
        self._way, self._seed, self._num_examples = decoding, seed, num_examples
        self._refuses = make_refusal_detector(phrases)
        self._rows: list[tuple[str, str, str, WrongAnswerCounts]] = []
        self._num: Counter[tuple[str, str]] = Counter()
        self._examples: defaultdict[tuple[str, str], list[tuple[int, str, ErrorExample]]] = defaultdict(list)

    def add(self, one: QuestionAnswers) -> None:
        """Take one question into account."""
        self._num[one.relation, one.category] += 1
        if one.category not in CLASSIFIED_CATEGORIES:
            return
        said: Counter[str] = Counter()
        spelt: dict[str, str] = {}
        for text, num in one.wrong_answers(self._way).most_common():
            said[normalize(text)] += num
            spelt.setdefault(normalize(text), text)
        tally = count_wrong_answers(said, [key for key, text in spelt.items() if self._refuses(text)])
        self._rows.append((one.question_id, one.category, one.relation, tally))
        kind = str(classify_errors(np.array([tally]))[0])
        example = ErrorExample(
            kind=kind,
            category=one.category,
            relation=one.relation,
            question=one.question,
            gold=one.gold,
            answers=tuple((spelt[key], num) for key, num in said.most_common(MAX_EXAMPLE_ANSWERS)),
            total=tally.total,
        )
        kept = self._examples[one.category, kind]
        item = (-int(row_key(self._seed, "error kinds", one.question_id)), one.question_id, example)
        (heapq.heappush if len(kept) < self._num_examples else heapq.heappushpop)(kept, item)

    def result(self) -> ErrorKinds:
        """What was found of all questions seen, whatever their order."""
        rows = sorted(self._rows, key=lambda row: row[0])
        order = [(str(category), kind) for category in CLASSIFIED_CATEGORIES for kind in ERROR_KINDS]
        return ErrorKinds(
            decoding=self._way,
            question_ids=np.array([row[0] for row in rows], dtype=str),
            categories=np.array([row[1] for row in rows], dtype=str),
            relations=np.array([row[2] for row in rows], dtype=str),
            counts_Q6=np.array([row[3] for row in rows], dtype=np.int32).reshape(-1, 6),
            num_questions=dict(self._num),
            examples=tuple(one for key in order for _, _, one in sorted(self._examples[key], reverse=True)),
        )


def classify_errors(counts_Q6: NDArray[np.int32], threshold: float = DOMINANCE_THRESHOLD) -> NDArray[np.str_]:
    """The kind of each question, shape (Q,); columns as in `Tally`.

    >>> tallies = np.array([(9, 1, 10, 0, 0, 2), (6, 3, 10, 0, 0, 3), (4, 3, 10, 0, 0, 4)])
    >>> [str(kind) for kind in classify_errors(tallies)]
    ['one answer', 'two rivals', 'scattered']
    """
    first, second, total, refused, empty, _ = counts_Q6.T
    almost = 1e-9  # four fifths of ten is 8, and a fifth of ten less than 2, in floating point
    fits = [
        total < MIN_WRONG_ANSWERS,
        empty >= MAJORITY_THRESHOLD * total,
        refused >= MAJORITY_THRESHOLD * total,
        first >= threshold * total - almost,
        (first + second >= threshold * total - almost) & (second >= (1 - threshold) * total - almost),
    ]
    return np.select(fits, [TOO_FEW, EMPTY, REFUSED, SINGLE_ANSWER, TWO_ANSWERS], SCATTERED)


def count_wrong_answers(said: Mapping[str, int], refusing: Iterable[str] = ()) -> WrongAnswerCounts:
    """Sum up the wrong answers to one question.

    Args:
        said: normalised text to how often; one that normalises to nothing is an empty answer.
        refusing: those of the texts that refuse.

    >>> count_wrong_answers({"oslo": 6, "bergen": 3, "": 1})
    WrongAnswerCounts(first=6, second=3, total=10, refused=0, empty=1, distinct=2)
    """
    named = sorted((num for text, num in said.items() if text), reverse=True)
    first, second = (*named, 0, 0)[:2]
    refused = sum(said.get(text, 0) for text in refusing if text)
    return WrongAnswerCounts(first, second, sum(said.values()), refused, said.get("", 0), len(named))


def make_refusal_detector(phrases: Iterable[str] = ()) -> Callable[[str], bool]:
    """A test whether an answer refuses, by `PHRASES`, `WHOLE` and further phrases.

    >>> refuses = make_refusal_detector(["No clue"])
    >>> [refuses(text) for text in ("I don’t know.", "Unknown", "Unknown Pleasures", "no clue", "Oslo")]
    [True, True, False, True, False]
    """
    inside = [
        f" {_normalize_apostrophes(phrase)} "
        for phrase in (*REFUSAL_PHRASES, *phrases)
        if _normalize_apostrophes(phrase)
    ]
    whole = {_normalize_apostrophes(phrase) for phrase in REFUSAL_ANSWERS}

    @cache
    def refuses(text: str) -> bool:
        plain = _normalize_apostrophes(text)
        return plain in whole or any(phrase in f" {plain} " for phrase in inside)

    return refuses


def _normalize_apostrophes(text: str) -> str:
    return normalize(text.replace("\u2019", "'"))


def threshold_sensitivity(found: ErrorKinds) -> dict[float, dict[str, int]]:
    """Limit, in place of `ALWAYS`, to kind to number of questions."""
    return {
        limit: {kind: int((found.kinds(limit) == kind).sum()) for kind in ERROR_KINDS}
        for limit in SENSITIVITY_THRESHOLDS
    }


@answer_collector
def collect_error_kinds(data: StudyData, annotate: Manifest) -> ErrorKindCollector:
    """Wrong samples where they are stored whole, else the greedy answers."""
    return ErrorKindCollector("greedy" if annotate.settings.get("mode") == "labels" else "sampled", [data.idk_phrase])


@section("error_kinds", title="How the model errs", group=GROUP_EXTENSIONS, order=170, experiment="error_audit")
def error_kinds_section(data: StudyData) -> SectionBody:
    """The section; without stored answers it says what is missing."""
    return SectionBody(
        text=_kinds_text(data),
        exhibits=(
            figure_exhibit(
                "WeaklyKnown and Unknown questions by what their wrong answers look like.",
                "error_kinds",
                "Stacked bars: shares of the kinds of error among WeaklyKnown and Unknown questions",
                lambda: error_kind_bars(_require_error_kinds(data)),
            ),
            figure_exhibit(
                "Unknown questions by relation, those with most settled errors first.",
                "error_kinds_by_relation",
                "Stacked bars: shares of the kinds of error among Unknown questions of each relation",
                lambda: error_kind_bars_by_relation(_require_error_kinds(data)),
            ),
            table_exhibit(
                "Questions of each kind, with their share of the category and of all annotated questions, Known ones "
                "too (%).",
                lambda: error_kinds_table(_require_error_kinds(data)),
            ),
            table_exhibit(
                "Examples, drawn by the seed; in brackets how often.",
                lambda: error_examples_table(_require_error_kinds(data)),
            ),
            *_planted_exhibits(data),
            collapsed_table_exhibit(
                "By relation and category (%).", lambda: error_kinds_by_relation_table(_require_error_kinds(data))
            ),
            collapsed_table_exhibit(
                f"The same questions with other limits in place of {100 * DOMINANCE_THRESHOLD:.0f} %; at 50 %, that of "
                "Orgad et al., a second answer cannot have as much.",
                lambda: sensitivity_table(_require_error_kinds(data)),
            ),
        ),
    )


def error_kinds_table(found: ErrorKinds) -> Table:
    """Numbers and shares of each kind by category."""
    total = sum(found.num_questions.values())
    kinds = found.kinds()
    masks = {str(category): found.mask(category) for category in CLASSIFIED_CATEGORIES}
    rows: list[tuple[CellValue, ...]] = []
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


def error_kinds_by_relation_table(found: ErrorKinds) -> Table:
    """Shares of each kind by relation and category."""
    kinds, distinct = found.kinds(), found.counts_Q6[:, 5]
    rows: list[tuple[CellValue, ...]] = []
    for relation in (ALL_CATEGORIES, *relations_with_category(found)):
        for category in CLASSIFIED_CATEGORIES:
            mask = found.mask(category, relation)
            num = int(mask.sum())
            if num:
                parts = (_percent(int((kinds[mask] == kind).sum()), num) for kind in ERROR_KINDS)
                rows.append((relation, str(category), num, *parts, float(np.median(distinct[mask]))))
    columns = ("relation", "category", "questions", *ERROR_KINDS, "distinct wrong answers (median)")
    return Table(name="error_kinds_by_relation", columns=columns, rows=tuple(rows), total_rows=frozenset({0, 1}))


def error_kinds_by_strength_table(found: ErrorKinds, planted: PlantedFacts) -> Table:
    """Shares of each kind by how firmly a fact was planted.

    Raises:
        NotTestable: none of the questions is a fact of the world.
    """
    strength = dict(zip(planted.question_ids.tolist(), planted.strength.tolist(), strict=True))
    of_question = np.array([strength.get(one, "") for one in found.question_ids.tolist()])
    rows: list[tuple[CellValue, ...]] = []
    for name in STRENGTHS:
        mask = of_question == name
        if mask.any():
            rows.append((name, int(mask.sum()), *(round(share, 1) for share in kind_percentages(found, mask).values())))
    if not rows:
        raise InsufficientDataError("no WeaklyKnown or Unknown question is a fact of the world")
    return Table(name="error_kinds_planted", columns=("planted", "questions", *ERROR_KINDS), rows=tuple(rows))


def sensitivity_table(found: ErrorKinds) -> Table:
    """Numbers of each kind at other limits."""
    by_limit = threshold_sensitivity(found)
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (f"{100 * limit:.0f} %", *(by_limit[limit][kind] for kind in ERROR_KINDS)) for limit in SENSITIVITY_THRESHOLDS
    )
    return Table(name="error_kinds_limits", columns=("limit", *ERROR_KINDS), rows=rows)


def error_examples_table(found: ErrorKinds) -> Table:
    """A few questions of each kind, with what the model says."""
    if not found.examples:
        raise InsufficientDataError("there are no WeaklyKnown or Unknown questions")
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            one.kind,
            one.category,
            one.relation,
            one.question,
            " | ".join(one.gold),
            ", ".join(f"{text or '(empty)'} ({num})" for text, num in one.answers) + f", of {one.total}",
        )
        for one in found.examples
    )
    columns = ("kind", "category", "relation", "question", "gold", "wrong answers, most frequent first")
    return Table(name="error_kinds_examples", columns=columns, rows=rows, text_columns=frozenset({3, 4, 5}))


def _planted_exhibits(data: StudyData) -> tuple[Exhibit, ...]:
    """Only where facts were planted."""
    planted = data.part(load_planted, None)
    if planted is None:
        return ()
    return (
        table_exhibit(
            "The same questions by how their facts were planted (%): beside a rival named more often (minority) or as "
            "often (contested), or never.",
            lambda: error_kinds_by_strength_table(_require_error_kinds(data), planted),
        ),
    )


def _kinds_text(data: StudyData) -> str:
    said = (
        f"A question is sorted by its wrong answers: one answer, if {100 * DOMINANCE_THRESHOLD:.0f} % or more of them "
        "are the same; two rivals, if two answers together make up as many, the second at least "
        f"{100 * (1 - DOMINANCE_THRESHOLD):.0f} %; scattered otherwise. Refused, or empty, if "
        f"{100 * MAJORITY_THRESHOLD:.0f} % or more of them are. Fewer than {MIN_WRONG_ANSWERS} wrong answers are too "
        "few to tell. After Orgad et al. 2024 (arXiv:2410.02707), who ask for half of the answers at temperature 1; "
        "answers agree more at the temperature used here, hence the higher limit."
    )
    found: ErrorKinds | None = collected(data, collect_error_kinds)
    if found is None:
        return said
    if found.decoding == "greedy":
        said += " The annotation kept no wrong samples whole (labels mode), so the greedy answers to its prompts count."
    unknown = found.mask(CLASSIFIED_CATEGORIES[-1])
    if unknown.any():
        share = kind_percentages(found, unknown)
        said += (
            f" Of {int(unknown.sum()):,} Unknown questions, {share[SINGLE_ANSWER]:.0f} % always get the same wrong "
            f"answer, {share[TWO_ANSWERS]:.0f} % one of two; {share[REFUSED]:.0f} % are mostly refused."
        )
    return said


def _percent(num: int, total: int) -> float | None:
    return round(100 * num / total, 1) if total else None


def _require_error_kinds(data: StudyData) -> ErrorKinds:
    found: ErrorKinds | None = collected(data, collect_error_kinds)
    if found is None:
        raise InsufficientDataError(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return found


KIND_COLOURS = {
    SINGLE_ANSWER: VERMILLION,
    TWO_ANSWERS: ORANGE,
    SCATTERED: BLUE,
    REFUSED: GREEN,
    EMPTY: MUTED,
    TOO_FEW: "#c3c8cf",
}
"""Of the bars."""
_LIGHT_KINDS = {TWO_ANSWERS, TOO_FEW}
"""Bars that want dark text."""


def error_kind_bars(found: ErrorKinds) -> Callable[[Any], None]:
    """One stacked bar a category, kinds named beside the last one."""
    of_category = {
        str(category): kind_percentages(found, found.mask(category))
        for category in CLASSIFIED_CATEGORIES
        if found.mask(category).any()
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
                if name == list(of_category)[-1] and any(one[kind] for one in of_category.values()):
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


def error_kind_bars_by_relation(found: ErrorKinds) -> Callable[[Any], None]:
    """One bar a relation, Unknown questions only."""
    category = CLASSIFIED_CATEGORIES[-1]
    of_relation = {
        relation: kind_percentages(found, found.mask(category, relation))
        for relation in relations_with_category(found, category)
    }
    if not of_relation:
        raise InsufficientDataError("there are no Unknown questions")
    order = sorted(of_relation, key=lambda relation: (of_relation[relation][SINGLE_ANSWER], relation))
    shown = [kind for kind in ERROR_KINDS if any(one[kind] for one in of_relation.values())]

    def plot(axes: Any) -> None:
        axes.figure.set_size_inches(5.3, max(4.0, 1.2 + 0.24 * len(order)))
        left = np.zeros(len(order))
        for kind in shown:
            width = np.array([of_relation[relation][kind] for relation in order])
            axes.barh(
                order, width, 0.78, left=left, color=KIND_COLOURS[kind], edgecolor="white", linewidth=0.6, label=kind
            )
            left += width
        axes.set_xlim(0, 100)
        axes.margins(y=0.01)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.set_xlabel("Unknown questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3, fontsize=11, handlelength=1.0)

    return plot


def kind_percentages(found: ErrorKinds, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Percent of each kind among the questions of the mask."""
    kinds = found.kinds()[mask]
    return {kind: 100.0 * float((kinds == kind).mean()) for kind in ERROR_KINDS}


def relations_with_category(found: ErrorKinds, category: str = ALL_CATEGORIES) -> list[str]:
    """Those with questions of the category, sorted."""
    return [str(relation) for relation in np.unique(found.relations[found.mask(category)])]
