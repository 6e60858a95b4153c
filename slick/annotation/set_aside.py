"""Questions that are set aside, because one of their prompts exceeds the model's context. No Ray.

They depend on questions, exemplar sets, tokenizer and settings alone. So they are determined before any answer is
generated, are the same in a resumed run, and never get a label.

With the matcher `judge`, questions whose category depends on an unparsable outcome get no label either. They are
determined after grading, and another rescoring may label them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.judge_client import JudgeConfig
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.errors import DataError, EngineError
from slick.formatting import format_percent
from slick.inference.base import PromptStyle
from slick.storage import Folder
from slick.study_files import SET_ASIDE_SCHEMA, read_set_aside_rows

_LOG = logging.getLogger(__name__)

SET_ASIDE_FOLDER: Final = "set_aside"
"""The folder inside annotate/, with a file STORE.parquet for each store that has such questions."""
TOO_LONG: Final = "prompt too long"
UNDECIDED: Final = "unparsable outcome of the judge"
_UNDECIDED_PREFIX = "judge_"

CountTokens = Callable[[Sequence[str]], list[int]]
"""Numbers of tokens of prompts, as the engine feeds them."""

SPECIAL_TOKENS = 16
"""Upper bound of the tokens that a tokenizer adds to a text, which otherwise has at most one token per byte."""
_TOKENIZER_BATCH_SIZE = 4096
_MAX_QUESTIONS_LISTED = 3


def token_counter(
    model: str,
    *,
    trust_remote_code: bool = False,
    style: PromptStyle = PromptStyle(),  # noqa: B008 (immutable)
) -> CountTokens:
    """Counts tokens with the model's tokenizer, which is loaded on the first call because that takes seconds."""
    loaded: list[tuple[Any, int]] = []

    def count(texts: Sequence[str]) -> list[int]:
        if not loaded:
            from slick.models import load_tokenizer, num_trailing_special_tokens

            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
            loaded.append((tokenizer, num_trailing_special_tokens(tokenizer)))
        ((tokenizer, num_trailing),) = loaded
        with_special = style.add_special_tokens
        ids = tokenizer(list(texts), add_special_tokens=with_special, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return [len(tokens) - num_trailing * with_special for tokens in ids]

    return count


def set_questions_aside(tables: Mapping[str, pa.Table], worker_config: WorkerConfig) -> dict[str, pa.Table]:
    """Find the questions of each store that are too long and list them in annotate/set_aside/; see `find_too_long`."""
    from slick.models import context_length

    model, trust = worker_config.engine_config.model, worker_config.engine_config.trust_remote_code
    context = context_length(model, trust_remote_code=trust)
    set_aside = {}
    for store, table in tables.items():
        style = worker_config.stores[store].style
        count_tokens = token_counter(model, trust_remote_code=trust, style=style)
        set_aside[store] = find_too_long(table, worker_config.stores[store], context, count_tokens)
        write_set_aside(worker_config.folder, store, set_aside[store])
    return set_aside


def find_long_prompts(
    table: pa.Table, store: str, worker_config: WorkerConfig, max_new_tokens: int | None = None
) -> list[dict[str, Any]]:
    """The rows of `find_too_long` of one store, which are not written.

    Args:
        table: the store's questions, with their prompts.
        store: its name.
        worker_config: has the store, and the model.
        max_new_tokens: length of an answer in tokens, if that of the store's sampling does not apply.
    """
    from slick.models import context_length

    model, trust = worker_config.engine_config.model, worker_config.engine_config.trust_remote_code
    spec = worker_config.stores[store]
    if max_new_tokens is not None:
        spec = replace(spec, sampling=replace(spec.sampling, max_new_tokens=max_new_tokens))
    count_tokens = token_counter(model, trust_remote_code=trust, style=spec.style)
    rows: list[dict[str, Any]] = find_too_long(
        table, spec, context_length(model, trust_remote_code=trust), count_tokens
    ).to_pylist()
    return rows


def find_too_long(questions: pa.Table, store: AnswerSetSpec, context: int, count_tokens: CountTokens) -> pa.Table:
    """The questions with a prompt that does not fit the context together with the longest possible answer.

    Args:
        questions: the questions of the store, with their prompts; see `PromptBuilder.add_prompts`.
        store: prefixes, and the maximum length of an answer.
        context: maximum number of tokens of a sequence.
        count_tokens: called only for prompts that may not fit by their number of bytes.

    Returns:
        A table of `SET_ASIDE_SCHEMA`, in the order of the questions.

    Raises:
        DataError: the exemplars of a relation leave no room for any question.
    """
    rows: list[dict[str, Any]] = []
    answer = store.sampling.max_new_tokens
    for name, group in _by_prompt_group(questions):
        prefixes, suffixes = store.prefixes[name], [row["suffix"] for row in group]
        room = context - answer - SPECIAL_TOKENS
        if not _indices_over(suffixes, room - max(map(_num_bytes, prefixes))):
            continue
        if name == group[0]["relation"]:  # other groups have few questions, or a system message
            _check_exemplars(name, store, context, count_tokens)
        unsure = _indices_over(suffixes, room - max(count_tokens(prefixes)))
        lengths = _longest_prompt_tokens(prefixes, [suffixes[i] for i in unsure], count_tokens)
        for i, num_tokens in zip(unsure, lengths, strict=True):
            if num_tokens + answer > context:
                columns = {name: group[i][name] for name in ("question_id", "relation", "domain", "split")}
                rows.append(columns | {"reason": TOO_LONG, "num_tokens": num_tokens + answer, "limit": context})
    return pa.Table.from_pylist(rows, SET_ASIDE_SCHEMA)


def max_prompt_tokens(questions: pa.Table, store: AnswerSetSpec) -> int:
    """Upper bound of the tokens of any of these prompts and its answer, from numbers of bytes."""
    longest = 0
    for name, group in _by_prompt_group(questions):
        suffix = max(_num_bytes(row["suffix"]) for row in group)
        longest = max(longest, max(map(_num_bytes, store.prefixes[name])) + suffix)
    return longest + store.sampling.max_new_tokens + SPECIAL_TOKENS


def _by_prompt_group(questions: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of each prompt group, which follow one another."""
    columns = ["question_id", "relation", "domain", "split", "prompt_group", "suffix"]
    for name, rows in groupby(questions.select(columns).to_pylist(), key=lambda row: str(row["prompt_group"])):
        yield name, list(rows)


def _num_bytes(text: str) -> int:
    return len(text.encode())


def _indices_over(suffixes: Sequence[str], room: int) -> list[int]:
    """Indices of the suffixes that may have more than `room` tokens."""
    return [i for i, suffix in enumerate(suffixes) if _num_bytes(suffix) > room]


def _longest_prompt_tokens(
    prefixes: Sequence[str], suffixes: Sequence[str], count_tokens: CountTokens
) -> Iterator[int]:
    """Tokens of the longest prompt of each suffix. Whole prompts are tokenized: a token may span prefix and suffix."""
    step = max(1, _TOKENIZER_BATCH_SIZE // len(prefixes))
    for start in range(0, len(suffixes), step):
        counts = count_tokens([prefix + suffix for suffix in suffixes[start : start + step] for prefix in prefixes])
        yield from (max(counts[i : i + len(prefixes)]) for i in range(0, len(counts), len(prefixes)))


def _check_exemplars(relation: str, store: AnswerSetSpec, context: int, count_tokens: CountTokens) -> None:
    prefixes = store.prefixes[relation]
    lengths = count_tokens(prefixes)
    longest, answer = max(lengths), store.sampling.max_new_tokens
    if longest + answer > context:
        number = lengths.index(longest)
        line = max(prefixes[number].splitlines(), key=len)
        raise DataError(
            f"the exemplars of relation {relation} leave no room for a question: exemplar set {number + 1} of "
            f"{len(prefixes)} has {longest:,} tokens, an answer may have {answer:,}, and the model's context holds "
            f"{context:,}; the longest line of that set is {line[:80]!r} ({len(line):,} characters). Shorten or remove "
            "that dev question, lower --num-shots or --sampling.max-new-tokens, or use a model with a longer context"
        )


def write_set_aside(folder: Folder, store: str, set_aside: pa.Table) -> None:
    """Write and log the list of one store; delete the file if the list is empty.

    Args:
        folder: gets the folder `set_aside`.
        store: its name.
        set_aside: its questions that are set aside, as `SET_ASIDE_SCHEMA`.
    """
    lists, name = folder.child(SET_ASIDE_FOLDER), f"{store}.parquet"
    if not set_aside.num_rows:
        lists.delete(name)
        return
    lists.write_table(name, set_aside)
    num = f"{set_aside.num_rows:,} question{'s' * (set_aside.num_rows > 1)}"
    _LOG.info(
        "annotate/%s: %s set aside, because a prompt and its answer do not fit the model's context of %s tokens: %s; "
        "not annotated, but listed in %s/%s",
        store,
        num,
        f"{set_aside['limit'][0].as_py():,}",
        _list_questions(set_aside),
        lists,
        name,
    )


def check_set_aside_share(
    set_aside: pa.Table, num_questions: int, max_share: float, folder: Folder, store: str
) -> None:
    """Refuse to annotate if too many questions are set aside.

    Args:
        set_aside: the questions of one store that are set aside.
        num_questions: all questions of that store.
        max_share: maximum share of them that may be set aside, in [0, 1].
        folder: annotate/ of a study.
        store: name of the store.

    Raises:
        DataError: there are more, or no question is left.
    """
    num = set_aside.num_rows
    if not num or (num <= max_share * num_questions and num < num_questions):
        return
    limit = f"at most {format_percent(max_share, 'g')} may be set aside"
    allowed = "no question is left to annotate" if num == num_questions else limit
    raise DataError(
        f"{num:,} of {num_questions:,} questions ({format_percent(num / num_questions, '.2g')}) have a prompt that "
        f"does not fit the model's context of {set_aside['limit'][0].as_py():,} tokens together with its answer, the "
        f"longest {pc.max(set_aside['num_tokens']).as_py():,} tokens; {allowed}. They are listed in "
        f"{folder.child(SET_ASIDE_FOLDER)}/{store}.parquet: {_list_questions(set_aside)}. Shorten or remove those "
        f"questions, use a model with a longer context, or allow more by --max-set-aside-share"
    )


def _list_questions(set_aside: pa.Table) -> str:
    """The first few questions, each with its number of tokens."""
    first = set_aside.slice(0, _MAX_QUESTIONS_LISTED).to_pylist()
    names = ", ".join(f"{row['question_id']} ({row['num_tokens']:,} tokens)" for row in first)
    return names + (", ..." if set_aside.num_rows > _MAX_QUESTIONS_LISTED else "")


def read_set_aside(folder: Folder, store: str) -> pa.Table:
    """The questions of one store that are set aside; empty if there is no list.

    Args:
        folder: annotate/ of a study.
    """
    lists, name = folder.child(SET_ASIDE_FOLDER), f"{store}.parquet"
    return read_set_aside_rows(lists, name) if lists.exists(name) else SET_ASIDE_SCHEMA.empty_table()


def find_undecided(questions: pa.Table, question_ids: Sequence[str]) -> pa.Table:
    """The questions with these ids, as `SET_ASIDE_SCHEMA`."""
    is_undecided = pc.is_in(questions["question_id"], value_set=pa.array(question_ids, pa.string()))
    rows = questions.filter(is_undecided).select(["question_id", "relation", "domain", "split"]).to_pylist()
    return pa.Table.from_pylist([row | {"reason": UNDECIDED} for row in rows], SET_ASIDE_SCHEMA)


def check_undecided_share(undecided: pa.Table, num_questions: int, judge: JudgeConfig, folder: Folder) -> None:
    """Refuse to label if too many questions are undecided.

    Args:
        undecided: the undecided questions of the main store.
        num_questions: all its questions.
        judge: has the maximum share.
        folder: annotate/ of a study.

    Raises:
        EngineError: there are more, or no question is left.
    """
    num = undecided.num_rows
    if not num or (num <= judge.max_unparsable_share * num_questions and num < num_questions):
        return
    examples = ", ".join(undecided["question_id"].to_pylist()[:_MAX_QUESTIONS_LISTED])
    raise EngineError(
        f"the category of {num:,} of {num_questions:,} questions ({format_percent(num / num_questions, '.2g')}) "
        f"depends on answers without an outcome, such as of {examples}; at most "
        f"{format_percent(judge.max_unparsable_share, 'g')} may be set aside. The replies are in the column reply of "
        f"{folder}/judgements, where all grades are kept. Use another judge, a higher --judge.max-retries or "
        "--judge.max-new-tokens, or allow more by --judge.max-unparsable-share"
    )


def write_undecided(folder: Folder, undecided: Mapping[str, pa.Table]) -> None:
    """Write the undecided questions of each store, and delete the lists of an earlier scoring.

    Args:
        folder: annotate/ of a study.
        undecided: by store, as `SET_ASIDE_SCHEMA`.
    """
    lists = folder.child(SET_ASIDE_FOLDER)
    for name in lists.names(".parquet"):
        if name.startswith(_UNDECIDED_PREFIX):
            lists.delete(name)
    for store, table in undecided.items():
        if table.num_rows:
            path = set_aside_file(store, UNDECIDED)
            lists.write_table(path.rpartition("/")[2], table)
            _LOG.info(
                "annotate/%s: %s questions have no label, because it depends on an unparsable outcome of the judge; "
                "they are listed in %s/%s",
                store,
                f"{table.num_rows:,}",
                folder,
                path,
            )


def read_undecided(folder: Folder, store: str) -> pa.Table:
    """The undecided questions of one store; empty if there is no list.

    Args:
        folder: annotate/ of a study.
        store: its name.
    """
    return read_set_aside(folder, f"{_UNDECIDED_PREFIX}{store}")


def set_aside_file(store: str, reason: str) -> str:
    """The path inside annotate/ of the list of questions of a store that are set aside for this reason."""
    prefix = _UNDECIDED_PREFIX if reason == UNDECIDED else ""
    return f"{SET_ASIDE_FOLDER}/{prefix}{store}.parquet"


def drop_questions(questions: pa.Table, set_aside: pa.Table) -> pa.Table:
    """The questions that are not set aside."""
    if not set_aside.num_rows:
        return questions
    ids = set_aside["question_id"].combine_chunks()
    return questions.filter(pc.invert(pc.is_in(questions["question_id"], value_set=ids)))


def count_set_aside_by_store(set_aside: Mapping[str, pa.Table]) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Number of questions by store, reason, relation and split, for manifests; stores without any are omitted."""
    counts: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for store, table in set_aside.items():
        for row in table.select(["reason", "relation", "split"]).to_pylist():
            of_relation = counts.setdefault(store, {}).setdefault(row["reason"], {}).setdefault(row["relation"], {})
            of_relation[row["split"]] = of_relation.get(row["split"], 0) + 1
    return counts
