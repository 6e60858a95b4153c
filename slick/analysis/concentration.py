"""Does it harm more when some relations are wholly Unknown than when the same Unknown rows are spread over all? Pure.

Two fine-tuning sets of as many rows of each relation and as many Unknown rows in all: `unknown-X` has the share X of
Unknown rows in every relation, `concentrated-X` fills whole relations with them and leaves the others wholly Known.
Positive differences favour the concentrated set.

Source: arXiv:2511.02626 (Understanding New-Knowledge-Induced Factual Hallucinations), where a kind of knowledge that is
wholly new harms more than a larger share of new rows spread over kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData, Variant
from slick.analysis.findings.verdict import Z
from slick.analysis.statistics.subset import Compared, compare
from slick.analysis.terms import EARLY, LAST, Cell, NotTestable
from slick.types import Category

ALL_TEST, FILLED, SPARED, OOD = "all test", "wholly Unknown", "wholly Known", "out of distribution"
"""The questions that are looked at: all ID test questions, those of relations that the concentrated set fills with
Unknown rows, those of relations it leaves wholly Known, and OOD test questions."""
GROUPS = (ALL_TEST, FILLED, SPARED, OOD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The concentrated set (first) against the spread one (second) on one group of questions."""

    group: str
    when: str
    """`EARLY` or `LAST`."""
    compared: Compared | None
    why: str = ""
    """What is missing, where there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """One concentrated set against the set of the sweep with the same share."""

    name: str
    spread: str
    """Name of the set of the sweep."""
    share: float
    filled: tuple[str, ...]
    """Relations that the concentrated set fills with Unknown rows."""
    spared: tuple[str, ...]
    """Relations that it leaves wholly Known."""
    mixed: tuple[str, ...]
    """Relations that it fills in part: they count among all test questions only."""
    contrasts: tuple[Contrast, ...]
    """Groups outermost, early stop before convergence."""

    def at(self, group: str, when: str) -> Contrast:
        """The contrast on one group at one checkpoint."""
        return next(one for one in self.contrasts if (one.group, one.when) == (group, when))


def concentrations(data: StudyData) -> list[Concentration]:
    """Every concentrated set that was trained beside the set of the sweep with the same share, by ascending share.

    Raises:
        NotTestable: there is none.
    """
    spread = dict(data.sweep("unknown", least=0))
    pairs = [(share, name, spread[share]) for share, name in data.sweep("concentrated", least=0) if share in spread]
    if not pairs:
        raise NotTestable(
            "needs finished runs of a set whose Unknown rows fill whole relations and of the sweep's set with the same "
            "share, such as concentrated-050 and unknown-050 (--concentrated-shares 0.5)"
        )
    return [_concentration(data, share, name, other) for share, name, other in pairs]


def certain(change: Cell) -> bool:
    """True if a difference is more than chance explains: 0 is outside its 95 % interval."""
    return abs(change.value) > Z * change.se


def _concentration(data: StudyData, share: float, name: str, spread: str) -> Concentration:
    variant = data.variants[name]
    filled, spared, mixed = (_relations(variant, known) for known in ({False}, {True}, {True, False}))
    ids = {FILLED: _test_ids(data, filled), SPARED: _test_ids(data, spared)}
    contrasts = []
    for group in GROUPS:
        for when in (EARLY, LAST):
            split = "ood" if group == OOD else "test"
            try:
                found = compare(data, (name, when), (spread, when), split, ids.get(group))
                contrasts.append(Contrast(group=group, when=when, compared=found))
            except NotTestable as reason:
                contrasts.append(Contrast(group=group, when=when, compared=None, why=str(reason)))
    return Concentration(
        name=name, spread=spread, share=share, filled=filled, spared=spared, mixed=mixed, contrasts=tuple(contrasts)
    )


def _relations(variant: Variant, known: set[bool]) -> tuple[str, ...]:
    """Relations whose rows are all Unknown ({False}), all Known ({True}) or both."""
    sorts = {
        relation: {category != Category.UNKNOWN for category, num in mix.items() if num}
        for relation, mix in variant.relations.items()
    }
    return tuple(sorted(relation for relation, found in sorts.items() if found == known))


def _test_ids(data: StudyData, relations: Sequence[str]) -> NDArray[np.str_]:
    found = [data.test_ids[relation] for relation in relations if relation in data.test_ids]
    return np.concatenate(found) if found else np.array([], dtype=str)
