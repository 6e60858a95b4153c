"""The part of the annotate step that scores stored answers, gold answers and distractors, to rank them.

It generates nothing. Each candidate answer gets its log-probability after the question's few-shot prompts, and P(True).
It has its own folder and manifest inside annotate/, so that it does not change the labels, and can follow an earlier
annotation. `slick.annotation.candidates` chooses the candidates, and the report ranks them.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.answering import annotate_tables
from slick.annotation.candidates import (
    CANDIDATE_KEY,
    DISTRACTOR_NEIGHBORS,
    KNOWN_SHARE,
    build_candidates,
    questions_to_rank,
)
from slick.annotation.config import AnnotateConfig
from slick.annotation.prompting import PROMPT_GROUP, SUFFIX, PromptBuilder
from slick.annotation.set_aside import (
    check_set_aside_share,
    count_set_aside_by_store,
    find_long_prompts,
    write_set_aside,
)
from slick.annotation.store import total_cost
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.errors import StudyError
from slick.inference.base import PACKED_ENGINE, PromptStyle, SamplingConfig
from slick.prompts import P_TRUE_CHOICES, P_TRUE_PREFIX, p_true_suffix
from slick.settings import HIDDEN_IDENTITY, identity_settings
from slick.storage import Folder
from slick.study import Manifest, begin_step, complete_step, fingerprint, require_manifest
from slick.study_files import (
    CANDIDATE_SCHEMA,
    SET_ASIDE_SCHEMA,
    read_answer_part,
)

_LOG = logging.getLogger(__name__)

HIDDEN_FOLDER: Final = "hidden"
"""The folder inside annotate/."""
LOG_PROBABILITIES: Final = "log_probabilities"
P_TRUE_STORE: Final = "p_true"
"""The stores inside it, with one row per candidate."""
CANDIDATES_FILE: Final = "candidates.parquet"
"""All candidates with their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPrompts:
    """The prompts of the labels."""

    builder: PromptBuilder
    style: PromptStyle


def score_candidates(
    study: Folder, config: AnnotateConfig, model: str, inputs: Mapping[str, str], prompts: AnswerPrompts
) -> Manifest:
    """Write annotate/hidden/ with the model, questions and answers of the labels; do nothing if it is finished.

    Args:
        study: with finished labels, of which all answers are stored.
        config: selects the questions and sizes the pool, with a resolved dtype.
        model: a folder, a Hugging Face Hub id or a .gguf file.
        inputs: fingerprints of model and questions, as in the manifest of the labels.
        prompts: those of the labels.

    Returns:
        Its manifest, with the numbers of questions and candidates, and the cost.

    Raises:
        StudyError: the folder holds scores with other settings, or of other labels.
        DataError: too many questions are too long for the model's context.
        EngineError: a candidate could not be scored. Written files are kept; the next run resumes.
    """
    started_at = time.monotonic()
    labels = require_manifest(study.child("annotate"), "annotate")
    folder = study.child("annotate", HIDDEN_FOLDER)
    settings = hidden_settings(config)
    inputs = {**inputs, "labels": labels.fingerprint}
    identity = fingerprint(inputs, settings)
    if not begin_step(folder, "hidden", identity, settings):
        return require_manifest(folder, "annotate")
    questions = prompts.builder.add_prompts(questions_to_rank(study, config.hidden_questions))
    candidates = build_candidates(study, questions, config, str(labels.settings.get("matcher", "exact")))
    tables = {LOG_PROBABILITIES: _answer_rows(candidates), P_TRUE_STORE: _p_true_rows(candidates)}
    worker_config = _worker_config(folder, prompts, tables, model, config)
    set_aside = _set_questions_aside(tables, worker_config, questions, config)
    ids = pa.array(set_aside["question_id"].to_pylist(), pa.string())
    tables = {
        store: table.filter(pc.invert(pc.is_in(table["ranked_question"], value_set=ids)))
        for store, table in tables.items()
    }
    annotate_tables(
        "hidden",
        tables,
        worker_config,
        config,
        lambda _, cost, seconds: f"{cost['prompt_tokens'] / seconds:,.0f} prompt tokens/s",
        dict.fromkeys(tables, SET_ASIDE_SCHEMA.empty_table()),
        items="answers to score",
    )
    scored = _join_scores(folder, candidates.filter(pc.invert(pc.is_in(candidates["question_id"], value_set=ids))))
    folder.write_table(CANDIDATES_FILE, scored)
    counts = _counts(folder, scored) | {"set_aside": count_set_aside_by_store({HIDDEN_FOLDER: set_aside})}
    _LOG.info("hidden: scored %s answers to %s questions", f"{counts['candidates']:,}", f"{counts['questions']:,}")
    return complete_step(
        folder, HIDDEN_FOLDER, identity, settings=settings, inputs=inputs, counts=counts, started_at=started_at
    )


def hidden_settings(config: AnnotateConfig) -> dict[str, Any]:
    """The settings that the candidates and their scores depend on."""
    return {
        **identity_settings(config, HIDDEN_IDENTITY),
        "distractor_neighbors": DISTRACTOR_NEIGHBORS,
        "known_share": KNOWN_SHARE,
        "prompt": P_TRUE_PREFIX + p_true_suffix("[question]", "[answer]"),
        "choices": list(P_TRUE_CHOICES),
    }


def _answer_rows(candidates: pa.Table) -> pa.Table:
    """A row of the worker per candidate: the question's prompt, and the candidate in the place of the gold answers."""
    return _worker_rows(candidates, candidates[PROMPT_GROUP], candidates[SUFFIX].to_pylist())


def _p_true_rows(candidates: pa.Table) -> pa.Table:
    texts = (candidates[name].to_pylist() for name in ("question", "answer"))
    suffixes = [p_true_suffix(question, answer) for question, answer in zip(*texts, strict=True)]
    return _worker_rows(candidates, candidates["relation"], suffixes)


def _worker_rows(candidates: pa.Table, groups: pa.ChunkedArray, suffixes: Sequence[str]) -> pa.Table:
    answers = [[answer] for answer in candidates["answer"].to_pylist()]
    table = candidates.select(["relation", "domain", "split"])
    table = table.append_column("question_id", candidates[CANDIDATE_KEY])
    table = table.append_column("ranked_question", candidates["question_id"])
    table = table.append_column(PROMPT_GROUP, groups)
    table = table.append_column(SUFFIX, pa.array(suffixes, pa.string()))
    return table.append_column("answers", pa.array(answers, pa.list_(pa.string())))


def _worker_config(
    folder: Folder, prompts: AnswerPrompts, tables: Mapping[str, pa.Table], model: str, config: AnnotateConfig
) -> WorkerConfig:
    groups = tables[P_TRUE_STORE][PROMPT_GROUP].unique().to_pylist()
    choice = SamplingConfig(num_samples=0, max_new_tokens=max(len(f" {text}".encode()) for text in P_TRUE_CHOICES))
    return WorkerConfig(
        engine=PACKED_ENGINE,
        engine_config=config.engine_config(model),
        mode="full",
        matcher="exact",
        stores={
            LOG_PROBABILITIES: AnswerSetSpec(
                prefixes={
                    name: prefixes[: config.hidden_prefixes] for name, prefixes in prompts.builder.prefixes.items()
                },
                sampling=config.sampling,
                kind="log_probability",
                style=prompts.style,
            ),
            P_TRUE_STORE: AnswerSetSpec(
                prefixes={name: [P_TRUE_PREFIX] for name in groups}, sampling=choice, kind="p_true"
            ),
        },
        folder=folder,
    )


def _set_questions_aside(
    tables: Mapping[str, pa.Table], worker_config: WorkerConfig, questions: pa.Table, config: AnnotateConfig
) -> pa.Table:
    """The questions of which a candidate does not fit the model's context, listed in annotate/hidden/set_aside/.

    Without one of its candidates a question would have another rank, so it is set aside with all of them.
    """
    separator = worker_config.stores[LOG_PROBABILITIES].style.answer_separator
    longest: dict[str, dict[str, Any]] = {}
    for store, table in tables.items():
        if store == LOG_PROBABILITIES:
            texts = zip(table[SUFFIX].to_pylist(), table["answers"].to_pylist(), strict=True)
            whole = [f"{suffix}{separator}{answer}" for suffix, (answer,) in texts]
            table = table.set_column(table.column_names.index(SUFFIX), SUFFIX, pa.array(whole, pa.string()))
        ranked = dict(zip(table["question_id"].to_pylist(), table["ranked_question"].to_pylist(), strict=True))
        for row in find_long_prompts(table, store, worker_config, max_new_tokens=1 if store != P_TRUE_STORE else None):
            question_id = ranked[row["question_id"]]
            if question_id not in longest or row["num_tokens"] > longest[question_id]["num_tokens"]:
                longest[question_id] = row | {"question_id": question_id}
    set_aside = pa.Table.from_pylist([longest[name] for name in sorted(longest)], SET_ASIDE_SCHEMA)
    write_set_aside(worker_config.folder, HIDDEN_FOLDER, set_aside)
    check_set_aside_share(
        set_aside, questions.num_rows, config.max_set_aside_share, worker_config.folder, HIDDEN_FOLDER
    )
    return set_aside


def _join_scores(folder: Folder, candidates: pa.Table) -> pa.Table:
    """The candidates with their scores, as `CANDIDATE_SCHEMA`.

    Raises:
        StudyError: a score is missing, or there is one too many.
    """
    by_store = {}
    for store in (LOG_PROBABILITIES, P_TRUE_STORE):
        stored = folder.child(store)
        rows = [row for name in stored.names(".parquet") for row in read_answer_part(stored, name).to_pylist()]
        by_store[store] = {row.pop("question_id"): row for row in rows}
        expected = set(candidates[CANDIDATE_KEY].to_pylist())
        if by_store[store].keys() != expected or len(rows) != len(expected):
            raise StudyError(
                f"{stored} holds {len(rows):,} scores, of which {len(by_store[store].keys() & expected):,} are among "
                f"the {len(expected):,} expected ones; delete {folder} and run `slick annotate --hidden` again"
            )
    rows = [
        row | {name: value for scores in by_store.values() for name, value in scores[row[CANDIDATE_KEY]].items()}
        for row in candidates.to_pylist()
    ]
    return pa.Table.from_pylist(rows, CANDIDATE_SCHEMA)


def _counts(folder: Folder, scored: pa.Table) -> dict[str, Any]:
    cost: Counter[str] = Counter()
    runtime: dict[str, str] = {}
    for store in (LOG_PROBABILITIES, P_TRUE_STORE):
        spent, of_store = total_cost(folder.child(store))
        cost.update(spent)
        runtime = of_store
    counts: dict[str, Any] = {
        "questions": len(set(scored["question_id"].to_pylist())),
        "candidates": scored.num_rows,
        "distractors": pc.sum(scored["num_distractors"]).as_py() or 0,
    }
    counts |= {name: int(cost[name]) for name in ("prompt_tokens", "prefilled_tokens", "decoded_tokens")}
    return counts | {"engine_seconds": round(cost["seconds"], 3), **runtime}
