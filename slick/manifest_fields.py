"""What the manifests of the steps and study.json hold, as types that their readers check.

Every field may be absent: manifests of older versions hold less. Fields without a type here are for people.
"""

from dataclasses import dataclass, field
from typing import Any, Required, TypedDict

from slick.storage import Folder

CountsByRelation = dict[str, dict[str, int]]
"""Relation to split, or to category, to number."""


class StoredSampling(TypedDict, total=False):
    """How answers were drawn."""

    temperature: float
    seed: int
    num_samples: int


class StoredSettings(TypedDict, total=False):
    """Settings in manifests and started.json that other steps read; of one name they are of one type in all steps."""

    model: str
    seed: int
    dtype: str
    mode: str
    estimator: str
    matcher: str
    sampling: StoredSampling
    p_true: bool


class WorldTraining(TypedDict, total=False):
    """Of the world's model."""

    parameters: int
    steps: int
    tokens: int


class WorldCounts(TypedDict, total=False):
    """Of the world step."""

    training: WorldTraining


class AuditCounts(TypedDict):
    """Rows that the paper's filter leaves of EntityQuestions, by relation."""

    train: dict[str, int]
    test: dict[str, int]
    ood: dict[str, int]


class QuestionCounts(TypedDict, total=False):
    """Of the questions step: by relation and split."""

    rows: int
    read: CountsByRelation
    kept: CountsByRelation
    dropped: dict[str, CountsByRelation]
    rejected: int
    over_limit: int
    with_popularity: int
    audit: AuditCounts | None


class AnnotateCounts(TypedDict, total=False):
    """Of the annotate step and of P(True)."""

    questions: int
    generations: int
    answer_tokens: int
    decoded_tokens: int
    prompt_tokens: int
    prefilled_tokens: int
    engine_seconds: float
    device: str
    dtype: str
    attention: str
    set_aside: dict[str, dict[str, CountsByRelation]]


class VariantCounts(TypedDict, total=False):
    """Of one fine-tuning set."""

    kind: Required[str]
    num: Required[int]
    requested_share: float | None
    unknown_share: float | None
    categories: dict[str, int]
    relations: CountsByRelation
    dropped_relations: list[str]


class RunCounts(TypedDict, total=False):
    """Of one fine-tuning."""

    epochs: int
    epochs_now: int
    converged: bool
    ended_by: str | None
    best_dev_accuracy: float
    tokens_now: int | None
    training_seconds: float | None
    evaluation_seconds: float | None
    train_rows: int
    evaluated_rows: int
    num_workers: int
    device: str
    dtype: str
    attention: str
    set_aside: dict[str, dict[str, int]]


class SweepCounts(TypedDict, total=False):
    """Of the sweep."""

    trainings: int
    points: int


_COUNTS: dict[str, Any] = {
    "world": WorldCounts,
    "questions": QuestionCounts,
    "annotate": AnnotateCounts,
    "p_true": AnnotateCounts,
    "variants": dict[str, VariantCounts],
    "sweep": SweepCounts,
}
"""By the name of the step's folder."""


def counts_type(folder: Folder) -> Any:
    """The type of the counts in the manifest of a step's folder, or of a fine-tuning's."""
    if folder.name in _COUNTS:
        return _COUNTS[folder.name]
    return RunCounts if folder.parent.name == "runs" else dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGrid:
    """Which trainings the sweep of a study does."""

    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSweep:
    """The settings of a study's sweep."""

    grid: StoredGrid = field(default_factory=StoredGrid)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnnotate:
    """The settings of a study's annotation."""

    p_true: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """The settings in study.json that are read again."""

    model: str = ""
    experiments: tuple[str, ...] = ()
    annotate: StoredAnnotate = field(default_factory=StoredAnnotate)
    variants: dict[str, Any] = field(default_factory=dict)
    sweep: StoredSweep = field(default_factory=StoredSweep)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """study.json."""

    settings: StudySettings
    versions: dict[str, str] = field(default_factory=dict)
