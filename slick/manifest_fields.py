"""Types of the fields of manifests and study.json that other code reads; readers check them.

Every field may be absent, since manifests of earlier versions have fewer. Fields without a type here are informative.
"""

from dataclasses import dataclass, field
from typing import Any, Required, TypedDict

from slick.storage import Folder

CountsByRelation = dict[str, dict[str, int]]
"""Relation -> split or category -> number."""


class StoredSampling(TypedDict, total=False):
    """Sampling settings of answers."""

    temperature: float
    seed: int
    num_samples: int


class StoredSettings(TypedDict, total=False):
    """Settings in manifests and started.json that other steps read. A name has the same type in all steps."""

    model: str
    questions: str
    famous_rivals: float
    seed: int
    dtype: str
    engine: str
    gpus_per_actor: float | None
    mode: str
    estimator: str
    matcher: str
    sampling: StoredSampling
    p_true: bool
    hidden: bool


class WorldTraining(TypedDict, total=False):
    """Counts of the pretraining of a world's model."""

    parameters: int
    steps: int
    tokens: int


class WorldCounts(TypedDict, total=False):
    """Counts of the world step."""

    training: WorldTraining


class AuditCounts(TypedDict):
    """Rows of EntityQuestions that the paper's filter keeps, by relation."""

    train: dict[str, int]
    test: dict[str, int]
    ood: dict[str, int]


class QuestionCounts(TypedDict, total=False):
    """Counts of the questions step, by relation and split."""

    rows: int
    read: CountsByRelation
    kept: CountsByRelation
    dropped: dict[str, CountsByRelation]
    rejected: int
    over_limit: int
    with_popularity: int
    audit: AuditCounts | None


class AnnotateCounts(TypedDict, total=False):
    """Counts of the annotate step, of P(True) and of the scores of stored answers."""

    questions: int
    candidates: int
    distractors: int
    generations: int
    answer_tokens: int
    decoded_tokens: int
    prompt_tokens: int
    prefilled_tokens: int
    engine_seconds: float
    device: str
    dtype: str
    attention: str
    engine_choice: str
    """Why `--engine auto` chose the engine of the settings; absent if the user named it."""
    set_aside: dict[str, dict[str, CountsByRelation]]


class VariantCounts(TypedDict, total=False):
    """Counts of one variant."""

    kind: Required[str]
    num: Required[int]
    requested_share: float | None
    unknown_share: float | None
    categories: dict[str, int]
    relations: CountsByRelation
    dropped_relations: list[str]


class RunCounts(TypedDict, total=False):
    """Counts of one run."""

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
    rows_evaluated_now: int | None
    truncated_rows: int
    epochs_without_test_rows: list[int]
    num_workers: int
    device: str
    dtype: str
    attention: str
    set_aside: dict[str, dict[str, int]]


class SweepCounts(TypedDict, total=False):
    """Counts of the sweep."""

    trainings: int
    points: int


_COUNTS: dict[str, Any] = {
    "world": WorldCounts,
    "questions": QuestionCounts,
    "annotate": AnnotateCounts,
    "p_true": AnnotateCounts,
    "hidden": AnnotateCounts,
    "variants": dict[str, VariantCounts],
    "sweep": SweepCounts,
}
"""Name of the step's folder -> type of its counts."""


def counts_type(folder: Folder) -> Any:
    """The type of the counts in the manifest of a step's or run's folder."""
    if folder.name in _COUNTS:
        return _COUNTS[folder.name]
    return RunCounts if folder.parent.name == "runs" else dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGrid:
    """The grid of a study's sweep."""

    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    further_seeds: tuple[int, ...] = ()
    further_seed_variants: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSweep:
    """The settings of a study's sweep."""

    grid: StoredGrid = field(default_factory=StoredGrid)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnnotate:
    """The settings of a study's annotation."""

    p_true: bool = False
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """The settings in study.json that other code reads."""

    model: str = ""
    experiments: tuple[str, ...] = ()
    annotate: StoredAnnotate = field(default_factory=StoredAnnotate)
    variants: dict[str, Any] = field(default_factory=dict)
    sweep: StoredSweep = field(default_factory=StoredSweep)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """The content of study.json."""

    settings: StudySettings
    versions: dict[str, str] = field(default_factory=dict)
