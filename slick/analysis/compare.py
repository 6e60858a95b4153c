"""Several studies side by side: which may be held against each other, by how much they differ, how far seeds spread.

Pure. Accuracies are percentages, their differences points. Two studies are compared row by row where they asked the
same questions and matched answers alike; otherwise their numbers stand side by side, and no difference is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Outcome, Z
from slick.analysis.provenance import Origin
from slick.analysis.setting_differences import unexplained
from slick.analysis.terms import EARLY, LAST, MIN_SEEDS, Cell, NotTestable

WHENS = (EARLY, LAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the studies."""

    label: str
    """One letter, by which figures and tables name it."""
    name: str
    """What tells its folder from the others'."""
    data: StudyData
    outcomes: tuple[Outcome, ...]
    origin: Origin


class Difference(NamedTuple):
    """Accuracy of `second` minus that of `first`, in points."""

    first: str
    second: str
    share: float
    when: str
    value: float
    low: float
    """Of the 95 % interval."""
    high: float
    paired: bool
    """Row by row; otherwise from the standard errors of both."""


class Spread(NamedTuple):
    """One accuracy over studies that differ in their seeds alone."""

    share: float
    when: str
    values: tuple[float, ...]
    """One a study."""

    @property
    def mean(self) -> float:
        """Over the studies."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Standard deviation over the studies."""
        return float(np.std(self.values, ddof=1))


def labels_of(sides: Sequence[Side]) -> str:
    """The letters of some studies, for people.

    >>> from types import SimpleNamespace as Named
    >>> labels_of([Named(label="A"), Named(label="B"), Named(label="C")])
    'A, B and C'
    """
    labels = [side.label for side in sides]
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def accuracies(side: Side) -> dict[tuple[float, str], Cell]:
    """(share of Unknown rows, early stop or convergence) to test accuracy; empty before the sweep."""
    found: dict[tuple[float, str], Cell] = {}
    try:
        sweep = side.data.sweep("unknown")
    except NotTestable:
        return found
    for share, name in sweep:
        for when in WHENS:
            try:
                found[share, when] = side.data.accuracy(name, when)
            except NotTestable:
                continue
    return found


def why_not_comparable(first: Side, second: Side) -> str:
    """Why no differences are given; empty if the two asked the same questions and matched answers alike."""
    a, b = first.origin, second.origin
    for side, mark in ((first, a.questions_mark), (second, b.questions_mark)):
        if mark is None:
            return f"{side.label} has no questions yet"
    if a.questions_mark != b.questions_mark:
        return "other questions"
    if a.matcher is not None and b.matcher is not None and a.matcher != b.matcher:
        return f"another matcher: {a.matcher} and {b.matcher}"
    return ""


def differences(first: Side, second: Side) -> list[Difference]:
    """Test accuracy of the second study minus that of the first, at each share and checkpoint that both have.

    Raises:
        NotTestable: the two cannot be compared, or share no finished training.
    """
    why = why_not_comparable(first, second)
    if why:
        raise NotTestable(f"{first.label} and {second.label} have {why}, so their difference says nothing")
    sweeps = [dict(side.data.sweep("unknown")) for side in (first, second)]
    found = []
    for share in sorted(sweeps[0].keys() & sweeps[1].keys()):
        for when in WHENS:
            names = sweeps[0][share], sweeps[1][share]
            try:
                gap, paired = _gap((first.data, names[0]), (second.data, names[1]), when)
            except NotTestable:  # early stop needs dev rows, which one of them may lack
                continue
            ends = gap.value - Z * gap.se, gap.value + Z * gap.se
            found.append(Difference(first.label, second.label, share, when, gap.value, *ends, paired))
    if not found:
        raise NotTestable(f"{first.label} and {second.label} have no finished training at the same share")
    return found


def _gap(first: tuple[StudyData, str], second: tuple[StudyData, str], when: str) -> tuple[Cell, bool]:
    a, b = first[0].accuracy(first[1], when), second[0].accuracy(second[1], when)
    apart = float(np.hypot(a.se, b.se))
    seeds = min(a.num_seeds, b.num_seeds)
    rows = [data.mean_hits(name, when, "test") for data, name in (first, second)]
    ids = [_ids(data, name, when) for data, name in (first, second)]
    if rows[0] is None or rows[1] is None or len(rows[0]) < 2 or ids[0] != ids[1]:
        return Cell(b.value - a.value, apart, seeds), False
    gaps = 100.0 * (rows[1] - rows[0])
    se = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    # With three trainings on either side, what trainings vary by is seen, and may not be left out.
    return Cell(b.value - a.value, max(se, apart) if seeds >= MIN_SEEDS else se, seeds), True


def _ids(data: StudyData, name: str, when: str) -> list[str]:
    run = data.runs_of(name)[0]
    hits = run.hits.get((run.epoch(when), "test"))
    return [] if hits is None else [str(one) for one in hits.question_ids.tolist()]


def comparable_pairs(sides: Sequence[Side]) -> list[tuple[Side, Side]]:
    """Pairs of studies whose differences mean something, in their order."""
    return [(a, b) for a, b in combinations(sides, 2) if not why_not_comparable(a, b)]


def differ_in_seeds_alone(first: Side, second: Side) -> bool:
    """True if two studies have other seeds, and certainly the same settings and inputs."""
    return _same_settings(first, second) and first.origin.basis.seeds != second.origin.basis.seeds


def do_not_differ(first: Side, second: Side) -> bool:
    """True if two studies have certainly the same settings, inputs and seeds."""
    return _same_settings(first, second) and first.origin.basis.seeds == second.origin.basis.seeds


def _same_settings(first: Side, second: Side) -> bool:
    a, b = first.origin, second.origin
    return a.recipe is not None and a.recipe == b.recipe and not unexplained(a.basis, b.basis)


def same_recipe(sides: Sequence[Side]) -> list[tuple[Side, ...]]:
    """Groups of two studies or more, any two of which differ in their seeds alone."""
    groups: list[list[Side]] = []
    for side in sides:
        for group in groups:
            if all(differ_in_seeds_alone(one, side) for one in group):
                group.append(side)
                break
        else:
            groups.append([side])
    return [tuple(group) for group in groups if len(group) > 1]


def version_differences(sides: Sequence[Side]) -> dict[str, tuple[str, ...]]:
    """Libraries, and the devices of engines and trainings, that are not the same in all studies: one text a study."""
    found = {}
    for name in dict.fromkeys(name for side in sides for name in side.origin.versions):
        found[name] = tuple(" and ".join(sorted(side.origin.versions.get(name, ()))) for side in sides)
    found["device of the engines"] = tuple(side.origin.cost.engine_device or "" for side in sides)
    found["device of the trainings"] = tuple(side.origin.cost.device or "" for side in sides)
    return {name: texts for name, texts in found.items() if len(set(texts)) > 1}


def spreads(group: Sequence[Side]) -> list[Spread]:
    """Every accuracy that all studies of a group have, by share and checkpoint.

    Raises:
        NotTestable: they share none.
    """
    found = [accuracies(side) for side in group]
    shared = set.intersection(*(set(of_one) for of_one in found))
    if not shared:
        raise NotTestable(f"{labels_of(group)} have no finished training at the same share")
    ordered = sorted(shared, key=lambda key: (WHENS.index(key[1]), key[0]))
    return [Spread(share, when, tuple(of_one[share, when].value for of_one in found)) for share, when in ordered]


def tally(sides: Sequence[Side]) -> dict[str, tuple[int, int]]:
    """Each finding: in how many studies it holds, and in how many it could be tested."""
    found: dict[str, tuple[int, int]] = {}
    for side in sides:
        for outcome in side.outcomes:
            holds, tested = found.get(outcome.id, (0, 0))
            found[outcome.id] = holds + (outcome.holds is True), tested + (outcome.holds is not None)
    return found
