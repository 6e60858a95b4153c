"""Grading of answers for the matcher `judge`, by threads that query a server or by actors with a local model.

Grades are written to files every few seconds, so an interrupted run loses little work.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa

from slick.annotation.answering import write_table_plan
from slick.annotation.judge_client import Grade, JudgeClient, JudgeConfig
from slick.annotation.plan import make_units, temporary_files
from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.annotation.rubrics import ANSWER_RUBRIC, Rubric
from slick.annotation.set_aside import find_too_long, max_prompt_tokens, token_counter
from slick.annotation.worker import GPU_BATCH_FACTOR, AnswerSetSpec, WorkerConfig, run_worker_pool, with_engine
from slick.errors import EngineError, ModelError
from slick.formatting import ProgressReporter, format_percent
from slick.inference.base import PACKED_ENGINE, EngineConfig, SamplingConfig
from slick.storage import Folder
from slick.study_files import JUDGEMENT_SCHEMA, UNPARSABLE

if TYPE_CHECKING:
    from slick.annotation.config import AnnotateConfig

_LOG = logging.getLogger(__name__)

JUDGE_FOLDER: Final = "judgements"
"""The folder inside annotate/."""
_RELATION = "judge"
"""Takes the place of the relation and the prompt group in units of work."""
_ROWS_PER_PART = 256
_SECONDS_PER_PART = 15.0
_FIRST_GRADES = 50
"""The step stops if none of this many first replies can be parsed, because the model does not follow the prompt."""


class Item(NamedTuple):
    """A text that the judge decides about, such as a question, gold answers and an answer."""

    key: str
    text: str
    """See `slick.annotation.rubrics`."""
    attempts: int
    """Earlier replies that named no outcome."""


def _next_part(stored: Folder) -> int:
    """One more than the highest file number of earlier runs."""
    numbers = [int(name[5:-8]) for name in stored.names(".parquet") if name[5:-8].isdecimal()]
    return max(numbers, default=-1) + 1


class _GradeWriter:
    """Collects grades and writes them in files, so that at most a few seconds of work are lost if the driver dies."""

    def __init__(self, stored: Folder) -> None:
        self.num_written = 0
        self._stored, self._part, self._rows = stored, _next_part(stored), list[dict[str, Any]]()
        self._written_at = time.monotonic()

    def add(self, item: Item, grade: Grade) -> None:
        self._rows.append({"key": item.key, "item": item.text} | grade._asdict())
        if len(self._rows) >= _ROWS_PER_PART or time.monotonic() - self._written_at > _SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, JUDGEMENT_SCHEMA)
            self._stored.write_table(f"part-{self._part:06d}.parquet", table)
            self.num_written += len(self._rows)
            self._part, self._rows = self._part + 1, []
        self._written_at = time.monotonic()


def grade(
    folder: Folder,
    pending: Sequence[Item],
    config: "AnnotateConfig",
    progress: ProgressReporter,
    rubric: Rubric = ANSWER_RUBRIC,
) -> None:
    """Let the judge of the settings decide about items, and store its decisions.

    Args:
        folder: gets the folder `judgements`.
        pending: items without a decision.
        config: the judge, and the sizes of batches and the pool.
        progress: counts the items.
        rubric: what is decided.

    Raises:
        EngineError: the judge fails. All decisions until then are stored.
        ModelError: the local judge cannot be used.
    """
    (grade_by_server if config.judge.url else grade_by_model)(folder, pending, config, progress, rubric)


def grade_by_server(
    folder: Folder,
    pending: Sequence[Item],
    config: "AnnotateConfig",
    progress: ProgressReporter,
    rubric: Rubric = ANSWER_RUBRIC,
) -> None:
    """Ask the server; see `grade`."""
    stored = folder.child(JUDGE_FOLDER)
    writer, client, earlier = _GradeWriter(stored), JudgeClient(config.judge, rubric), progress.done
    try:
        _ask_server(client, pending, config.judge, writer, progress)
    except EngineError as error:
        num = f"{earlier + writer.num_written:,} of {earlier + len(pending):,} {rubric.name}"
        raise EngineError(
            f"{error}. {num} are graded and stored in {stored}; the same command grades the rest"
        ) from None


def _ask_server(
    client: JudgeClient, pending: Sequence[Item], judge: JudgeConfig, writer: _GradeWriter, progress: ProgressReporter
) -> None:
    """Grade with several threads. Every grade that arrives is stored, also if an error or Ctrl-C ends the run."""
    waiting = iter(pending)
    running: dict[Future[Grade], Item] = {}
    num_by_outcome: Counter[str] = Counter()

    def store(future: Future[Grade]) -> None:
        item, grade = running.pop(future), future.result()
        writer.add(item, grade)
        num_by_outcome[grade.outcome] += 1
        progress.add(1, f"{format_percent(num_by_outcome[UNPARSABLE] / num_by_outcome.total())} unparsable")

    with ThreadPoolExecutor(judge.concurrency, "judge") as threads:
        try:
            while True:
                while len(running) < 2 * judge.concurrency and (item := next(waiting, None)) is not None:
                    running[threads.submit(client.grade, item.text, item.attempts)] = item
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    store(future)
                _check_first_grades(num_by_outcome)
        finally:
            client.stopped.set()
            threads.shutdown(wait=True, cancel_futures=True)
            for future in [future for future in running if not future.cancelled() and not future.exception()]:
                store(future)
            writer.flush()


def _check_first_grades(num_by_outcome: Counter[str]) -> None:
    """Stop early if the model does not follow the prompt, since each reply may cost money.

    Raises:
        EngineError: none of the first replies names an outcome.
    """
    if num_by_outcome.total() >= _FIRST_GRADES and num_by_outcome[UNPARSABLE] == num_by_outcome.total():
        raise EngineError(
            f"none of the judge's first {num_by_outcome.total()} replies names an outcome (see the column reply of the "
            "stored grades); use another model, or raise --judge.max-new-tokens if it reasons before it replies"
        )


def grade_by_model(
    folder: Folder,
    pending: Sequence[Item],
    config: "AnnotateConfig",
    progress: ProgressReporter,
    rubric: Rubric = ANSWER_RUBRIC,
) -> None:
    """Grade with a local model in the pool of actors; see `grade`. Items that exceed its context are unparsable."""
    stored = folder.child(JUDGE_FOLDER)
    table = pa.table(
        {
            "question_id": [item.key for item in pending],
            **{name: [_RELATION] * len(pending) for name in ("relation", "domain", "split", PROMPT_GROUP)},
            SUFFIX: [rubric.suffix(item.text) for item in pending],
            "answers": pa.array([[]] * len(pending), pa.list_(pa.string())),
        }
    )
    worker_config, too_long = _local_judge(folder, table, config, rubric)
    if too_long:
        writer = _GradeWriter(stored)
        for item in pending:
            if item.key in too_long:
                writer.add(item, Grade(UNPARSABLE, "the prompt exceeds the judge's context", 1))
        writer.flush()
        progress.add(writer.num_written)
        _LOG.info("judge: %s %s exceed the judge's context and have no outcome", f"{writer.num_written:,}", rubric.name)
    keys = table["question_id"].to_pylist()
    kept = table.take([row for row, key in enumerate(keys) if key not in too_long])
    if not kept.num_rows:
        return
    first = _next_part(stored)
    with temporary_files(folder):

        def units(on_gpu: bool, *_: int) -> Iterator[dict[str, Any]]:
            size = config.batch_questions * config.batches_per_file * (GPU_BATCH_FACTOR if on_gpu else 1)
            nothing = kept.slice(0, 0)
            plan = replace(write_table_plan(folder, JUDGE_FOLDER, kept, size, nothing), first=first)
            return make_units({JUDGE_FOLDER: [plan]}, max_batches=1, num_actors=1, num_turns=1)

        for row in run_worker_pool(
            units,
            worker_config,
            min_actors=config.min_actors,
            max_actors=config.max_actors,
            gpus_per_actor=None if config.gpus_per_actor is None else min(1.0, config.gpus_per_actor),
            cpus_per_actor=config.cpus_per_actor,
        ):
            progress.add(row["questions"])


def _local_judge(
    folder: Folder, table: pa.Table, config: "AnnotateConfig", rubric: Rubric
) -> tuple[WorkerConfig, set[str]]:
    """The configuration of the actors, and the keys of items that exceed the judge's context.

    Raises:
        ModelError: the context does not even hold the instructions.
    """
    from slick.models import context_length

    model, trust = config.judge.model, config.judge.trust_remote_code
    longest_choice = max(len(f" {choice}".encode()) for choice in rubric.choices)
    spec = AnswerSetSpec(
        prefixes={_RELATION: [rubric.prefix]},
        sampling=SamplingConfig(num_samples=0, max_new_tokens=longest_choice),
        kind="judge",
        rubric=rubric.name,
    )
    context, count_tokens = (
        context_length(model, trust_remote_code=trust),
        token_counter(model, trust_remote_code=trust),
    )
    (num_tokens,) = count_tokens([rubric.prefix + rubric.suffix("")])
    if num_tokens + longest_choice > context:
        raise ModelError(
            f"--judge.model {model} has a context of {context:,} tokens, but the instructions of the judge need "
            f"{num_tokens + longest_choice:,} without any of the {rubric.name}; use a model with a longer context"
        )
    too_long = find_too_long(table, spec, context, count_tokens)
    max_tokens = min(context, max_prompt_tokens(table, spec))
    worker_config = WorkerConfig(
        engine=PACKED_ENGINE,
        engine_config=EngineConfig(
            model=model, dtype=config.dtype, batch_questions=config.batch_questions, trust_remote_code=trust
        ),
        mode="full",
        matcher="exact",
        stores={JUDGE_FOLDER: spec},
        folder=folder,
    )
    return with_engine(worker_config, max_tokens=max_tokens), set(too_long["question_id"].to_pylist())
