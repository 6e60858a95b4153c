"""The actors of the annotate step, and the pool they live in: the one import of ray.data.

Each actor loads one engine once, answers units of work and writes their part files; only counts travel to the driver.
"""

import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from slick import errors
from slick.annotation.generations import GENERATION_SCHEMA, write_part
from slick.categories import categorize
from slick.engines.base import Answers, Engine, PromptBatch, SamplingConfig
from slick.errors import EngineError, SlickError
from slick.matching import Matcher, hit_tester
from slick.prompts import few_shot_suffix
from slick.storage import Folder
from slick.types import Category

SUMMARY_SCHEMA = pa.schema(
    [
        ("error", pa.string()),
        ("message", pa.string()),
        ("generations", pa.int64()),
        ("categories", pa.list_(pa.string())),
    ]
)
"""What an actor sends to the driver for each unit: generations made and the category of each question, or else the name
of an error of `slick.errors` and its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskerConfig:
    """What an actor must know; small, since it travels to each."""

    model: str
    dtype: str
    trust_remote_code: bool
    on_gpu: bool
    batch_questions: int
    sampling: SamplingConfig
    matcher: Matcher
    prefixes: dict[str, list[str]]
    """Few-shot prefixes of each relation, one an exemplar set."""
    folder: Folder
    """Where part files go."""
    stop_file: str = field(default_factory=lambda: f"stop-{uuid.uuid4().hex}")
    """A file of this name in `folder` tells the actors of this run to leave the rest unanswered."""


class Asker:
    """Answers one unit a call. An error that a user can mend is returned, for the driver to raise as it is.

    Raised here it would reach the driver wrapped and with advice of Ray's; for the same reason the engine is loaded by
    the first call.
    """

    def __init__(self, config: AskerConfig) -> None:
        self._config = config
        self._engine: Engine | None = None
        self._metrics: dict[str, Any] = {}

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Answer a unit (a table of one row of `UNIT_SCHEMA`), store the answers, and return a row of what was done."""
        (row,) = unit.to_pylist()
        try:
            if self._config.folder.exists(self._config.stop_file):
                raise EngineError("stopped by an error in another unit")
            summary = self.answer(row)
        except SlickError as error:
            summary = {"error": type(error).__name__, "message": str(error)}
        return pa.Table.from_pylist([summary], schema=SUMMARY_SCHEMA)

    def answer(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Answer one unit and store the answers; the number of generations and the category of each question."""
        if self._engine is None:
            self._engine = self._load()
        before = asdict(self._engine.stats)
        per_question = self._ask(self._engine, unit)
        spent = {name: round(value - before[name], 6) for name, value in asdict(self._engine.stats).items()}
        rows = [
            _generation_row(question_id, unit["relation"], answers, gold, self._config.matcher)
            for question_id, answers, gold in zip(unit["question_id"], per_question, unit["answers"], strict=True)
        ]
        write_part(self._config.folder, unit["first_batch"], pa.Table.from_pylist(rows, GENERATION_SCHEMA), spent)
        self._count(len(rows), spent["generations"])
        return {"generations": int(spent["generations"]), "categories": [str(_category(row)) for row in rows]}

    def _ask(self, engine: Engine, unit: dict[str, Any]) -> list[list[Answers]]:
        """The answers to each question under each exemplar set."""
        ids, size = unit["question_id"], self._config.batch_questions
        suffixes = [few_shot_suffix(question) for question in unit["question"]]
        per_question: list[list[Answers]] = [[] for _ in ids]
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            for index, prefix in enumerate(self._config.prefixes[unit["relation"]]):
                batch = PromptBatch(prefix=prefix, prompt_index=index, question_ids=ids[part], suffixes=suffixes[part])
                answers = engine.generate(batch, self._config.sampling)
                for place, answer in enumerate(answers, start):
                    per_question[place].append(answer)
        return per_question

    def _load(self) -> Engine:
        from slick.engines.transformers import TransformersEngine
        from slick.models import load_model, load_tokenizer, prepare_device

        config = self._config
        device = prepare_device(config.on_gpu)
        model = load_model(config.model, config.dtype, device, trust_remote_code=config.trust_remote_code)
        tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
        return TransformersEngine(model, tokenizer, batch_questions=config.batch_questions)

    def _count(self, num_questions: int, num_generations: float) -> None:
        from ray.util.metrics import Counter

        if not self._metrics:
            self._metrics = {
                "questions": Counter("slick_annotate_questions", "Questions asked under every exemplar set."),
                "generations": Counter("slick_annotate_generations", "Answers generated, greedy and sampled."),
            }
        self._metrics["questions"].inc(num_questions)
        self._metrics["generations"].inc(num_generations)


def _generation_row(
    question_id: str, relation: str, answers: Sequence[Answers], gold: Sequence[str], matcher: Matcher
) -> dict[str, Any]:
    test = hit_tester(gold, matcher)
    hit = {text: test(text) for answer in answers for text in (answer.greedy_text, *answer.sampled_text)}
    return {
        "question_id": question_id,
        "relation": relation,
        "greedy_text": [answer.greedy_text for answer in answers],
        "greedy_hit": [hit[answer.greedy_text] for answer in answers],
        "sampled_text": [list(answer.sampled_text) for answer in answers],
        "sampled_hit": [[hit[text] for text in answer.sampled_text] for answer in answers],
        "num_tokens": sum(answer.num_tokens for answer in answers),
    }


def _category(row: dict[str, Any]) -> Category:
    sampled = [hit for hits in row["sampled_hit"] for hit in hits]
    return categorize(sum(row["greedy_hit"]), len(row["greedy_hit"]), sum(sampled), len(sampled))


def answer_units(
    units: Sequence[pa.Table],
    config: AskerConfig,
    *,
    min_actors: int,
    max_actors: int | None,
    gpus_per_actor: float | None,
    cpus_per_actor: float,
) -> Iterator[dict[str, Any]]:
    """Stream the units through a pool of actors; a row of `SUMMARY_SCHEMA` for each, in the order they finish.

    An actor that dies is started anew and its unit answered again; an error of an actor ends the stream.

    Raises:
        SlickError: what an actor could not do.
    """
    import ray
    import ray.data

    from slick.cluster import connect

    connect()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    cluster = ray.cluster_resources()
    num_gpus = gpus_per_actor if gpus_per_actor is not None else float(cluster.get("GPU", 0) > 0)
    # Where CPUs count, Ray's own tasks keep two slots: a pool that holds every slot would wait for itself for ever.
    room = cluster.get("GPU", 0) / num_gpus if num_gpus else (cluster.get("CPU", 1) - 2) / cpus_per_actor
    most = max(min_actors, min(max_actors or max(1, int(room)), len(units)))
    least = min(min_actors, most)
    pool = ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        initial_size=max(least, min(most, int(room))),
        max_tasks_in_flight_per_actor=2,  # few, so that the last units spread over all actors
    )
    done = ray.data.from_arrow(list(units)).map_batches(
        Asker,
        fn_constructor_kwargs={"config": replace(config, on_gpu=num_gpus > 0)},
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_gpus=num_gpus,
        num_cpus=cpus_per_actor,
    )
    done.context.enable_progress_bars = False
    done.context.print_on_execution_start = False
    done.context.execution_no_progress_timeout_s = -1  # a unit of a large model may take hours
    failed: dict[str, Any] | None = None
    for row in done.iter_rows():
        if row["error"] and failed is None:
            # Ray Data cannot be told to stop, so the actors are: those units that are left come back unanswered.
            failed = row
            config.folder.write_bytes(config.stop_file, b"")
        elif not row["error"]:
            yield row
    if failed is not None:
        config.folder.delete(config.stop_file)
        raise getattr(errors, failed["error"])(failed["message"])
