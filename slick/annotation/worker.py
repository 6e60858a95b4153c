"""The actor of the annotate step: loads one engine, answers units of work and writes their part files."""

import gc
import uuid
from collections import Counter as Counts
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from slick.annotation.knowledge import categories
from slick.annotation.store import COST_FIELDS, write_part
from slick.annotation.uncertainty import hit_probability
from slick.errors import EngineError, ModelError, SlickError, wrap_library_errors
from slick.inference.base import ENGINES, Answers, Engine, EngineConfig, GoldScore, PromptBatch, SamplingConfig
from slick.matching import AnswerMatcher, make_matcher, nfc
from slick.prompts import P_TRUE_CHOICES, few_shot_suffix, p_true_row, p_true_suffix
from slick.storage import Folder
from slick.study_files import GENERATION_SCHEMA, GOLD_SCHEMA, P_TRUE_SCHEMA

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
"""What an actor returns to the driver for each unit: number of questions, their categories if the store determines
them, cost of the answers and `slick.precision.Runtime` of the engine; or the name of an error class of `slick.errors`
and its message."""

Mode = Literal["full", "labels"]
AnswerKind = Literal["answers", "gold", "p_true"]

SCHEMAS: dict[AnswerKind, pa.Schema] = {"answers": GENERATION_SCHEMA, "gold": GOLD_SCHEMA, "p_true": P_TRUE_SCHEMA}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSetSpec:
    """One kind of answers, stored in its own folder inside annotate/ (a store)."""

    prefixes: dict[str, list[str]]
    """Few-shot prefixes of each relation, one per exemplar set."""
    sampling: SamplingConfig
    kind: AnswerKind = "answers"
    """`answers` generates them; `gold` scores the gold answer; `p_true` scores whether the model calls it correct."""

    def suffix(self, question: str, answers: Sequence[str]) -> str:
        """The part of the question's prompts after the prefix."""
        return p_true_suffix(question, answers[0]) if self.kind == "p_true" else few_shot_suffix(question)


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
        engine_config = config.engine_config
        size = len(unit["question_id"]) if engine_config.num_gpus else engine_config.batch_questions
        for start in range(0, len(unit["question_id"]), size):
            part = slice(start, start + size)
            gold = unit["answers"][part]
            batch = PromptBatch(
                prefixes=store.prefixes[unit["relation"]],
                question_ids=unit["question_id"][part],
                suffixes=[store.suffix(*pair) for pair in zip(unit["question"][part], gold, strict=True)],
            )
            with wrap_library_errors(f"answering {len(gold)} questions of relation {unit['relation']} failed"):
                rows += self._answer_batch(self._engine, store, batch, gold)
        cost = {name: round(value - before[name], 6) for name, value in asdict(self._engine.stats).items()}
        for row in rows:
            row["relation"] = unit["relation"]
        table = pa.Table.from_pylist(rows, SCHEMAS[store.kind])
        runtime = asdict(self._engine.runtime)
        write_part(config.folder.child(unit["store"]), unit["first_batch"], table, cost, runtime)
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
        if store.kind == "gold":
            scores = engine.score(batch, [nfc(answers[0]) for answers in gold], store.sampling)
            return [_gold_row(i, values) for i, values in zip(batch.question_ids, scores, strict=True)]
        matchers = [make_matcher(answers, self._config.matcher) for answers in gold]
        answers = engine.generate(batch, store.sampling, matchers if self._config.mode == "labels" else None)
        return [_generation_row(*row) for row in zip(batch.question_ids, answers, matchers, strict=True)]

    def _load_engine(self) -> Engine:
        """Load the engine; its tokenizer is checked with the longest prefix of each relation and store."""
        stores = self._config.stores.values()
        longest = {max(prefixes, key=len) for store in stores for prefixes in store.prefixes.values()}
        spec = ENGINES.get(self._config.engine)
        return spec.load(replace(self._config.engine_config, prefixes=tuple(sorted(longest))))

    def _count(self, labels: Sequence[str], cost: dict[str, float]) -> None:
        from ray.util.metrics import Counter

        if not self._metrics:
            self._metrics = {
                "categories": Counter("slick_annotate_questions", "Questions by category.", tag_keys=("category",)),
                **{name: Counter(f"slick_annotate_{name}", text) for name, text in METRICS.items()},
            }
        for category, num in Counts(labels).items():
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
"""Ray metrics of the cost, in addition to questions by category: name to description."""
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


def _row_categories(rows: Sequence[dict[str, Any]], store: AnswerSetSpec) -> list[str]:
    if store.kind == "p_true":
        return []
    greedy = np.array([sum(row["greedy_hit"]) for row in rows])
    if store.kind == "gold":
        gold = np.array([row["gold_probability"] for row in rows])
        known = hit_probability(gold, store.sampling.num_samples) >= 0.5
    else:
        known = np.array([any(any(hits) for hits in row["sampled_hit"]) for row in rows])
    return categories(greedy, np.full(len(rows), len(rows[0]["greedy_hit"])), known)
