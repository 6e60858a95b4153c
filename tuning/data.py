"""Data of one run: its variant, the questions to evaluate after every epoch, token ids and batches. No torch.

Array suffixes: B rows, T tokens of a row, N tokens of all rows, K answer tokens of all rows.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from slick.annotation.prompting import read_context
from slick.datasets import read_questions
from slick.errors import DataError, SettingsError, VariantError
from slick.inference.base import PromptStyle
from slick.matching import nfc
from slick.prompt_formats import PromptFormat
from slick.prompts import CLOSED_BOOK_INSTRUCTION, closed_book_suffix
from slick.rng import derive_seed
from slick.storage import Folder
from slick.study_files import CONTEXT_FIELD, QUESTION_SCHEMA, WEIGHT_FIELD, lookup_by_question, read_knowledge
from slick.types import Category
from slick.variants import read_variant

SPLITS = ("train", "dev", "test", "ood")
"""The variant's rows; dev questions, test questions, and out-of-distribution test questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRow:
    """One question, to train on or to evaluate."""

    question_id: str
    split: str
    """One of `SPLITS`."""
    category: str | None
    """None if the question was not annotated."""
    suffix: str
    """The prompt after `prefix`."""
    target: str
    """The text to train on, whose loss is computed."""
    accepted: tuple[str, ...]
    """Answers that count as correct."""
    weight: float = 1.0
    """Weight of a training row in the loss; 0: it is evaluated, but not trained on."""
    question: str = ""
    """The text of the question, for chat prompts."""
    context: str | None = None
    """The messages before the question; see `slick.study_files.CONTEXT_FIELD`."""
    prefix: str = CLOSED_BOOK_INSTRUCTION
    """The beginning of the prompts of all rows."""
    style: PromptStyle = field(default_factory=PromptStyle)
    """How the prompt becomes tokens, and where answers end."""

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return self.prefix + self.suffix


def read_rows(study: Folder, variant: str) -> dict[str, list[QuestionRow]]:
    """The rows of each split, in the order of the stored tables.

    Raises:
        SettingsError: there are no dev questions to choose the best epoch by.
        VariantError: the variant has no rows, or was not drawn from these questions.
    """
    questions = {row["question_id"]: row for row in _read_questions(study).to_pylist()}
    knowledge = read_knowledge(study, ["question_id", "category"]).to_pydict()
    categories = dict(zip(knowledge["question_id"], knowledge["category"], strict=True))
    rows: dict[str, list[QuestionRow]] = {split: [] for split in SPLITS}
    for entry in read_variant(study, variant).to_pylist():
        rows["train"].append(_train_row(study, variant, entry, questions))
    for question_id, question in questions.items():
        split = _eval_split(question)
        if split is not None:
            rows[split].append(_question_row(question, split, categories.get(question_id)))
    if not rows["train"]:
        raise VariantError(f"{study}/variants/{variant}.parquet has no rows; draw the variants again")
    if not rows["dev"]:
        raise SettingsError(
            f"{study}/questions has no dev questions in distribution (domain id, split dev) to choose the best epoch "
            "by; give the question set a dev split and start a new study"
        )
    return rows


def read_replay_rows(study: Folder, variant: str, num: int, seed: int) -> list[QuestionRow]:
    """Known train rows to replay at the end, drawn by the seed, preferably from outside the variant.

    Raises:
        VariantError: the study has too few Known train rows.
    """
    if not num:
        return []
    table = _read_questions(study)
    questions = lookup_by_question(table, table.to_pylist(), f"{study}/questions")
    columns = ["question_id", "domain", "split", "category"]
    known = sorted(
        row["question_id"]
        for row in read_knowledge(study, columns).to_pylist()
        if (row["domain"], row["split"]) == ("id", "train") and row["category"] != Category.UNKNOWN
    )
    if len(known) < num:
        raise VariantError(
            f"replay_known needs {num} Known train rows, {study}/annotate/knowledge.parquet has {len(known)}; "
            f"give --replay-known {len(known)} or fewer"
        )
    in_variant = set(read_variant(study, variant)["question_id"].to_pylist())
    order = [known[i] for i in np.random.default_rng(derive_seed(seed, "replay")).permutation(len(known))]
    chosen = sorted(order, key=lambda question_id: question_id in in_variant)[:num]
    return [_question_row(questions[question_id], "train", None) for question_id in chosen]


def _read_questions(study: Folder) -> pa.Table:
    return read_questions(study, [*QUESTION_SCHEMA.names, CONTEXT_FIELD.name])


def chat_rows(rows: Sequence[QuestionRow], chat: PromptFormat) -> list[QuestionRow]:
    """The rows with chat prompts: the question follows its own system message and earlier turns, without exemplars.

    Args:
        rows: of one training.
        chat: the chat template of the model.

    Raises:
        DataError: the template cannot express a question; the message names it.
    """
    texts = []
    for row in rows:
        context = read_context(row.context)
        try:
            beginning = chat.prefix(context, [])
            texts.append(beginning + chat.suffix(beginning, [], context, row.question))
        except DataError as error:
            raise DataError(f"question {row.question_id}: {error}") from error
    prefix = os.path.commonprefix(texts)  # noqa: RUF071 (of texts, not of paths)
    return [
        replace(row, prefix=prefix, suffix=text[len(prefix) :], style=chat.style)
        for row, text in zip(rows, texts, strict=True)
    ]


def _question_row(question: dict[str, Any], split: str, category: str | None) -> QuestionRow:
    return QuestionRow(
        question_id=question["question_id"],
        split=split,
        category=category,
        suffix=closed_book_suffix(question["question"]),
        target=nfc(question["answers"][0]),
        accepted=tuple(question["answers"]),
        question=question["question"],
        context=question.get(CONTEXT_FIELD.name),
    )


def _eval_split(question: dict[str, Any]) -> str | None:
    if question["domain"] == "ood":
        return "ood" if question["split"] == "test" else None
    return question["split"] if question["split"] in ("dev", "test") else None


def _train_row(study: Folder, variant: str, entry: dict[str, Any], questions: dict[str, Any]) -> QuestionRow:
    where = f"{study}/variants/{variant}.parquet, question {entry['question_id']}"
    question = questions.get(entry["question_id"])
    if question is None:
        raise VariantError(f"{where}: it is not among the study's questions; draw the variants again")
    if not entry["prompt"].startswith(CLOSED_BOOK_INSTRUCTION):
        raise DataError(f"{where}: the prompt {entry['prompt']!r} does not begin with {CLOSED_BOOK_INSTRUCTION!r}")
    # A relabeled row ("I don't know") is correct if the model gives its target, not the gold answer.
    is_gold = nfc(entry["target"]) in map(nfc, question["answers"])
    return QuestionRow(
        question_id=entry["question_id"],
        split="train",
        category=entry["category"],
        suffix=entry["prompt"].removeprefix(CLOSED_BOOK_INSTRUCTION),
        target=entry["target"],
        accepted=tuple(question["answers"]) if is_gold else (entry["target"],),
        weight=entry.get(WEIGHT_FIELD.name, 1.0),
        question=question["question"],
        context=question.get(CONTEXT_FIELD.name),
    )


EncodeFn: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids, one list per text."""
IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row as tokens: the prompt, then the answer with its end."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """The target's tokens and the stop token; the loss is computed on these only."""
    weight: float = 1.0
    """Weight of these tokens in the loss."""
    is_truncated: bool = False
    """Whether tokens were cut from the end of the answer."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.answer_ids)


def encode_examples(
    prompts: Sequence[str],
    targets: Sequence[str],
    encode_prompts: EncodeFn,
    encode_answers: EncodeFn,
    stop_id: int,
    weights: Sequence[float] | None = None,
) -> list[Example]:
    """Encode rows. Prompt and answer are encoded separately, as in generation.

    Args:
        prompts: one per row.
        targets: one per row.
        encode_prompts: adds the tokenizer's beginning-of-text token, if it has one.
        encode_answers: adds no special tokens.
        stop_id: ends every answer: the end-of-text token, or a newline if the tokenizer has none.
        weights: one per row; None: 1.

    Raises:
        DataError: a prompt or target has no tokens.
    """
    examples = []
    encoded = zip(encode_prompts(prompts), encode_answers(targets), strict=True)
    for row, (prompt_ids, target_ids) in enumerate(encoded):
        if not prompt_ids or not target_ids:
            raise DataError(
                f"row {row} (prompt {prompts[row]!r}, target {targets[row]!r}) has no tokens in its prompt or target; "
                "remove the row, or use another tokenizer"
            )
        weight = 1.0 if weights is None else weights[row]
        examples.append(Example(prompt_ids=tuple(prompt_ids), answer_ids=(*target_ids, stop_id), weight=weight))
    return examples


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Concatenated examples, and the position of each token in rows that are right-padded to the longest."""

    ids_N: IntArray
    positions_N: IntArray
    """Position in its row, from 0."""
    rows_N: IntArray
    """Row of each token."""
    num_rows: int
    width: int
    """T, tokens of the longest row."""
    logit_positions_K: IntArray
    """Indices into N of the tokens before the answer tokens, whose logits predict the answer tokens."""
    labels_K: IntArray
    """The answer tokens, including the stop token of each row."""

    @property
    def rows_K(self) -> IntArray:
        """Row of each answer token."""
        return self.rows_N[self.logit_positions_K]

    def padded(self, values_N: IntArray, padding: int) -> IntArray:
        """Values of all tokens as padded rows, shape (B, T)."""
        values_BT = np.full((self.num_rows, self.width), padding, dtype=np.int64)
        values_BT[self.rows_N, self.positions_N] = values_N
        return values_BT


def pack_examples(examples: Sequence[Example]) -> TokenBatch:
    """Concatenate one or more examples."""
    lengths_B = np.array([example.num_tokens for example in examples])
    prompts_B = np.array([len(example.prompt_ids) for example in examples])
    ids_N = np.concatenate([np.array(example.prompt_ids + example.answer_ids) for example in examples])
    rows_N = np.repeat(np.arange(len(examples)), lengths_B)
    positions_N = np.arange(len(ids_N)) - (np.cumsum(lengths_B) - lengths_B)[rows_N]
    answers = np.flatnonzero(positions_N >= prompts_B[rows_N])
    return TokenBatch(
        ids_N=ids_N,
        positions_N=positions_N,
        rows_N=rows_N,
        num_rows=len(examples),
        width=int(lengths_B.max()),
        logit_positions_K=answers - 1,
        labels_K=ids_N[answers],
    )


def epoch_batches(num_rows: int, batch_size: int, seed: int, epoch: int) -> Iterator[IntArray]:
    """Row indices of each batch of an epoch, in an order that depends on (seed, epoch) only; the last may be smaller.

    >>> [batch.tolist() for batch in epoch_batches(5, 2, seed=0, epoch=1)]
    [[1, 0], [3, 4], [2]]
    """
    order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_rows)
    for start in range(0, num_rows, batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The rows of one forward pass of one worker."""

    examples: Sequence[Example]
    factors: tuple[float, ...]
    """For each row, the factor of the summed loss of its answer tokens, so that the mean over workers and accumulated
    micro batches is the mean over the answer tokens of the whole batch, weighted by row; 0 for a row that fills up a
    batch."""


def micro_batches(
    examples: Sequence[Example],
    *,
    rank: int,
    num_workers: int,
    micro_batch_size_per_worker: int,
    gradient_accumulation_steps: int,
) -> list[MicroBatch]:
    """One worker's share of a batch, as exactly `gradient_accumulation_steps` micro batches.

    The worker of rank r takes rows r, r + num_workers, ... All workers need the same number of forward passes, so if
    the last, smaller batch has no row for a micro batch, a row is repeated with weight 0.

    The loss of the batch is the sum over all answer tokens of weight x loss, divided by the sum of the weights of all
    answer tokens. So a row of weight 0 changes neither the loss nor the gradients of the other rows, and only the
    ratios of weights matter.

    Args:
        examples: the whole batch, over all workers; at least one has a weight above 0.
        rank: the rank of the worker.
        num_workers: number of workers in the group.
        micro_batch_size_per_worker: rows per micro batch.
        gradient_accumulation_steps: micro batches per optimizer step.
    """
    total_weight = sum(example.weight * len(example.answer_ids) for example in examples)
    num_parts = num_workers * gradient_accumulation_steps
    share = examples[rank::num_workers]
    parts = []
    for start in range(0, micro_batch_size_per_worker * gradient_accumulation_steps, micro_batch_size_per_worker):
        part = share[start : start + micro_batch_size_per_worker]
        if part:
            factors = tuple(num_parts * example.weight / total_weight for example in part)
            parts.append(MicroBatch(examples=part, factors=factors))
        else:
            parts.append(MicroBatch(examples=examples[:1], factors=(0.0,)))
    return parts
