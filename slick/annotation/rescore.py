"""New labels from stored answers, with another matcher or fewer exemplar sets or samples; generates nothing."""

import time
from dataclasses import dataclass, replace

from slick.annotation.config import AnnotateConfig
from slick.annotation.labels import label
from slick.annotation.store import select_questions
from slick.annotation.uncertainty import Scoring
from slick.datasets import read_questions
from slick.errors import SettingsError, StudyError
from slick.locks import exclusive_lock
from slick.matching import MATCHERS
from slick.settings import check_settings, setting
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import MismatchError, convert
from slick.study import MANIFEST, STARTED, Manifest, complete_step, fingerprint, read_start_record, require_manifest
from slick.study_files import read_exemplars


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreConfig:
    """Settings of the new labels; None keeps the setting of the annotation."""

    matcher: str | None = setting(None, registry=MATCHERS)
    """When an answer is correct; see `slick.matching`."""
    num_exemplar_sets: int | None = None
    """Use the answers to this many first exemplar sets."""
    num_samples: int | None = None
    """Use this many first samples of each prompt."""

    def __post_init__(self) -> None:
        check_settings(self)


def rescore(study: FolderLike, config: RescoreConfig) -> Manifest:
    """Replace knowledge.parquet, confidence.json and the manifest, as if annotated with these settings.

    The stored answers do not change, so another rescoring can restore the labels.

    Raises:
        StudyError: the annotation is not finished, or did not keep all answers.
        SettingsError: there are fewer exemplar sets or samples than requested.

    Example:
        slick.rescore("studies/mine", slick.RescoreConfig(matcher="contains"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "annotate"):
        return _rescore(study, config)


def _original_config(folder: Folder) -> AnnotateConfig:
    """The settings of the stored answers.

    Raises:
        StudyError: started.json is missing or invalid.
    """
    fix = f"restore the file, or delete {folder} and run `slick annotate` again"
    started = read_start_record(folder)
    if started is None:
        raise StudyError(f"{folder}/{STARTED}, which records the settings of the answers, is missing; {fix}")
    try:
        config: AnnotateConfig = convert(started.settings, AnnotateConfig, "settings", exact=True)
    except MismatchError as error:
        raise StudyError(f"{folder}/{STARTED}: {error}; {fix}") from error
    return config


def _rescore(study: Folder, config: RescoreConfig) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("annotate")
    manifest = require_manifest(folder, "annotate")
    original = _original_config(folder)
    if original.estimator == "gold" or original.mode == "labels":
        raise StudyError(
            f"{folder.uri} was annotated with --estimator {original.estimator} --mode {original.mode}, which does not "
            "keep all answers; to rescore, annotate with --estimator sampled --mode full"
        )
    sets, samples = original.num_exemplar_sets, original.sampling.num_samples
    num_sets, num_samples = config.num_exemplar_sets or sets, config.num_samples or samples
    if not (1 <= num_sets <= sets and 1 <= num_samples <= samples):
        raise SettingsError(
            f"{folder.uri} holds answers for {sets} exemplar sets with {samples} samples each; rescoring can use "
            f"fewer, but not {num_sets} exemplar sets and {num_samples} samples"
        )
    scored = replace(
        original,
        matcher=config.matcher or original.matcher,
        num_exemplar_sets=num_sets,
        sampling=replace(original.sampling, num_samples=num_samples),
    )
    questions = read_questions(study)
    selected = select_questions(
        questions, dev=original.annotate_dev, exemplars=read_exemplars(folder), limit=original.limit_per_relation
    )
    gold = dict(zip(questions["question_id"].to_pylist(), questions["answers"].to_pylist(), strict=True))
    gold |= {f"control-{question_id}": answers for question_id, answers in gold.items()}
    scoring = Scoring(
        matcher=scored.matcher,
        num_exemplar_sets=num_sets,
        num_samples=num_samples,
        gold=gold if scored.matcher != original.matcher else None,
    )
    folder.delete(MANIFEST)  # until it is replaced, `slick annotate` would restore the original labels
    counts = label(study, selected, scored, scoring)
    identity = fingerprint(manifest.inputs, scored.identity())
    return complete_step(
        folder, "annotate", identity, settings=scored, inputs=manifest.inputs, counts=counts, started_at=started_at
    )
