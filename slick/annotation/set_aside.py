"""Questions that are set aside, since a prompt of theirs is longer than the model's context. No Ray.

Which ones follows from questions, exemplar sets, tokenizer and settings alone. So they are found before any question is
asked, an interrupted run finds the same ones again, and they never get a label.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.config import MAIN_STORES
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.errors import DataError
from slick.formatting import format_percent
from slick.storage import Folder
from slick.study_files import SET_ASIDE_SCHEMA, read_set_aside_rows

SET_ASIDE_FOLDER: Final = "set_aside"
"""The folder inside annotate/; it holds STORE.parquet for each store with such questions."""
TOO_LONG: Final = "prompt too long"

CountTokens = Callable[[Sequence[str]], list[int]]
"""The number of tokens of each prompt, as the engine feeds it."""

SPECIAL_TOKENS = 16
"""Room for tokens that a tokenizer adds to a text. Apart from these a text has at most as many tokens as bytes."""
_TOKENIZER_BATCH_SIZE = 4096
_MAX_QUESTIONS_LISTED = 3


def token_counter(model: str, *, trust_remote_code: bool = False) -> CountTokens:
    """Counts tokens with the model's tokenizer, which is loaded when it is first needed: that takes seconds."""
    loaded: list[tuple[Any, int]] = []

    def count(texts: Sequence[str]) -> list[int]:
        if not loaded:
            from slick.inference.tokens import num_trailing_special_tokens
            from slick.models import load_tokenizer

            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
            loaded.append((tokenizer, num_trailing_special_tokens(tokenizer)))
        ((tokenizer, num_closing),) = loaded
        found = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
        return [len(tokens) - num_closing for tokens in found]

    return count


def set_questions_aside(tables: Mapping[str, pa.Table], asker: WorkerConfig) -> dict[str, pa.Table]:
    """Find the questions of each store that are too long, and list them in annotate/set_aside/; see `find_too_long`."""
    from slick.models import context_length

    model, trust = asker.engine_config.model, asker.engine_config.trust_remote_code
    context = context_length(model, trust_remote_code=trust)
    count_tokens = token_counter(model, trust_remote_code=trust)
    found = {}
    for store, table in tables.items():
        found[store] = find_too_long(table, asker.stores[store], context, count_tokens)
        _write(asker.folder, store, found[store])
    return found


def find_too_long(questions: pa.Table, store: AnswerSetSpec, context: int, count_tokens: CountTokens) -> pa.Table:
    """The questions with a prompt that does not fit the context together with its longest answer.

    Args:
        questions: that the store is about, with relation, domain, split, question and answers.
        store: its prefixes, and how long an answer may be.
        context: tokens that a sequence of the model may have.
        count_tokens: called only for prompts whose number of bytes leaves it open whether they fit.

    Returns:
        As `SET_ASIDE_SCHEMA`, in the order of the questions.

    Raises:
        DataError: the exemplars of a relation leave no room for any question.
    """
    rows: list[dict[str, Any]] = []
    answer = store.sampling.max_new_tokens
    for relation, group in _by_relation(questions):
        prefixes = store.prefixes[relation]
        suffixes = [store.suffix(row["question"], row["answers"]) for row in group]
        room = context - answer - SPECIAL_TOKENS
        if not _indices_over(suffixes, room - max(map(_num_bytes, prefixes))):
            continue
        _check_exemplars(relation, store, context, count_tokens)
        unsure = _indices_over(suffixes, room - max(count_tokens(prefixes)))
        lengths = _longest_prompt_tokens(prefixes, [suffixes[i] for i in unsure], count_tokens)
        for i, num_tokens in zip(unsure, lengths, strict=True):
            if num_tokens + answer > context:
                found = {name: group[i][name] for name in ("question_id", "relation", "domain", "split")}
                rows.append(found | {"reason": TOO_LONG, "num_tokens": num_tokens + answer, "limit": context})
    return pa.Table.from_pylist(rows, SET_ASIDE_SCHEMA)


def max_prompt_tokens(questions: pa.Table, store: AnswerSetSpec) -> int:
    """An upper bound of the tokens of any prompt of these questions with its answer, from their bytes."""
    longest = 0
    for relation, group in _by_relation(questions):
        suffix = max(_num_bytes(store.suffix(row["question"], row["answers"])) for row in group)
        longest = max(longest, max(map(_num_bytes, store.prefixes[relation])) + suffix)
    return longest + store.sampling.max_new_tokens + SPECIAL_TOKENS


def _by_relation(questions: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    columns = ["question_id", "relation", "domain", "split", "question", "answers"]
    for relation in pc.unique(questions["relation"]).to_pylist():
        yield relation, questions.filter(pc.equal(questions["relation"], relation)).select(columns).to_pylist()


def _num_bytes(text: str) -> int:
    return len(text.encode())


def _indices_over(suffixes: Sequence[str], room: int) -> list[int]:
    """Places of the suffixes that may have more tokens than that."""
    return [i for i, suffix in enumerate(suffixes) if _num_bytes(suffix) > room]


def _longest_prompt_tokens(
    prefixes: Sequence[str], suffixes: Sequence[str], count_tokens: CountTokens
) -> Iterator[int]:
    """Tokens of the longest prompt of each suffix; whole prompts are counted, since tokens may cross the border."""
    step = max(1, _TOKENIZER_BATCH_SIZE // len(prefixes))
    for start in range(0, len(suffixes), step):
        counts = count_tokens([prefix + suffix for suffix in suffixes[start : start + step] for prefix in prefixes])
        yield from (max(counts[i : i + len(prefixes)]) for i in range(0, len(counts), len(prefixes)))


def _check_exemplars(relation: str, store: AnswerSetSpec, context: int, count_tokens: CountTokens) -> None:
    prefixes, empty = store.prefixes[relation], store.suffix("", [""])
    lengths = count_tokens([prefix + empty for prefix in prefixes])
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


def _write(folder: Folder, store: str, found: pa.Table) -> None:
    """Store the list of one store in annotate/set_aside/, and print it in a line; nothing where it is empty."""
    place, name = folder.child(SET_ASIDE_FOLDER), f"{store}.parquet"
    if not found.num_rows:
        place.delete(name)
        return
    place.write_table(name, found)
    num = f"{found.num_rows:,} question{'s' * (found.num_rows > 1)}"
    print(
        f"annotate/{store}: {num} set aside, since a prompt and its answer do not fit the model's context of "
        f"{found['limit'][0].as_py():,} tokens: {_list_questions(found)}; not asked, but listed in {place}/{name}",
        flush=True,
    )


def check_set_aside_share(found: pa.Table, num_questions: int, most: float, folder: Folder, store: str) -> None:
    """Refuse to go on where too many questions are set aside.

    Args:
        found: of one store.
        num_questions: of that store, in all.
        most: share of them that may be set aside, in [0, 1].

    Raises:
        DataError: there are more, or no question is left.
    """
    num = found.num_rows
    if not num or (num <= most * num_questions and num < num_questions):
        return
    limit = f"at most {format_percent(most, 'g')} may be set aside"
    allowed = "no question is left to ask" if num == num_questions else limit
    raise DataError(
        f"{num:,} of {num_questions:,} questions ({format_percent(num / num_questions, '.2g')}) have a prompt that "
        f"does not fit the model's context of {found['limit'][0].as_py():,} tokens together with its answer, the "
        f"longest {pc.max(found['num_tokens']).as_py():,} tokens; {allowed}. They are listed in "
        f"{folder.child(SET_ASIDE_FOLDER)}/{store}.parquet: {_list_questions(found)}. Shorten or remove those "
        f"questions, use a model with a longer context, or allow more by --max-set-aside-share"
    )


def _list_questions(found: pa.Table) -> str:
    """The first few questions, each with its tokens."""
    first = found.slice(0, _MAX_QUESTIONS_LISTED).to_pylist()
    names = ", ".join(f"{row['question_id']} ({row['num_tokens']:,} tokens)" for row in first)
    return names + (", ..." if found.num_rows > _MAX_QUESTIONS_LISTED else "")


def read_set_aside(folder: Folder, store: str) -> pa.Table:
    """The questions of one store that were set aside; empty where there is no list.

    Args:
        folder: annotate/ of a study.
    """
    place, name = folder.child(SET_ASIDE_FOLDER), f"{store}.parquet"
    return read_set_aside_rows(place, name) if place.exists(name) else SET_ASIDE_SCHEMA.empty_table()


def labelled_questions(folder: Folder, asked: pa.Table) -> pa.Table:
    """The questions that get a label: all that were to be asked, but for those that were set aside.

    Args:
        folder: annotate/ of a study.
    """
    for store in MAIN_STORES:  # only one of them was asked
        asked = drop_questions(asked, read_set_aside(folder, store))
    return asked


def drop_questions(questions: pa.Table, found: pa.Table) -> pa.Table:
    """The questions that are not set aside."""
    if not found.num_rows:
        return questions
    return questions.filter(
        pc.invert(pc.is_in(questions["question_id"], value_set=found["question_id"].combine_chunks()))
    )


def count_set_aside_by_store(found: Mapping[str, pa.Table]) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Store to reason to relation to split to number of questions, for manifests; stores without any are left out."""
    counts: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for store, table in found.items():
        for row in table.select(["reason", "relation", "split"]).to_pylist():
            of_relation = counts.setdefault(store, {}).setdefault(row["reason"], {}).setdefault(row["relation"], {})
            of_relation[row["split"]] = of_relation.get(row["split"], 0) + 1
    return counts
