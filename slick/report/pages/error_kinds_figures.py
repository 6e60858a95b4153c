"""The figures of how a model errs."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.error_kinds import (
    CLASSIFIED_CATEGORIES,
    EMPTY,
    ERROR_KINDS,
    REFUSED,
    SCATTERED,
    SINGLE_ANSWER,
    TOO_FEW,
    TWO_ANSWERS,
    ErrorKinds,
)
from slick.analysis.terms import InsufficientDataError
from slick.report.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILLION, label_line_ends
from slick.types import ALL_CATEGORIES

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
