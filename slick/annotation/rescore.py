"""Other labels from the same answers: another matcher, fewer exemplar sets or samples, without generating anything."""

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
    """What is judged otherwise than when the answers were made; None leaves it as it was then."""

    matcher: str | None = setting(None, registry=MATCHERS)
    """When an answer is correct; see `slick.matching`."""
    num_exemplar_sets: int | None = None
    """Count the answers to the first so many few-shot prompts."""
    num_samples: int | None = None
    """Count the first so many samples of each prompt."""

    def __post_init__(self) -> None:
        check_settings(self)


def rescore(study: FolderLike, config: RescoreConfig) -> Manifest:
    """Write knowledge.parquet, confidence.json and the manifest anew, as if annotated with these settings.

    The stored answers and their hits stay, so a further rescoring can go back.

    Raises:
        StudyError: the annotation is not finished, or kept no full set of answers.
        SettingsError: more exemplar sets or samples are asked for than there are.

    Example:
        slick.rescore("studies/mine", slick.RescoreConfig(matcher="contains"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "annotate"):
        return _rescore(study, config)


def _original_config(folder: Folder) -> AnnotateConfig:
    """The settings by which the answers were made.

    Raises:
        StudyError: started.json is missing, or does not hold them.
    """
    remedy = f"it was changed: restore it, or delete {folder} and run `slick annotate` again"
    started = read_start_record(folder)
    if started is None:
        raise StudyError(f"{folder}/{STARTED} is not there, so the settings of the answers are not known; {remedy}")
    try:
        made: AnnotateConfig = convert(started.settings, AnnotateConfig, "settings", exact=True)
    except MismatchError as error:
        raise StudyError(f"{folder}/{STARTED}: {error}; {remedy}") from error
    return made


def _rescore(study: Folder, config: RescoreConfig) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("annotate")
    done = require_manifest(folder, "annotate")
    made = _original_config(folder)
    if made.estimator == "gold" or made.mode == "labels":
        raise StudyError(
            f"{folder.uri} was made with --estimator {made.estimator} --mode {made.mode}, which keeps no full set of "
            "texts to judge anew; annotate with --estimator sampled --mode full"
        )
    sets, samples = made.num_exemplar_sets, made.sampling.num_samples
    wanted = (config.num_exemplar_sets or sets, config.num_samples or samples)
    if not (1 <= wanted[0] <= sets and 1 <= wanted[1] <= samples):
        raise SettingsError(
            f"{folder.uri} holds answers to {sets} few-shot prompts, {samples} samples each; a rescoring takes fewer, "
            f"not {wanted[0]} and {wanted[1]}"
        )
    scored = replace(
        made,
        matcher=config.matcher or made.matcher,
        num_exemplar_sets=wanted[0],
        sampling=replace(made.sampling, num_samples=wanted[1]),
    )
    questions = read_questions(study)
    asked = select_questions(
        questions, dev=made.annotate_dev, exemplars=read_exemplars(folder), limit=made.limit_per_relation
    )
    gold = dict(zip(questions["question_id"].to_pylist(), questions["answers"].to_pylist(), strict=True))
    gold |= {f"control-{question_id}": answers for question_id, answers in gold.items()}
    scoring = Scoring(
        matcher=scored.matcher,
        num_exemplar_sets=wanted[0],
        num_samples=wanted[1],
        gold=gold if scored.matcher != made.matcher else None,
    )
    folder.delete(MANIFEST)  # from here to the end the step is half done, and annotating would label as before
    counts = label(study, asked, scored, scoring)
    identity = fingerprint(done.inputs, scored.identity())
    return complete_step(
        folder, "annotate", identity, settings=scored, inputs=done.inputs, counts=counts, started_at=started_at
    )
