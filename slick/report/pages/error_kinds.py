"""The section of how a model errs: always the same wrong answer, two rivals, anything, or a refusal."""

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.error_kinds import (
    CLASSIFIED_CATEGORIES,
    DOMINANCE_THRESHOLD,
    ERROR_KINDS,
    MAJORITY_THRESHOLD,
    MIN_WRONG_ANSWERS,
    REFUSED,
    SENSITIVITY_THRESHOLDS,
    SINGLE_ANSWER,
    TWO_ANSWERS,
    ErrorKinds,
    threshold_sensitivity,
)
from slick.analysis.planted import STRENGTHS, PlantedFacts
from slick.analysis.terms import InsufficientDataError
from slick.report.page import GROUP_EXTENSIONS, Exhibit, Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.pages import error_kinds_figures
from slick.report.pages.error_kinds_figures import kind_percentages, relations_with_category
from slick.report.tables import CellValue, Table
from slick.types import ALL_CATEGORIES


def error_kinds_section(data: StudyData) -> Section:
    """The section; without stored answers it says what is missing."""
    return Section(
        name="error_kinds",
        group=GROUP_EXTENSIONS,
        title="How the model errs",
        text=_kinds_text(data),
        exhibits=(
            figure_exhibit(
                "WeaklyKnown and Unknown questions by what their wrong answers look like.",
                "error_kinds",
                "Stacked bars: shares of the kinds of error among WeaklyKnown and Unknown questions",
                lambda: error_kinds_figures.error_kind_bars(_require_error_kinds(data)),
            ),
            figure_exhibit(
                "Unknown questions by relation, those with most settled errors first.",
                "error_kinds_by_relation",
                "Stacked bars: shares of the kinds of error among Unknown questions of each relation",
                lambda: error_kinds_figures.error_kind_bars_by_relation(_require_error_kinds(data)),
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
                f"The same questions with other limits in place of {100 * DOMINANCE_THRESHOLD:.0f} %; at 50 %, that "
                f"of Orgad et "
                "al., a second answer cannot have as much.",
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
    planted = data.planted
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
        f"A question is sorted by its wrong answers: one answer, if {100 * DOMINANCE_THRESHOLD:.0f} % or more of "
        f"them are the same; "
        f"two rivals, if two answers together make up as many, the second at least "
        f"{100 * (1 - DOMINANCE_THRESHOLD):.0f} %; "
        f"scattered otherwise. Refused, or empty, if {100 * MAJORITY_THRESHOLD:.0f} % or more of them are. Fewer than "
        f"{MIN_WRONG_ANSWERS} wrong answers are too few to tell. After Orgad et al. 2024 (arXiv:2410.02707), who "
        f"ask for "
        "half of the answers at temperature 1; answers agree more at the temperature used here, hence the higher limit."
    )
    found = data.error_kinds
    if found is None:
        return said
    if found.decoding == "greedy":
        said += " The annotation kept no wrong samples whole (labels mode), so the greedy answers to its prompts count."
    unknown = found.mask(CLASSIFIED_CATEGORIES[-1])
    if unknown.any():
        share = kind_percentages(found, unknown)
        said += (
            f" Of {int(unknown.sum()):,} Unknown questions, {share[SINGLE_ANSWER]:.0f} % always get the same wrong "
            f"answer, "
            f"{share[TWO_ANSWERS]:.0f} % one of two; {share[REFUSED]:.0f} % are mostly refused."
        )
    return said


def _percent(num: int, total: int) -> float | None:
    return round(100 * num / total, 1) if total else None


def _require_error_kinds(data: StudyData) -> ErrorKinds:
    if data.error_kinds is None:
        raise InsufficientDataError(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return data.error_kinds
