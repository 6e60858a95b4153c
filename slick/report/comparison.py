"""Several studies: which are comparable, their differences in accuracy, and the spread over seeds. Pure.

Accuracies are percentages and differences are percentage points. Two studies are comparable if they have the same
questions and the same matcher; their differences are then paired by question. Otherwise no difference is given.
"""

from collections.abc import Sequence
from contextlib import suppress
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
    subtract,
)
from slick.report.provenance import Provenance
from slick.report.setting_differences import unexplained_differences

CHECKPOINTS = (EARLY_STOP, CONVERGENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedStudy:
    """One of the compared studies."""

    label: str
    """One letter that identifies the study in figures and tables."""
    name: str
    """The shortest end of the folder's path that is unique among the studies."""
    data: StudyData
    outcomes: tuple[FindingResult, ...]
    provenance: Provenance


class AccuracyDifference(NamedTuple):
    """Accuracy of `second` minus that of `first`, in percentage points."""

    first: str
    second: str
    share: float
    checkpoint: str
    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    paired: bool
    """Whether the interval is paired by question, or from the standard errors of both."""


class SeedSpread(NamedTuple):
    """The accuracy at one share and checkpoint in studies that differ only in their seeds."""

    share: float
    checkpoint: str
    values: tuple[float, ...]
    """One per study."""

    @property
    def mean(self) -> float:
        """Mean over the studies."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the studies."""
        return float(np.std(self.values, ddof=1))


def format_labels(studies: Sequence[ComparedStudy]) -> str:
    """The labels of studies as text.

    >>> from types import SimpleNamespace as Named
    >>> format_labels([Named(label="A"), Named(label="B"), Named(label="C")])
    'A, B and C'
    """
    labels = [study.label for study in studies]
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def sweep_accuracies(study: ComparedStudy) -> dict[tuple[float, str], Measurement]:
    """(share of Unknown rows, early stop or convergence) -> test accuracy; empty without runs of the sweep."""
    accuracies: dict[tuple[float, str], Measurement] = {}
    for share, name in study.data.sweep_variants("unknown", min_shares=0):
        for checkpoint in CHECKPOINTS:
            with suppress(InsufficientDataError):  # early stop needs dev rows
                accuracies[share, checkpoint] = study.data.accuracy(name, checkpoint)
    return accuracies


def incomparability_reason(first: ComparedStudy, second: ComparedStudy) -> str:
    """Why two studies are not comparable; empty if they have the same questions and matcher."""
    a, b = first.provenance, second.provenance
    for study in (first, second):
        if study.provenance.questions_mark is None:
            return f"{study.label} has no questions yet"
    if a.questions_mark != b.questions_mark:
        return "different questions"
    if a.matcher is not None and b.matcher is not None and a.matcher != b.matcher:
        return f"different matchers: {a.matcher} and {b.matcher}"
    return ""


def accuracy_differences(first: ComparedStudy, second: ComparedStudy) -> list[AccuracyDifference]:
    """Test accuracy of the second study minus that of the first, at each share and checkpoint that both have.

    Raises:
        InsufficientDataError: the two are not comparable, or have no run at the same share.
    """
    reason = incomparability_reason(first, second)
    if reason:
        raise InsufficientDataError(f"{first.label} and {second.label} are not comparable: {reason}")
    sweeps = [dict(study.data.sweep_variants("unknown")) for study in (first, second)]
    differences = []
    for share in sorted(sweeps[0].keys() & sweeps[1].keys()):
        for checkpoint in CHECKPOINTS:
            names = sweeps[0][share], sweeps[1][share]
            try:
                gap, paired = _accuracy_difference((first.data, names[0]), (second.data, names[1]), checkpoint)
            except InsufficientDataError:  # early stop needs dev rows, which one of them may lack
                continue
            ends = gap.value - Z_95 * gap.se, gap.value + Z_95 * gap.se
            differences.append(
                AccuracyDifference(first.label, second.label, share, checkpoint, gap.value, *ends, paired)
            )
    if not differences:
        raise InsufficientDataError(f"{first.label} and {second.label} have no finished run at the same share")
    return differences


def _accuracy_difference(
    first: tuple[StudyData, str], second: tuple[StudyData, str], checkpoint: str
) -> tuple[Measurement, bool]:
    a, b = first[0].accuracy(first[1], checkpoint), second[0].accuracy(second[1], checkpoint)
    unpaired = subtract(b, a)
    rows = [data.mean_correct(name, checkpoint, "test") for data, name in (first, second)]
    ids = [_question_ids(data, name, checkpoint) for data, name in (first, second)]
    if rows[0] is None or rows[1] is None or len(rows[0]) < 2 or ids[0] != ids[1]:
        return unpaired, False
    gaps = 100.0 * (rows[1] - rows[0])
    se = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    if unpaired.num_seeds >= MIN_SEEDS:  # the errors of a and b include the variance between seeds
        se = max(se, unpaired.se)
    return unpaired._replace(se=se), True


def _question_ids(data: StudyData, name: str, checkpoint: str) -> list[str]:
    run = data.runs_for(name)[0]
    predictions = run.predictions.get((run.epoch(checkpoint), "test"))
    return [] if predictions is None else list(map(str, predictions.question_ids.tolist()))


def comparable_pairs(studies: Sequence[ComparedStudy]) -> list[tuple[ComparedStudy, ComparedStudy]]:
    """Pairs of comparable studies, in order."""
    return [(a, b) for a, b in combinations(studies, 2) if not incomparability_reason(a, b)]


def differ_only_in_seeds(first: ComparedStudy, second: ComparedStudy) -> bool:
    """Whether two studies are known to have the same settings and inputs, but different seeds."""
    return _same_settings(first, second) and first.provenance.basis.seeds != second.provenance.basis.seeds


def have_same_settings_and_seeds(first: ComparedStudy, second: ComparedStudy) -> bool:
    """Whether two studies are known to have the same settings, inputs and seeds."""
    return _same_settings(first, second) and first.provenance.basis.seeds == second.provenance.basis.seeds


def _same_settings(first: ComparedStudy, second: ComparedStudy) -> bool:
    a, b = first.provenance, second.provenance
    return a.recipe is not None and a.recipe == b.recipe and not unexplained_differences(a.basis, b.basis)


def group_by_settings(studies: Sequence[ComparedStudy]) -> list[tuple[ComparedStudy, ...]]:
    """Groups of two or more studies that differ only in their seeds."""
    groups: list[list[ComparedStudy]] = []
    for study in studies:
        for group in groups:
            if all(differ_only_in_seeds(member, study) for member in group):
                group.append(study)
                break
        else:
            groups.append([study])
    return [tuple(group) for group in groups if len(group) > 1]


def version_differences(studies: Sequence[ComparedStudy]) -> dict[str, tuple[str, ...]]:
    """Versions of libraries, and devices of engines and trainings, that differ between studies: one text per study."""
    texts = {}
    for name in dict.fromkeys(name for study in studies for name in study.provenance.versions):
        texts[name] = tuple(" and ".join(sorted(study.provenance.versions.get(name, ()))) for study in studies)
    texts["device of the engines"] = tuple(study.provenance.cost.engine_device or "" for study in studies)
    texts["device of the trainings"] = tuple(study.provenance.cost.device or "" for study in studies)
    return {name: by_study for name, by_study in texts.items() if len(set(by_study)) > 1}


def seed_spreads(group: Sequence[ComparedStudy]) -> list[SeedSpread]:
    """The accuracies that all studies of a group have, by checkpoint and share.

    Raises:
        InsufficientDataError: there is none.
    """
    accuracies = [sweep_accuracies(study) for study in group]
    shared = set.intersection(*map(set, accuracies))
    if not shared:
        raise InsufficientDataError(f"{format_labels(group)} have no finished run at the same share")
    return [
        SeedSpread(share, checkpoint, tuple(by_key[share, checkpoint].value for by_key in accuracies))
        for share, checkpoint in sorted(shared, key=lambda key: (CHECKPOINTS.index(key[1]), key[0]))
    ]


def count_findings(studies: Sequence[ComparedStudy]) -> dict[str, tuple[int, int]]:
    """Finding -> number of studies in which it holds, and number that decide it."""
    counts: dict[str, tuple[int, int]] = {}
    for study in studies:
        for outcome in study.outcomes:
            holds, tested = counts.get(outcome.id, (0, 0))
            counts[outcome.id] = holds + (outcome.holds is True), tested + (outcome.holds is not None)
    return counts
