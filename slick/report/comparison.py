"""Several studies side by side: which may be held against each other, by how much they differ, how far seeds spread.

Pure. Accuracies are percentages, their differences points. Two studies are compared row by row where they asked the
same questions and matched answers alike; otherwise their numbers stand side by side, and no difference is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from slick.report.data import StudyData
from slick.report.findings.base import FindingResult
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    MIN_SEEDS,
    Z_95,
    InsufficientDataError,
    Measurement,
)
from slick.report.provenance import Provenance
from slick.report.setting_differences import unexplained_differences

CHECKPOINTS = (EARLY_STOP, CONVERGENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedStudy:
    """One of the studies."""

    label: str
    """One letter, by which figures and tables name it."""
    name: str
    """What tells its folder from the others'."""
    data: StudyData
    outcomes: tuple[FindingResult, ...]
    provenance: Provenance


class AccuracyDifference(NamedTuple):
    """Accuracy of `second` minus that of `first`, in points."""

    first: str
    second: str
    share: float
    checkpoint: str
    value: float
    low: float
    """Of the 95 % interval."""
    high: float
    paired: bool
    """Row by row; otherwise from the standard errors of both."""


class SeedSpread(NamedTuple):
    """One accuracy over studies that differ in their seeds alone."""

    share: float
    checkpoint: str
    values: tuple[float, ...]
    """One a study."""

    @property
    def mean(self) -> float:
        """Over the studies."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the studies."""
        return float(np.std(self.values, ddof=1))


def format_labels(sides: Sequence[ComparedStudy]) -> str:
    """The letters of some studies, for people.

    >>> from types import SimpleNamespace as Named
    >>> format_labels([Named(label="A"), Named(label="B"), Named(label="C")])
    'A, B and C'
    """
    labels = [side.label for side in sides]
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def sweep_accuracies(side: ComparedStudy) -> dict[tuple[float, str], Measurement]:
    """(share of Unknown rows, early stop or convergence) to test accuracy; empty before the sweep."""
    found: dict[tuple[float, str], Measurement] = {}
    try:
        sweep = side.data.sweep_variants("unknown")
    except InsufficientDataError:
        return found
    for share, name in sweep:
        for checkpoint in CHECKPOINTS:
            try:
                found[share, checkpoint] = side.data.accuracy(name, checkpoint)
            except InsufficientDataError:
                continue
    return found


def incomparability_reason(first: ComparedStudy, second: ComparedStudy) -> str:
    """Why no differences are given; empty if the two asked the same questions and matched answers alike."""
    a, b = first.provenance, second.provenance
    for side, mark in ((first, a.questions_mark), (second, b.questions_mark)):
        if mark is None:
            return f"{side.label} has no questions yet"
    if a.questions_mark != b.questions_mark:
        return "other questions"
    if a.matcher is not None and b.matcher is not None and a.matcher != b.matcher:
        return f"another matcher: {a.matcher} and {b.matcher}"
    return ""


def accuracy_differences(first: ComparedStudy, second: ComparedStudy) -> list[AccuracyDifference]:
    """Test accuracy of the second study minus that of the first, at each share and checkpoint that both have.

    Raises:
        NotTestable: the two cannot be compared, or share no finished training.
    """
    why = incomparability_reason(first, second)
    if why:
        raise InsufficientDataError(f"{first.label} and {second.label} have {why}, so their difference says nothing")
    sweeps = [dict(side.data.sweep_variants("unknown")) for side in (first, second)]
    found = []
    for share in sorted(sweeps[0].keys() & sweeps[1].keys()):
        for checkpoint in CHECKPOINTS:
            names = sweeps[0][share], sweeps[1][share]
            try:
                gap, paired = _accuracy_difference((first.data, names[0]), (second.data, names[1]), checkpoint)
            except InsufficientDataError:  # early stop needs dev rows, which one of them may lack
                continue
            ends = gap.value - Z_95 * gap.se, gap.value + Z_95 * gap.se
            found.append(AccuracyDifference(first.label, second.label, share, checkpoint, gap.value, *ends, paired))
    if not found:
        raise InsufficientDataError(f"{first.label} and {second.label} have no finished training at the same share")
    return found


def _accuracy_difference(
    first: tuple[StudyData, str], second: tuple[StudyData, str], checkpoint: str
) -> tuple[Measurement, bool]:
    a, b = first[0].accuracy(first[1], checkpoint), second[0].accuracy(second[1], checkpoint)
    apart = float(np.hypot(a.se, b.se))
    seeds = min(a.num_seeds, b.num_seeds)
    rows = [data.mean_correct(name, checkpoint, "test") for data, name in (first, second)]
    ids = [_question_ids(data, name, checkpoint) for data, name in (first, second)]
    if rows[0] is None or rows[1] is None or len(rows[0]) < 2 or ids[0] != ids[1]:
        return Measurement(b.value - a.value, apart, seeds), False
    gaps = 100.0 * (rows[1] - rows[0])
    se = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    # With three trainings on either side, what trainings vary by is seen, and may not be left out.
    return Measurement(b.value - a.value, max(se, apart) if seeds >= MIN_SEEDS else se, seeds), True


def _question_ids(data: StudyData, name: str, checkpoint: str) -> list[str]:
    run = data.runs_for(name)[0]
    predictions = run.predictions.get((run.epoch(checkpoint), "test"))
    return [] if predictions is None else [str(one) for one in predictions.question_ids.tolist()]


def comparable_pairs(sides: Sequence[ComparedStudy]) -> list[tuple[ComparedStudy, ComparedStudy]]:
    """Pairs of studies whose differences mean something, in their order."""
    return [(a, b) for a, b in combinations(sides, 2) if not incomparability_reason(a, b)]


def differ_only_in_seeds(first: ComparedStudy, second: ComparedStudy) -> bool:
    """True if two studies have other seeds, and certainly the same settings and inputs."""
    return _same_settings(first, second) and first.provenance.basis.seeds != second.provenance.basis.seeds


def have_same_settings_and_seeds(first: ComparedStudy, second: ComparedStudy) -> bool:
    """True if two studies have certainly the same settings, inputs and seeds."""
    return _same_settings(first, second) and first.provenance.basis.seeds == second.provenance.basis.seeds


def _same_settings(first: ComparedStudy, second: ComparedStudy) -> bool:
    a, b = first.provenance, second.provenance
    return a.recipe is not None and a.recipe == b.recipe and not unexplained_differences(a.basis, b.basis)


def group_by_settings(sides: Sequence[ComparedStudy]) -> list[tuple[ComparedStudy, ...]]:
    """Groups of two studies or more, any two of which differ in their seeds alone."""
    groups: list[list[ComparedStudy]] = []
    for side in sides:
        for group in groups:
            if all(differ_only_in_seeds(one, side) for one in group):
                group.append(side)
                break
        else:
            groups.append([side])
    return [tuple(group) for group in groups if len(group) > 1]


def version_differences(sides: Sequence[ComparedStudy]) -> dict[str, tuple[str, ...]]:
    """Libraries, and the devices of engines and trainings, that are not the same in all studies: one text a study."""
    found = {}
    for name in dict.fromkeys(name for side in sides for name in side.provenance.versions):
        found[name] = tuple(" and ".join(sorted(side.provenance.versions.get(name, ()))) for side in sides)
    found["device of the engines"] = tuple(side.provenance.cost.engine_device or "" for side in sides)
    found["device of the trainings"] = tuple(side.provenance.cost.device or "" for side in sides)
    return {name: texts for name, texts in found.items() if len(set(texts)) > 1}


def seed_spreads(group: Sequence[ComparedStudy]) -> list[SeedSpread]:
    """Every accuracy that all studies of a group have, by share and checkpoint.

    Raises:
        NotTestable: they share none.
    """
    found = [sweep_accuracies(side) for side in group]
    shared = set.intersection(*(set(of_one) for of_one in found))
    if not shared:
        raise InsufficientDataError(f"{format_labels(group)} have no finished training at the same share")
    ordered = sorted(shared, key=lambda key: (CHECKPOINTS.index(key[1]), key[0]))
    return [
        SeedSpread(share, checkpoint, tuple(of_one[share, checkpoint].value for of_one in found))
        for share, checkpoint in ordered
    ]


def count_findings(sides: Sequence[ComparedStudy]) -> dict[str, tuple[int, int]]:
    """Each finding: in how many studies it holds, and in how many it could be tested."""
    found: dict[str, tuple[int, int]] = {}
    for side in sides:
        for outcome in side.outcomes:
            holds, tested = found.get(outcome.id, (0, 0))
            found[outcome.id] = holds + (outcome.holds is True), tested + (outcome.holds is not None)
    return found
