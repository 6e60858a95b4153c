"""The section of how a model errs: always the same wrong answer, two rivals, anything, or a refusal."""

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.error_kinds import (
    ALWAYS,
    KINDS,
    LEAST_WRONG,
    LIMITS,
    MOSTLY,
    ONE,
    REFUSED,
    SORTED,
    TWO,
    ErrorKinds,
    sensitivity,
)
from slick.analysis.planted import STRENGTHS, PlantedFacts
from slick.analysis.terms import NotTestable
from slick.report.page import BEYOND, Exhibit, Section, drawn, numbers, wide
from slick.report.pages import error_kinds_figures
from slick.report.pages.error_kinds_figures import relations_of, shares
from slick.report.tables import Table, Value
from slick.types import ALL_CATEGORIES


def section(data: StudyData) -> Section:
    """The section; without stored answers it says what is missing."""
    return Section(
        name="error_kinds",
        group=BEYOND,
        title="How the model errs",
        text=_text(data),
        exhibits=(
            drawn(
                "WeaklyKnown and Unknown questions by what their wrong answers look like.",
                "error_kinds",
                "Stacked bars: shares of the kinds of error among WeaklyKnown and Unknown questions",
                lambda: error_kinds_figures.bars(_kinds(data)),
            ),
            drawn(
                "Unknown questions by relation, those with most settled errors first.",
                "error_kinds_by_relation",
                "Stacked bars: shares of the kinds of error among Unknown questions of each relation",
                lambda: error_kinds_figures.relation_bars(_kinds(data)),
            ),
            wide(
                "Questions of each kind, with their share of the category and of all annotated questions, Known ones "
                "too (%).",
                lambda: kinds_table(_kinds(data)),
            ),
            wide("Examples, drawn by the seed; in brackets how often.", lambda: examples_table(_kinds(data))),
            *_against_the_truth(data),
            numbers("By relation and category (%).", lambda: relations_table(_kinds(data))),
            numbers(
                f"The same questions with other limits in place of {100 * ALWAYS:.0f} %; at 50 %, that of Orgad et "
                "al., a second answer cannot have as much.",
                lambda: sensitivity_table(_kinds(data)),
            ),
        ),
    )


def kinds_table(found: ErrorKinds) -> Table:
    """Numbers and shares of each kind by category."""
    total = sum(found.num_questions.values())
    kinds = found.kinds()
    masks = {str(category): found.mask(category) for category in SORTED}
    rows: list[tuple[Value, ...]] = []
    for kind in KINDS:
        cells: list[Value] = []
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


def relations_table(found: ErrorKinds) -> Table:
    """Shares of each kind by relation and category."""
    kinds, distinct = found.kinds(), found.tallies_Q6[:, 5]
    rows: list[tuple[Value, ...]] = []
    for relation in (ALL_CATEGORIES, *relations_of(found)):
        for category in SORTED:
            mask = found.mask(category, relation)
            num = int(mask.sum())
            if num:
                parts = (_percent(int((kinds[mask] == kind).sum()), num) for kind in KINDS)
                rows.append((relation, str(category), num, *parts, float(np.median(distinct[mask]))))
    columns = ("relation", "category", "questions", *KINDS, "distinct wrong answers (median)")
    return Table(name="error_kinds_by_relation", columns=columns, rows=tuple(rows), total_rows=frozenset({0, 1}))


def planted_table(found: ErrorKinds, planted: PlantedFacts) -> Table:
    """Shares of each kind by how firmly a fact was planted.

    Raises:
        NotTestable: none of the questions is a fact of the world.
    """
    strength = dict(zip(planted.question_ids.tolist(), planted.strength.tolist(), strict=True))
    of_question = np.array([strength.get(one, "") for one in found.question_ids.tolist()])
    rows: list[tuple[Value, ...]] = []
    for name in STRENGTHS:
        mask = of_question == name
        if mask.any():
            rows.append((name, int(mask.sum()), *(round(share, 1) for share in shares(found, mask).values())))
    if not rows:
        raise NotTestable("no WeaklyKnown or Unknown question is a fact of the world")
    return Table(name="error_kinds_planted", columns=("planted", "questions", *KINDS), rows=tuple(rows))


def sensitivity_table(found: ErrorKinds) -> Table:
    """Numbers of each kind at other limits."""
    by_limit = sensitivity(found)
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (f"{100 * limit:.0f} %", *(by_limit[limit][kind] for kind in KINDS)) for limit in LIMITS
    )
    return Table(name="error_kinds_limits", columns=("limit", *KINDS), rows=rows)


def examples_table(found: ErrorKinds) -> Table:
    """A few questions of each kind, with what the model says."""
    if not found.examples:
        raise NotTestable("there are no WeaklyKnown or Unknown questions")
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (one.kind, one.category, one.relation, one.question, " | ".join(one.gold),
         ", ".join(f"{text or '(empty)'} ({num})" for text, num in one.said) + f", of {one.total}")
        for one in found.examples
    )  # fmt: skip
    columns = ("kind", "category", "relation", "question", "gold", "wrong answers, most frequent first")
    return Table(name="error_kinds_examples", columns=columns, rows=rows, text_columns=frozenset({3, 4, 5}))


def _against_the_truth(data: StudyData) -> tuple[Exhibit, ...]:
    """Only where facts were planted."""
    planted = data.planted
    if planted is None:
        return ()
    return (
        wide(
            "The same questions by how their facts were planted (%): beside a rival named more often (minority) or as "
            "often (contested), or never.",
            lambda: planted_table(_kinds(data), planted),
        ),
    )


def _text(data: StudyData) -> str:
    said = (
        f"A question is sorted by its wrong answers: one answer, if {100 * ALWAYS:.0f} % or more of them are the same; "
        f"two rivals, if two answers together make up as many, the second at least {100 * (1 - ALWAYS):.0f} %; "
        f"scattered otherwise. Refused, or empty, if {100 * MOSTLY:.0f} % or more of them are. Fewer than "
        f"{LEAST_WRONG} wrong answers are too few to tell. After Orgad et al. 2024 (arXiv:2410.02707), who ask for "
        "half of the answers at temperature 1; answers agree more at the temperature used here, hence the higher limit."
    )
    found = data.error_kinds
    if found is None:
        return said
    if found.way == "greedy":
        said += " The annotation kept no wrong samples whole (labels mode), so the greedy answers to its prompts count."
    unknown = found.mask(SORTED[-1])
    if unknown.any():
        share = shares(found, unknown)
        said += (
            f" Of {int(unknown.sum()):,} Unknown questions, {share[ONE]:.0f} % always get the same wrong answer, "
            f"{share[TWO]:.0f} % one of two; {share[REFUSED]:.0f} % are mostly refused."
        )
    return said


def _percent(num: int, total: int) -> float | None:
    return round(100 * num / total, 1) if total else None


def _kinds(data: StudyData) -> ErrorKinds:
    if data.error_kinds is None:
        raise NotTestable(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return data.error_kinds
