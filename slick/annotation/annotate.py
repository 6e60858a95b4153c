"""Ask a model every question under every exemplar set, and sort the questions into the four categories.

Ray Data streams units of work (a few batches of one relation) through a pool of actors, one engine each. The actors
write their answers themselves, whole file by whole file, and send the driver counts only; so a run that was stopped
goes on with the batches no file holds, and labels depend on neither the number of actors nor the size of files.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from slick.annotation.asking import ask_missing
from slick.annotation.controls import control_questions, flips
from slick.annotation.generations import asked_questions, first_by_hash, read_parts, spent_by_parts
from slick.annotation.knowledge import Scoring, count_categories, gather, knowledge_table
from slick.annotation.pool import AskerConfig, EngineName, Kind, Mode, Store
from slick.annotation.score import Scope, check_same_model, score_p_true
from slick.engines.base import SamplingConfig
from slick.errors import SettingsError, StudyError
from slick.matching import Matcher
from slick.prompts import draw_exemplar_sets, few_shot_prefix
from slick.questions import read_questions
from slick.storage import Folder
from slick.study import STARTED, Manifest, begin, fingerprint, finish, read_manifest, require
from slick.types import Category

Exemplars = dict[str, list[list[str]]]
Estimator = Literal["sampled", "gold"]

_KIND: dict[Estimator, Kind] = {"sampled": "answers", "gold": "gold"}

REPEATS, CONTROLS = "repeats", "controls"


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
    mode: Mode = "full"
    """`full` keeps all answers. `labels` makes only what settles a category, the same categories for less: no samples
    where a greedy answer hits, none longer than the first that hits, and of a sample no more than rules out a hit.
    P_Correct is then not known, nor what samples that miss would have said."""
    estimator: Estimator = "sampled"
    """`sampled` draws answers. `gold` scores the first gold answer in one pass without drawing any: exact chances of
    one answer text, at a fraction of the cost."""
    matcher: Matcher = "exact"
    """When an answer is a hit; see `slick.matching`."""
    repeats_per_relation: int = 0
    """Questions of each relation that are asked again, with other exemplars and draws: how often do categories flip?
    Not by the gold estimator, which draws nothing."""
    controls_per_relation: int = 0
    """Questions of each relation that are asked of a subject nobody knows: how often is an answer guessed?"""
    annotate_dev: bool = False
    """Ask dev questions too, but for those that serve as exemplars."""
    limit_per_relation: int | None = None
    """Ask at most that many questions of each relation and split, chosen by a hash of their ids; None for all."""
    engine: EngineName = "transformers"
    """`transformers`, or `vllm` where it is installed."""
    dtype: str = "float32"
    """Of weights and arithmetic: `float32`, `bfloat16` or `float16`."""
    batch_questions: int = 32
    """Questions the engine decodes together on CPU; part of the fingerprint, since it decides the last bits of logits.
    On GPU it takes as many of a file's questions as memory holds."""
    batches_per_file: int = 2
    """Batches an actor answers before it stores them, on CPU: what is lost at most when it dies. On GPU 8 times as
    many, which an actor answers together."""
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
    p_true: bool = False
    """Ask the model as well how likely the gold answer is right (P(True)), which findings E20 and figure 5 compare the
    labels with. No part of the labels: it can be asked of a study that is annotated, by the same command again."""
    p_true_of: Scope = "test"
    """Questions that P(True) is asked of: `test`, in distribution, as in the paper; or `all` that are labelled."""

    def __post_init__(self) -> None:
        sizes = ("num_exemplar_sets", "num_shots", "batch_questions", "batches_per_file", "min_actors")
        for name in sizes:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.repeats_per_relation, self.controls_per_relation) < 0:
            raise SettingsError("repeats_per_relation and controls_per_relation must not be negative")
        if self.estimator == "gold" and (self.mode, self.matcher, self.engine) != ("full", "exact", "transformers"):
            raise SettingsError(
                "the gold estimator draws no texts: it goes with --mode full, --matcher exact and --engine "
                f"transformers, got {self.mode}, {self.matcher} and {self.engine}"
            )
        gpus = self.gpus_per_actor or 0.0
        if gpus < 0 or (gpus > 1 and (self.engine != "vllm" or gpus % 1)):
            raise SettingsError(
                f"gpus_per_actor is {gpus:g}: 0 to 1, or a whole number with --engine vllm, which spreads a model; for "
                "more speed raise --max-actors"
            )
        if self.sampling.num_samples < 1:
            raise SettingsError("num_samples must be at least 1: samples tell WeaklyKnown from Unknown")
        if self.limit_per_relation is not None and self.limit_per_relation < 1:
            raise SettingsError(
                f"limit_per_relation must be at least 1, or None for all, got {self.limit_per_relation}"
            )
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise SettingsError(f"max_actors is {self.max_actors}, less than min_actors, {self.min_actors}")

    def identity(self) -> dict[str, object]:
        """The settings that change labels; actors and file sizes do not, and the model counts by its fingerprint."""
        speed = {"model", "batches_per_file", "min_actors", "max_actors", "gpus_per_actor", "cpus_per_actor"}
        apart = {"p_true", "p_true_of"}
        return {name: value for name, value in asdict(self).items() if name not in speed | apart}


def annotate(study: Folder, config: AnnotateConfig) -> Manifest:
    """Write annotate/exemplars.json, generations/, knowledge.parquet and the manifest; then, if wanted, p_true/.

    Returns:
        The manifest of the labels, with counts of categories by relation and split, generations and tokens.

    Raises:
        StudyError: the questions step is not finished, or the folder holds an annotation of another model or with other
            settings.
        DataError: a relation has too few dev questions for its exemplar sets.
        ModelError: the model cannot be loaded.
        EngineError: an answer could not be made. What was written stays, and a further run goes on from there.
    """
    from slick.models import model_fingerprint, resolve_model, study_model

    model = study_model(study, config.model)
    inputs = {
        "questions": require(study.child("questions"), "questions").fingerprint,
        "model": model_fingerprint(resolve_model(model)),
    }
    if config.p_true:
        check_same_model(study, inputs["model"])
    manifest = _annotate(study, config, model, inputs)
    if config.p_true:
        score_p_true(study, config, inputs)
    return manifest


def _annotate(study: Folder, config: AnnotateConfig, model: str, inputs: dict[str, str]) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("annotate")
    identity = fingerprint(inputs, config.identity())
    if not begin(folder, "annotate", identity, config):
        manifest = read_manifest(folder)
        assert manifest is not None
        return manifest
    questions = read_questions(study)
    exemplars = _exemplars(folder, questions, config)
    asked = asked_questions(questions, dev=config.annotate_dev, exemplars=exemplars, limit=config.limit_per_relation)
    asker = _asker(folder, questions, exemplars, model, config)
    ask_missing("annotate", _tables(asked, config), asker, config, _note)
    counts = label(study, asked, config)
    return finish(folder, "annotate", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at)


def label(study: Folder, asked: pa.Table, config: AnnotateConfig, scoring: Scoring | None = None) -> dict[str, Any]:
    """Write knowledge.parquet and confidence.json from the stored answers; counts for the manifest."""
    folder = study.child("annotate")
    if scoring is None:
        scoring = Scoring(
            matcher=config.matcher,
            num_exemplar_sets=config.num_exemplar_sets,
            num_samples=config.sampling.num_samples,
        )
    evidence = gather(read_parts(folder.child(main_store(config))), scoring)
    table = knowledge_table(asked, evidence.rows)
    folder.write_table("knowledge.parquet", table)
    found: dict[str, Any] = {"settling": evidence.settling}
    tables = _tables(asked, config)
    if REPEATS in tables:
        again = knowledge_table(tables[REPEATS], gather(read_parts(folder.child(REPEATS)), scoring).rows)
        found[REPEATS] = flips(table, again)
    if CONTROLS in tables:
        known = knowledge_table(tables[CONTROLS], gather(read_parts(folder.child(CONTROLS)), scoring).rows)
        found[CONTROLS] = {"questions": known.num_rows, "categories": count_categories(known)}
    folder.write_json("confidence.json", found)
    counts = _counts(folder, table, config)
    _print_summary(counts, found)
    return counts


def main_store(config: AnnotateConfig) -> str:
    """The folder that answers go to, inside annotate/."""
    return "gold" if config.estimator == "gold" else "generations"


def _tables(asked: pa.Table, config: AnnotateConfig) -> dict[str, pa.Table]:
    """The questions of each store; a store without any is left out."""
    tables = {main_store(config): asked}
    if config.repeats_per_relation and config.estimator == "sampled":
        tables[REPEATS] = first_by_hash(asked, config.repeats_per_relation, ("relation",))
    if config.controls_per_relation:
        tables[CONTROLS] = control_questions(asked, config.controls_per_relation, config.seed)
    return {store: table for store, table in tables.items() if table.num_rows}


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
    exemplars = _draw_exemplars(questions, config, config.seed)
    folder.write_json("exemplars.json", exemplars)
    return exemplars


def _draw_exemplars(questions: pa.Table, config: AnnotateConfig, seed: int) -> Exemplars:
    dev_ids: dict[str, list[str]] = {relation: [] for relation in questions["relation"].unique().to_pylist()}
    columns = (questions[name].to_pylist() for name in ("relation", "split", "question_id"))
    for relation, split, question_id in zip(*columns, strict=True):
        if split == "dev":
            dev_ids[relation].append(question_id)
    return draw_exemplar_sets(dev_ids, num_sets=config.num_exemplar_sets, num_shots=config.num_shots, seed=seed)


def _asker(
    folder: Folder, questions: pa.Table, exemplars: Exemplars, model: str, config: AnnotateConfig
) -> AskerConfig:
    columns = (questions[name].to_pylist() for name in ("question_id", "question", "answers"))
    shots = {question_id: (question, answers[0]) for question_id, question, answers in zip(*columns, strict=True)}
    lost = [i for sets in exemplars.values() for ids in sets for i in ids if i not in shots]
    if lost:
        raise StudyError(
            f"{folder}/exemplars.json names questions that the study has not, such as {lost[:3]}; delete {folder.uri}"
        )

    def prefixes(sets: Exemplars) -> dict[str, list[str]]:
        return {relation: [few_shot_prefix([shots[i] for i in ids]) for ids in some] for relation, some in sets.items()}

    main = Store(prefixes=prefixes(exemplars), sampling=config.sampling, kind=_KIND[config.estimator])
    stores = {main_store(config): main, CONTROLS: main}
    if config.repeats_per_relation:
        others = prefixes(_draw_exemplars(questions, config, config.seed + 1))
        stores[REPEATS] = Store(prefixes=others, sampling=replace(config.sampling, seed=config.sampling.seed + 1))
    return AskerConfig(
        model=model,
        engine=config.engine,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        num_gpus=0.0,  # the pool knows
        batch_questions=config.batch_questions,
        mode=config.mode,
        matcher=config.matcher,
        stores=stores,
        folder=folder,
    )


def _note(so_far: Mapping[str, int], spent: Mapping[str, float], seconds: float) -> str:
    speeds = [f"{spent[name] / seconds:,.0f} {name.replace('_', ' ')}/s" for name in ("generations", "answer_tokens")]
    reused = f"{100 * _reused(spent):.0f} % of prompt tokens reused"
    return ", ".join([*speeds, reused, *([_shares(so_far)] if so_far else [])])


def _reused(spent: Mapping[str, float]) -> float:
    """Share of prompt tokens that a shared prefix spared the model."""
    return 1 - spent["prefilled_tokens"] / max(spent["prompt_tokens"], 1)


def _shares(categories: Mapping[str, int]) -> str:
    total = sum(categories.values())
    return ", ".join(f"{category} {100 * categories.get(category, 0) / total:.0f} %" for category in Category)


def _counts(folder: Folder, knowledge: pa.Table, config: AnnotateConfig) -> dict[str, Any]:
    spent = spent_by_parts(folder.child(main_store(config)))
    return {
        "questions": knowledge.num_rows,
        "limit_per_relation": config.limit_per_relation,
        "estimator": config.estimator if config.estimator == "sampled" else "gold: the first answer's text alone",
        **{name: int(value) for name, value in spent.items() if name not in ("prompts", "seconds")},
        "engine_seconds": round(spent["seconds"], 3),
        "prompt_tokens_reused": round(_reused(spent), 4),
        "categories": count_categories(knowledge),
        "draws_by_category": _draws(knowledge, config),
    }


def _draws(knowledge: pa.Table, config: AnnotateConfig) -> dict[str, dict[str, float]]:
    """Answers made for the questions of each category, and the share that was spared of all there might be."""
    possible = config.num_exemplar_sets * (1 + config.sampling.num_samples)
    found = {}
    sums = [("sampled_total", "sum"), ("greedy_total", "sum")]
    for row in knowledge.group_by("category").aggregate(sums).to_pylist():
        if config.estimator == "sampled":
            made = row["sampled_total_sum"] + row["greedy_total_sum"]
            num = row["greedy_total_sum"] // config.num_exemplar_sets
            found[row["category"]] = {"made": made, "spared": round(1 - made / (num * possible), 4)}
    return found


def _print_summary(counts: Mapping[str, Any], confidence: Mapping[str, Any]) -> None:
    total: Counter[str] = Counter()
    for of_relation in counts["categories"].values():
        for of_split in of_relation.values():
            total.update(of_split)
    print(
        f"{counts['questions']:,} questions, {counts['generations']:,} generations: {_shares(total)}. "
        f"{100 * counts['prompt_tokens_reused']:.0f} % of prompt tokens came from shared prefixes.",
        flush=True,
    )
    if REPEATS in confidence:
        again = confidence[REPEATS]
        print(f"Asked again, {again['flipped']} of {again['questions']} questions change their category.", flush=True)
    if CONTROLS in confidence:
        controls = confidence[CONTROLS]
        unknown = sum(
            found[Category.UNKNOWN.value] for of_split in controls["categories"].values() for found in of_split.values()
        )
        print(f"Of {controls['questions']} questions about subjects nobody knows, {unknown} are Unknown.", flush=True)
