"""New labels from the stored answers, with another matcher or fewer exemplar sets or samples."""

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from slick.annotation.config import AnnotateConfig, check_judge
from slick.annotation.judge import judge_agreement, read_judgements
from slick.annotation.judge_client import JudgeConfig
from slick.annotation.labels import judge_inputs, label
from slick.annotation.selection import select
from slick.annotation.uncertainty import Scoring
from slick.errors import SettingsError, StudyError
from slick.locks import exclusive_lock
from slick.matching import JUDGE, MATCHERS
from slick.settings import check_settings, setting
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import MismatchError, convert
from slick.study import STARTED, Manifest, complete_step, fingerprint, read_start_record, require_manifest
from slick.study_files import read_exemplars

if TYPE_CHECKING:
    from slick.report.statistics.agreement import GradedAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreConfig:
    """Settings of the new labels; None keeps the setting of the annotation."""

    matcher: str | None = setting(None, registry=MATCHERS)
    """When an answer is correct; see `slick.matching`. In a shell, quote names such as 'f1>=0.7'."""
    num_exemplar_sets: int | None = None
    """Use the answers to this many first exemplar sets."""
    num_samples: int | None = None
    """Use this many first samples of each prompt."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The language model that grades answers, with the matcher `judge`."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.matcher is not None:
            check_judge(self.matcher, self.judge)


def rescore(study: FolderLike, config: RescoreConfig) -> Manifest:
    """Replace knowledge.parquet, confidence.json and the manifest by those of an annotation with these settings.

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


def _resolve_judge(judge: JudgeConfig, matcher: str, original: AnnotateConfig) -> JudgeConfig:
    """The judge of a rescoring: the given one, or that of the annotation.

    Raises:
        SettingsError: the matcher needs a judge and there is none, or it needs none and one is given.
    """
    if matcher == original.matcher == JUDGE and not judge.is_given:
        first = original.judge
        if judge == JudgeConfig():
            return first
        return replace(judge, model=first.model, url=first.url, served_model=first.served_model)
    check_judge(matcher, judge)
    return judge


def _read_graded(study: Folder, path: str) -> "list[GradedAnswer]":
    """The graded answers of the grading sheet `--judge.graded`; empty without one."""
    from slick.report.grading import read_graded_answers

    return read_graded_answers(study, path) if path else []


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
    matcher = config.matcher or original.matcher
    judge = _resolve_judge(config.judge, matcher, original)
    scored = replace(
        original,
        matcher=matcher,
        judge=replace(judge, graded=""),
        num_exemplar_sets=num_sets,
        sampling=replace(original.sampling, num_samples=num_samples),
    )
    inputs = {name: value for name, value in manifest.inputs.items() if name != JUDGE} | judge_inputs(scored)
    scoring = Scoring(matcher=scored.matcher, num_exemplar_sets=num_sets, num_samples=num_samples)
    graded = _read_graded(study, config.judge.graded)
    selection = select(study, original, read_exemplars(folder))
    rematch = scored.matcher not in (original.matcher, JUDGE)
    counts = label(selection, scored, scoring, rematch=rematch, judge=inputs.get(JUDGE, ""))
    if graded:
        judgements = read_judgements(folder, scored.judge, inputs[JUDGE])
        counts["judge"]["agreement"] = judge_agreement(graded, judgements)
    identity = fingerprint(inputs, scored.identity())
    return complete_step(
        folder, "annotate", identity, settings=scored, inputs=inputs, counts=counts, started_at=started_at
    )
