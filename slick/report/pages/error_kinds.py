"""The section of how a model errs: always the same wrong answer, two rivals, anything, or a refusal."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.error_kinds import (
    ALWAYS,
    EMPTY,
    FEW,
    KINDS,
    LEAST_WRONG,
    LIMITS,
    MOSTLY,
    ONE,
    REFUSED,
    SCATTERED,
    SORTED,
    TWO,
    ErrorKinds,
    sensitivity,
)
from slick.analysis.terms import NotTestable
from slick.report.page import BEYOND, Section, drawn, numbers, wide
from slick.report.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILLION, label_ends
from slick.report.tables import Table, Value
from slick.types import ALL

COLOURS = {ONE: VERMILLION, TWO: ORANGE, SCATTERED: BLUE, REFUSED: GREEN, EMPTY: MUTED, FEW: "#c3c8cf"}
"""Of the bars."""
_LIGHT = {TWO, FEW}
"""Bars that want dark text."""


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
                lambda: bars(_kinds(data)),
            ),
            drawn(
                "Unknown questions by relation, those with most settled errors first.",
                "error_kinds_by_relation",
                "Stacked bars: shares of the kinds of error among Unknown questions of each relation",
                lambda: relation_bars(_kinds(data)),
            ),
            wide(
                "Questions of each kind, with their share of the category and of all annotated questions, Known ones "
                "too (%).",
                lambda: kinds_table(_kinds(data)),
            ),
            wide("Examples, drawn by the seed; in brackets how often.", lambda: examples_table(_kinds(data))),
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
    for relation in (ALL, *_relations(found)):
        for category in SORTED:
            mask = found.mask(category, relation)
            num = int(mask.sum())
            if num:
                shares = (_percent(int((kinds[mask] == kind).sum()), num) for kind in KINDS)
                rows.append((relation, str(category), num, *shares, float(np.median(distinct[mask]))))
    columns = ("relation", "category", "questions", *KINDS, "distinct wrong answers (median)")
    return Table(name="error_kinds_by_relation", columns=columns, rows=tuple(rows), total_rows=frozenset({0, 1}))


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


def bars(found: ErrorKinds) -> Callable[[Any], None]:
    """One stacked bar a category, kinds named beside the last one."""
    shares = {str(category): _shares(found, found.mask(category)) for category in SORTED if found.mask(category).any()}
    if not shares:
        raise NotTestable("there are no WeaklyKnown or Unknown questions")

    def plot(axes: Any) -> None:
        labels = []
        for x, (name, of_kind) in enumerate(shares.items()):
            bottom = 0.0
            for kind, share in of_kind.items():
                axes.bar(x, share, 0.7, bottom=bottom, color=COLOURS[kind], edgecolor="white", linewidth=0.8)
                if share >= 5:
                    colour = INK if kind in _LIGHT else "white"
                    axes.text(x, bottom + share / 2, f"{share:.0f}", ha="center", va="center", color=colour)
                if name == list(shares)[-1] and any(one[kind] for one in shares.values()):
                    labels.append((bottom + share / 2, kind, COLOURS[kind] if kind not in _LIGHT else INK))
                bottom += share
        axes.set_ylim(0, 100)
        axes.set_xlim(-0.5, len(shares) + 0.25)
        axes.set_xticks(range(len(shares)), list(shares))
        axes.grid(visible=False, axis="x")
        axes.spines["bottom"].set_bounds(-0.5, len(shares) - 0.5)
        axes.set_ylabel("Questions (%)")
        label_ends(axes, len(shares) - 0.65, labels)
        axes.set_ylim(0, 100)

    return plot


def relation_bars(found: ErrorKinds) -> Callable[[Any], None]:
    """One bar a relation, Unknown questions only."""
    category = SORTED[-1]
    shares = {relation: _shares(found, found.mask(category, relation)) for relation in _relations(found, category)}
    if not shares:
        raise NotTestable("there are no Unknown questions")
    order = sorted(shares, key=lambda relation: (shares[relation][ONE], relation))
    shown = [kind for kind in KINDS if any(one[kind] for one in shares.values())]

    def plot(axes: Any) -> None:
        axes.figure.set_size_inches(5.3, max(4.0, 1.2 + 0.24 * len(order)))
        left = np.zeros(len(order))
        for kind in shown:
            width = np.array([shares[relation][kind] for relation in order])
            axes.barh(order, width, 0.78, left=left, color=COLOURS[kind], edgecolor="white", linewidth=0.6, label=kind)
            left += width
        axes.set_xlim(0, 100)
        axes.margins(y=0.01)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.set_xlabel("Unknown questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3, fontsize=11, handlelength=1.0)

    return plot


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
        share = _shares(found, unknown)
        said += (
            f" Of {int(unknown.sum()):,} Unknown questions, {share[ONE]:.0f} % always get the same wrong answer, "
            f"{share[TWO]:.0f} % one of two, and {share[REFUSED]:.0f} % are refused."
        )
    return said


def _shares(found: ErrorKinds, mask: NDArray[np.bool_]) -> dict[str, float]:
    kinds = found.kinds()[mask]
    return {kind: 100.0 * float((kinds == kind).mean()) for kind in KINDS}


def _relations(found: ErrorKinds, category: str = ALL) -> list[str]:
    return [str(relation) for relation in np.unique(found.relations[found.mask(category)])]


def _percent(num: int, total: int) -> float | None:
    return round(100 * num / total, 1) if total else None


def _kinds(data: StudyData) -> ErrorKinds:
    if data.error_kinds is None:
        raise NotTestable(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return data.error_kinds
