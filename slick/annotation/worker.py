"""The actors of the annotate step, and the pool of them that answers all batches.

An actor loads one engine, answers units of work and writes their part files; only counts return to the driver. The only
module of this package that imports ray.data.
"""

import gc
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from slick import compat, errors
from slick.annotation.plan import UNIT_SCHEMA, read_unit
from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.annotation.rubrics import ANSWER_RUBRIC, RUBRICS, Rubric
from slick.annotation.store import COST_FIELDS, write_part
from slick.annotation.tasks import quiet
from slick.annotation.uncertainty import hit_probability
from slick.errors import EngineError, ModelError, SlickError, wrap_library_errors
from slick.inference.base import (
    ENGINES,
    Answers,
    AnswerScore,
    Engine,
    EngineConfig,
    GoldScore,
    PromptBatch,
    PromptStyle,
    SamplingConfig,
)
from slick.matching import AnswerMatcher, make_matcher, nfc
from slick.prompts import P_TRUE_CHOICES, p_true_row
from slick.storage import Folder
from slick.study_files import (
    GENERATION_SCHEMA,
    GOLD_SCHEMA,
    JUDGEMENT_SCHEMA,
    LOG_PROBABILITY_SCHEMA,
    P_TRUE_SCHEMA,
)
from slick.types import categories

SUMMARY_SCHEMA = pa.schema(
    [
        ("error", pa.string()),
        ("message", pa.string()),
        ("store", pa.string()),
        ("questions", pa.int64()),
        ("categories", pa.list_(pa.string())),
        ("spent", pa.map_(pa.string(), pa.float64())),
        ("runtime", pa.map_(pa.string(), pa.string())),
    ]
)
"""The result of a unit that an actor returns to the driver: number of questions, their categories if the store
determines them, cost of the answers and `slick.precision.Runtime` of the engine; or the name of an error class of
`slick.errors` and its message."""

Mode = Literal["full", "labels"]
AnswerKind = Literal["answers", "gold", "p_true", "judge", "log_probability"]

SCHEMAS: dict[AnswerKind, pa.Schema] = {
    "answers": GENERATION_SCHEMA,
    "gold": GOLD_SCHEMA,
    "p_true": P_TRUE_SCHEMA,
    "judge": JUDGEMENT_SCHEMA,
    "log_probability": LOG_PROBABILITY_SCHEMA,
}

GPU_BATCH_FACTOR = 8
"""A unit has this many times as many batches on a GPU as on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSetSpec:
    """One kind of answers, stored in its own folder inside annotate/ (a store)."""

    prefixes: dict[str, list[str]]
    """Prefixes of each prompt group, one per exemplar set."""
    sampling: SamplingConfig
    kind: AnswerKind = "answers"
    """`answers` generates them; `gold` scores the gold answer; `p_true` scores whether the model calls it correct;
    `judge` decides about the items that take the place of questions; `log_probability` scores the only text of the
    column `answers` as a whole answer."""
    rubric: str = ANSWER_RUBRIC.name
    """With `judge`: the name of the rubric, see `slick.annotation.rubrics`."""
    style: PromptStyle = field(default_factory=PromptStyle)
    """How prompts become tokens, and where answers end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """What an actor needs; small, because it is sent to each."""

    engine: str
    engine_config: EngineConfig
    """Without `prefixes`, which the actor adds."""
    mode: Mode
    matcher: str
    stores: dict[str, AnswerSetSpec]
    folder: Folder
    """The folder of the stores."""
    stop_file: str = field(default_factory=lambda: f"stop-{uuid.uuid4().hex}")
    """If a file of this name exists in `folder`, the actors of this run skip the remaining units."""


def with_engine(config: WorkerConfig, **changes: Any) -> WorkerConfig:
    """The same configuration with some fields of `engine_config` replaced."""
    return replace(config, engine_config=replace(config.engine_config, **changes))


class AnnotationWorker:
    """Answers one unit per call. A `SlickError` is returned, and raised by the driver.

    Raised in the actor, it would reach the driver wrapped in Ray's own message. For the same reason the first call
    loads the engine, not the constructor.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._engine: Engine | None = None
        self._metrics: dict[str, Any] = {}

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Answer a unit (one row of `UNIT_SCHEMA`), store the answers, and return one row of `SUMMARY_SCHEMA`."""
        (row,) = unit.to_pylist()
        try:
            if self._config.folder.exists(self._config.stop_file):
                raise EngineError("skipped after an error in another unit")
            summary = self.answer(row)
        except SlickError as error:
            summary = {"error": type(error).__name__, "message": str(error)}
        return pa.Table.from_pylist([summary], schema=SUMMARY_SCHEMA)

    def answer(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Answer a unit, store the answers, and return a row of `SUMMARY_SCHEMA`."""
        if self._engine is None:
            with wrap_library_errors(f"the {self._config.engine} engine cannot be started", ModelError):
                self._engine = self._load_engine()
            # A full collection visits all objects of torch and transformers, which takes 0.3 s each time.
            gc.collect()
            gc.freeze()
        config, store = self._config, self._config.stores[unit["store"]]
        before = asdict(self._engine.stats)
        rows: list[dict[str, Any]] = []
        questions = read_unit(config.folder, unit).to_pydict()
        engine_config = config.engine_config
        size = len(questions["question_id"]) if engine_config.num_gpus else engine_config.batch_questions
        for start in range(0, len(questions["question_id"]), size):
            part = slice(start, start + size)
            gold = questions["answers"][part]
            batch = PromptBatch(
                prefixes=store.prefixes[unit[PROMPT_GROUP]],
                question_ids=questions["question_id"][part],
                suffixes=questions[SUFFIX][part],
                style=store.style,
            )
            with wrap_library_errors(f"answering {len(gold)} questions of relation {unit['relation']} failed"):
                rows += self._answer_batch(self._engine, store, batch, gold)
        cost = {name: round(value - before[name], 6) for name, value in asdict(self._engine.stats).items()}
        for row in rows:
            row["relation"] = unit["relation"]
        table = pa.Table.from_pylist(rows, SCHEMAS[store.kind])
        runtime = asdict(self._engine.runtime)
        write_part(config.folder.child(unit["store"]), unit["part"], table, cost, runtime)
        labels = _row_categories(rows, store)
        self._count(labels, cost)
        return {
            "store": unit["store"],
            "questions": len(rows),
            "categories": labels,
            "spent": list(cost.items()),
            "runtime": list(runtime.items()),
        }

    def _answer_batch(
        self, engine: Engine, store: AnswerSetSpec, batch: PromptBatch, gold: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """The answers to the questions of a batch, as rows of the store."""
        if store.kind == "p_true":
            choices = engine.log_probabilities(batch, P_TRUE_CHOICES)
            return [p_true_row(i, *values) for i, values in zip(batch.question_ids, choices, strict=True)]
        if store.kind == "log_probability":
            texts = [nfc(text) for (text,) in gold]
            answer_scores = engine.answer_log_probabilities(batch, texts, store.sampling.max_new_tokens)
            return [
                _log_probability_row(i, values) for i, values in zip(batch.question_ids, answer_scores, strict=True)
            ]
        if store.kind == "judge":
            rubric = RUBRICS[store.rubric]
            return _judgement_rows(rubric, batch, engine.log_probabilities(batch, rubric.choices))
        if store.kind == "gold":
            scores = engine.score(batch, [nfc(answers[0]) for answers in gold], store.sampling)
            return [_gold_row(i, values) for i, values in zip(batch.question_ids, scores, strict=True)]
        matchers = [make_matcher(answers, self._config.matcher) for answers in gold]
        answers = engine.generate(batch, store.sampling, matchers if self._config.mode == "labels" else None)
        return [_generation_row(*row) for row in zip(batch.question_ids, answers, matchers, strict=True)]

    def _load_engine(self) -> Engine:
        """Load the engine; its tokenizer is checked with the longest prefix of each prompt group and store.

        Prefixes with special tokens are checked before, by `slick.prompt_formats.ChatFormat`.
        """
        stores = [store for store in self._config.stores.values() if store.style.add_special_tokens]
        longest = {max(prefixes, key=len) for store in stores for prefixes in store.prefixes.values()}
        spec = ENGINES.get(self._config.engine)
        return spec.load(replace(self._config.engine_config, prefixes=tuple(sorted(longest))))

    def _count(self, labels: Sequence[str], cost: dict[str, float]) -> None:
        from ray.util import metrics

        if not self._metrics:
            self._metrics = {
                "categories": metrics.Counter(
                    "slick_annotate_questions", "Questions by category.", tag_keys=("category",)
                ),
                **{name: metrics.Counter(f"slick_annotate_{name}", text) for name, text in METRICS.items()},
            }
        for category, num in Counter(labels).items():
            self._metrics["categories"].inc(num, tags={"category": category})
        for name in METRICS:
            if cost[name] > 0:
                self._metrics[name].inc(cost[name])


METRICS = {
    "generations": "Generated answers, greedy and sampled.",
    "prompt_tokens": "Tokens of all prompts.",
    "prefilled_tokens": "Prompt tokens that went through the model; the rest came from shared prefixes.",
    "answer_tokens": "Tokens of all answers.",
    "decoded_tokens": "Answer tokens that went through the model; the rest belong to several answers.",
}
"""Ray metrics of the cost, in addition to questions by category: name -> description."""
assert set(METRICS) <= set(COST_FIELDS)


def _generation_row(question_id: str, answers: Sequence[Answers], matcher: AnswerMatcher) -> dict[str, Any]:
    is_hit: dict[str | None, bool | None] = {None: None}
    for answer in answers:
        for text in (answer.greedy_text, *answer.sampled_text):
            if text is not None and text not in is_hit:
                is_hit[text] = matcher.is_hit(text)
    return {
        "question_id": question_id,
        "greedy_text": [answer.greedy_text for answer in answers],
        "greedy_hit": [is_hit[answer.greedy_text] for answer in answers],
        "sampled_text": [list(answer.sampled_text) for answer in answers],
        "sampled_hit": [
            [False if i in answer.missed else is_hit[text] for i, text in enumerate(answer.sampled_text)]
            for answer in answers
        ],
        "num_tokens": sum(answer.num_tokens for answer in answers),
    }


def _gold_row(question_id: str, scores: Sequence[GoldScore]) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "greedy_hit": [score.is_greedy for score in scores],
        "gold_probability": [score.probability for score in scores],
        "num_tokens": 0,
    }


def _log_probability_row(question_id: str, scores: Sequence[AnswerScore]) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "log_probability": [score.log_probability for score in scores],
        "num_tokens": scores[0].num_tokens,  # the same after every prefix
    }


def _judgement_rows(
    rubric: Rubric, batch: PromptBatch, log_probabilities: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """The most likely outcome of each item; the key takes the place of the question_id."""
    rows = []
    for key, suffix, values in zip(batch.question_ids, batch.suffixes, log_probabilities, strict=True):
        best = int(np.argmax(values))
        decision = {"outcome": rubric.outcomes[best], "reply": rubric.choices[best]}
        rows.append({"key": key, "item": suffix.removesuffix(rubric.suffix("")), "attempts": 1} | decision)
    return rows


def _row_categories(rows: Sequence[dict[str, Any]], store: AnswerSetSpec) -> list[str]:
    if store.kind in ("p_true", "judge", "log_probability"):
        return []
    greedy = np.array([sum(row["greedy_hit"]) for row in rows])
    if store.kind == "gold":
        gold = np.array([row["gold_probability"] for row in rows])
        known = hit_probability(gold, store.sampling.num_samples) >= 0.5
    else:
        known = np.array([any(any(hits) for hits in row["sampled_hit"]) for row in rows])
    return categories(greedy, np.full(len(rows), len(rows[0]["greedy_hit"])), known)


MAX_UNITS = 10_000
"""Units of one execution of Ray Data, whose driver holds something for each. Then actors start anew."""


def run_worker_pool(
    units_for: Callable[[bool, int, int], Iterator[dict[str, Any]]],
    config: WorkerConfig,
    *,
    min_actors: int,
    max_actors: int | None,
    gpus_per_actor: float | None,
    cpus_per_actor: float,
) -> Iterator[dict[str, Any]]:
    """Stream units through a pool of actors and yield a row of `SUMMARY_SCHEMA` for each, in order of completion.

    Ray Data restarts actors that die without limit and reruns their units. An error in an actor ends the stream. Actors
    on a node that is being drained get no new units.

    Args:
        units_for: yields the units, given whether actors have GPUs, the maximum number of actors and the present one.
        config: the worker's configuration, without `num_gpus`.
        min_actors: minimum size of the pool.
        max_actors: maximum size of the pool; None for as many as the cluster can hold.
        gpus_per_actor: None: 1 if the cluster has GPUs, otherwise 0.
        cpus_per_actor: logical CPUs per actor.

    Raises:
        SlickError: an actor failed.
    """
    import ray.data

    from slick.cluster import connect

    connect()
    cluster = ray.cluster_resources()
    num_gpus = gpus_per_actor if gpus_per_actor is not None else float(cluster.get("GPU", 0) > 0)
    # On CPUs, two slots stay free for Ray Data's own tasks: a pool that holds all slots would deadlock.
    capacity = cluster.get("GPU", 0) / num_gpus if num_gpus else (cluster.get("CPU", 1) - 2) / cpus_per_actor
    limit = max(min_actors, max_actors or max(1, int(capacity)))
    units = units_for(num_gpus > 0, limit, max(1, min(limit, int(capacity))))
    while window := [pa.Table.from_pylist([unit], schema=UNIT_SCHEMA) for unit in islice(units, MAX_UNITS)]:
        max_size = max(min_actors, min(limit, len(window)))
        min_size = min(min_actors, max_size)
        pool = ray.data.ActorPoolStrategy(
            min_size=min_size,
            max_size=max_size,
            initial_size=max(min_size, min(max_size, int(capacity))),
            max_tasks_in_flight_per_actor=2,  # few, so that the last units spread over all actors
        )
        # Not from_arrow, which starts processes that read every unit and then idle beside the actors.
        results = ray.data.from_blocks(window).map_batches(
            AnnotationWorker,
            fn_constructor_kwargs={"config": with_engine(config, num_gpus=num_gpus)},
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_gpus=num_gpus,
            num_cpus=cpus_per_actor,
        )
        quiet(results.context)
        tables = compat.dataset_tables(results)
        yield from _raise_first_error((row for table in tables for row in table.to_pylist()), config)


def _raise_first_error(rows: Iterable[dict[str, Any]], config: WorkerConfig) -> Iterator[dict[str, Any]]:
    """Yield the successful rows, then raise the first error once all actors have stopped."""
    failed: dict[str, Any] | None = None
    for row in rows:
        if row["error"] and failed is None:
            # Ray Data cannot cancel the stream, so a file signals the actors to skip the remaining units.
            failed = row
            config.folder.write_bytes(config.stop_file, b"")
        elif not row["error"]:
            yield row | {name: dict(row[name]) for name in ("spent", "runtime")}
    if failed is not None:
        config.folder.delete(config.stop_file)
        raise getattr(errors, failed["error"])(failed["message"])
