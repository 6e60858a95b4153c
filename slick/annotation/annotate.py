"""Ask a model every question under every exemplar set, and sort the questions into the four categories.

Ray Data streams units of work (a few batches of one relation) through a pool of actors, one engine each. The actors
write their answers themselves, whole file by whole file, and send the driver counts only; so a run that was stopped
goes on with the batches no file holds, and labels depend on neither the number of actors nor the size of files.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from slick.annotation.generations import (
    Batch,
    asked_questions,
    cut_batches,
    make_units,
    missing_batches,
    read_generations,
    spent_by_parts,
)
from slick.annotation.knowledge import count_categories, knowledge_table
from slick.annotation.pool import AskerConfig, answer_units
from slick.engines.base import SamplingConfig
from slick.errors import SettingsError, StudyError
from slick.matching import Matcher
from slick.progress import Progress
from slick.prompts import draw_exemplar_sets, few_shot_prefix
from slick.questions import read_questions
from slick.storage import Folder
from slick.study import STARTED, Manifest, begin, fingerprint, finish, read_manifest, require
from slick.types import Category

Exemplars = dict[str, list[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateConfig:
    """The annotate step. Defaults are the paper's (arXiv:2405.05904, section 3 and appendix C)."""

    model: str = ""
    """A folder, a hub id or a .gguf file; empty for the study's own world/model."""
    seed: int = 0
    """Of the exemplar sets; the draws of samples have their own in `sampling`."""
    num_exemplar_sets: int = 10
    """Few-shot prompts each question is asked under."""
    num_shots: int = 4
    """Solved questions in each prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How many answers to each prompt, and how they are drawn."""
    matcher: Matcher = "exact"
    """When an answer is a hit; see `slick.matching`."""
    annotate_dev: bool = False
    """Ask dev questions too, but for those that serve as exemplars."""
    limit_per_relation: int | None = None
    """Ask at most that many questions of each relation and split, chosen by a hash of their ids; None for all."""
    dtype: str = "float32"
    """Of weights and arithmetic: `float32`, `bfloat16` or `float16`."""
    batch_questions: int = 32
    """Questions the engine decodes together; part of the fingerprint, since it decides the last bits of logits."""
    batches_per_file: int = 2
    """Batches an actor answers before it stores them: what is lost at most when it dies."""
    min_actors: int = 1
    """Engines the pool may shrink to."""
    max_actors: int | None = None
    """Engines the pool may grow to; None for as many as the cluster has room for at the start."""
    gpus_per_actor: float | None = None
    """None for 1 where the cluster has GPUs and 0 where it has none."""
    cpus_per_actor: float = 1.0
    """Logical CPUs that Ray sets aside for an actor."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        sizes = ("num_exemplar_sets", "num_shots", "batch_questions", "batches_per_file", "min_actors")
        for name in sizes:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sampling.num_samples < 1:
            raise SettingsError("num_samples must be at least 1: samples tell WeaklyKnown from Unknown")
        if self.limit_per_relation is not None and self.limit_per_relation < 1:
            raise SettingsError(
                f"limit_per_relation must be at least 1, or None for all, got {self.limit_per_relation}"
            )
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise SettingsError(f"max_actors is {self.max_actors}, less than min_actors, {self.min_actors}")

    def identity(self) -> dict[str, object]:
        """The settings that change results; actors and file sizes do not, and the model counts by its fingerprint."""
        speed = {"model", "batches_per_file", "min_actors", "max_actors", "gpus_per_actor", "cpus_per_actor"}
        return {name: value for name, value in asdict(self).items() if name not in speed}


def annotate(study: Folder, config: AnnotateConfig) -> Manifest:
    """Write annotate/exemplars.json, generations/, knowledge.parquet and the manifest.

    Returns:
        The manifest, with counts of categories by relation and split, generations and tokens.

    Raises:
        StudyError: the questions step is not finished, or the folder holds an annotation with other settings.
        DataError: a relation has too few dev questions for its exemplar sets.
        ModelError: the model cannot be loaded.
        EngineError: an answer could not be made. What was written stays, and a further run goes on from there.
    """
    from slick.models import model_fingerprint, resolve_model, study_model

    started_at = time.monotonic()
    folder = study.child("annotate")
    model = study_model(study, config.model)
    inputs = {
        "questions": require(study.child("questions"), "questions").fingerprint,
        "model": model_fingerprint(resolve_model(model)),
    }
    identity = fingerprint(inputs, config.identity())
    if not begin(folder, "annotate", identity, config):
        manifest = read_manifest(folder)
        assert manifest is not None
        return manifest
    questions = read_questions(study)
    exemplars = _exemplars(folder, questions, config)
    asked = asked_questions(questions, dev=config.annotate_dev, exemplars=exemplars, limit=config.limit_per_relation)
    _ask_missing(folder, asked, _asker(folder, questions, exemplars, model, config), config)

    table = knowledge_table(asked, read_generations(study, ["question_id", "greedy_hit", "sampled_hit"]))
    folder.write_table("knowledge.parquet", table)
    counts = _counts(folder, table, config)
    _print_summary(counts)
    return finish(folder, "annotate", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at)


def questions_to_ask(study: Folder) -> int:
    """How many questions the annotation of a study asks, from the settings it was begun with; 0 before that.

    Raises:
        StudyError: the questions step is not finished.
    """
    folder = study.child("annotate")
    if not folder.exists("exemplars.json"):
        return 0
    settings = folder.read_json(STARTED)["settings"]
    asked = asked_questions(
        read_questions(study),
        dev=settings["annotate_dev"],
        exemplars=folder.read_json("exemplars.json"),
        limit=settings["limit_per_relation"],
    )
    return int(asked.num_rows)


def _exemplars(folder: Folder, questions: pa.Table, config: AnnotateConfig) -> Exemplars:
    """The exemplar sets of every relation, drawn once and kept in exemplars.json."""
    if folder.exists("exemplars.json"):
        kept: Exemplars = folder.read_json("exemplars.json")
        return kept
    dev_ids: dict[str, list[str]] = {relation: [] for relation in questions["relation"].unique().to_pylist()}
    columns = (questions[name].to_pylist() for name in ("relation", "split", "question_id"))
    for relation, split, question_id in zip(*columns, strict=True):
        if split == "dev":
            dev_ids[relation].append(question_id)
    exemplars = draw_exemplar_sets(
        dev_ids, num_sets=config.num_exemplar_sets, num_shots=config.num_shots, seed=config.seed
    )
    folder.write_json("exemplars.json", exemplars)
    return exemplars


def _asker(
    folder: Folder, questions: pa.Table, exemplars: Exemplars, model: str, config: AnnotateConfig
) -> AskerConfig:
    columns = (questions[name].to_pylist() for name in ("question_id", "question", "answers"))
    shots = {question_id: (question, answers[0]) for question_id, question, answers in zip(*columns, strict=True)}
    lost = [i for sets in exemplars.values() for ids in sets for i in ids if i not in shots]
    if lost:
        raise StudyError(
            f"{folder.uri}/exemplars.json names questions that the study has not, such as {lost[:3]}; "
            f"delete {folder.uri}"
        )
    return AskerConfig(
        model=model,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        on_gpu=False,
        batch_questions=config.batch_questions,
        sampling=config.sampling,
        matcher=config.matcher,
        prefixes={r: [few_shot_prefix([shots[i] for i in ids]) for ids in sets] for r, sets in exemplars.items()},
        folder=folder.child("generations"),
    )


def _ask_missing(folder: Folder, asked: pa.Table, asker: AskerConfig, config: AnnotateConfig) -> None:
    """Ask every question that no part file holds."""
    batches = cut_batches(asked, config.batch_questions)
    missing = missing_batches(asker.folder, batches)
    progress = Progress("annotate", asked.num_rows, "questions")
    if not missing:
        return
    if len(missing) < len(batches):
        progress.resume_at(asked.num_rows - _num_questions(missing))
        print(f"annotate: going on after {progress.done:,} of {asked.num_rows:,} questions", flush=True)
    began = time.monotonic()
    num_generations = 0
    so_far: Counter[str] = Counter()
    for row in answer_units(
        make_units(missing, config.batches_per_file),
        asker,
        min_actors=config.min_actors,
        max_actors=config.max_actors,
        gpus_per_actor=config.gpus_per_actor,
        cpus_per_actor=config.cpus_per_actor,
    ):
        num_generations += row["generations"]
        so_far.update(row["categories"])
        speed = num_generations / (time.monotonic() - began)
        progress.add(len(row["categories"]), f"{speed:,.0f} generations/s, {_shares(so_far)}")


def _num_questions(batches: Sequence[Batch]) -> int:
    return sum(int(batch.questions.num_rows) for batch in batches)


def _shares(categories: Mapping[str, int]) -> str:
    total = sum(categories.values())
    return ", ".join(f"{category} {100 * categories.get(category, 0) / total:.0f} %" for category in Category)


def _counts(folder: Folder, knowledge: pa.Table, config: AnnotateConfig) -> dict[str, Any]:
    spent = spent_by_parts(folder.child("generations"))
    per_question = config.num_exemplar_sets * (1 + config.sampling.num_samples)
    return {
        "questions": knowledge.num_rows,
        "limit_per_relation": config.limit_per_relation,
        "generations": knowledge.num_rows * per_question,
        "answer_tokens": int(spent["answer_tokens"]),
        "decoded_tokens": int(spent["decoded_tokens"]),
        "prompt_tokens": int(spent["prompt_tokens"]),
        "prefilled_tokens": int(spent["prefilled_tokens"]),
        "engine_seconds": round(spent["seconds"], 3),
        "categories": count_categories(knowledge),
    }


def _print_summary(counts: Mapping[str, Any]) -> None:
    total: Counter[str] = Counter()
    for of_relation in counts["categories"].values():
        for of_split in of_relation.values():
            total.update(of_split)
    reused = 1 - counts["prefilled_tokens"] / max(counts["prompt_tokens"], 1)
    print(
        f"{counts['questions']:,} questions, {counts['generations']:,} generations: {_shares(total)}. "
        f"{100 * reused:.0f} % of prompt tokens came from shared prefixes.",
        flush=True,
    )
