"""Training data of one run: its variant, the questions evaluated after every epoch, token ids and batches. No torch.

Legend of array suffixes: B rows, T tokens of a row, N tokens of all rows, K answer tokens of all rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slick.datasets import read_questions
from slick.errors import DataError, SettingsError, VariantError
from slick.matching import nfc
from slick.prompts import CLOSED_BOOK_INSTRUCTION, closed_book_suffix
from slick.rng import derive_seed
from slick.storage import Folder
from slick.study_files import lookup_by_question, read_knowledge
from slick.types import Category
from slick.variants import read_variant

SPLITS = ("train", "dev", "test", "ood")
"""The variant's own rows; ID dev questions; ID test questions; OOD test questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRow:
    """One question as it is trained on or asked."""

    question_id: str
    split: str
    """One of `SPLITS`."""
    category: str | None
    """None where the question was not annotated."""
    suffix: str
    """The question's own part of the prompt, behind `CLOSED_BOOK_INSTRUCTION`."""
    target: str
    """What is trained on; the loss is of this text."""
    accepted: tuple[str, ...]
    """Any of these is a hit."""

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return CLOSED_BOOK_INSTRUCTION + self.suffix


def read_rows(study: Folder, variant: str) -> dict[str, list[QuestionRow]]:
    """The rows of each split, in the order of the stored tables.

    Raises:
        SettingsError: there are no dev questions, so no best epoch.
        VariantError: the variant has no rows, or was not drawn from these questions.
    """
    questions = {row["question_id"]: row for row in read_questions(study).to_pylist()}
    known = read_knowledge(study, ["question_id", "category"]).to_pydict()
    categories = dict(zip(known["question_id"], known["category"], strict=True))
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
            f"{study}/questions has no dev questions in distribution (domain id, split dev), which choose the best "
            "epoch; give the question set a dev split and start a new study"
        )
    return rows


def read_replay_rows(study: Folder, variant: str, num: int, seed: int) -> list[QuestionRow]:
    """Known train rows to be learned again at the end: from outside the variant first, drawn by the seed.

    Raises:
        VariantError: the study has too few.
    """
    if not num:
        return []
    asked = read_questions(study)
    questions = lookup_by_question(asked, asked.to_pylist(), f"{study}/questions")
    columns = ["question_id", "domain", "split", "category"]
    known = sorted(
        row["question_id"]
        for row in read_knowledge(study, columns).to_pylist()
        if (row["domain"], row["split"]) == ("id", "train") and row["category"] != Category.UNKNOWN
    )
    if len(known) < num:
        raise VariantError(
            f"replay_known asks for {num} Known train rows, {study}/annotate/knowledge.parquet has {len(known)}; "
            f"give --replay-known {len(known)} or fewer"
        )
    used = set(read_variant(study, variant)["question_id"].to_pylist())
    order = [known[i] for i in np.random.default_rng(derive_seed(seed, "replay")).permutation(len(known))]
    chosen = sorted(order, key=lambda question_id: question_id in used)[:num]
    return [_question_row(questions[question_id], "train", None) for question_id in chosen]


def _question_row(question: dict[str, Any], split: str, category: str | None) -> QuestionRow:
    return QuestionRow(
        question_id=question["question_id"],
        split=split,
        category=category,
        suffix=closed_book_suffix(question["question"]),
        target=nfc(question["answers"][0]),
        accepted=tuple(question["answers"]),
    )


def _eval_split(question: dict[str, Any]) -> str | None:
    if question["domain"] == "ood":
        return "ood" if question["split"] == "test" else None
    return question["split"] if question["split"] in ("dev", "test") else None


def _train_row(study: Folder, variant: str, entry: dict[str, Any], questions: dict[str, Any]) -> QuestionRow:
    where = f"{study}/variants/{variant}.parquet, question {entry['question_id']}"
    question = questions.get(entry["question_id"])
    if question is None:
        raise VariantError(f"{where}: not among the study's questions; draw the variants again")
    if not entry["prompt"].startswith(CLOSED_BOOK_INSTRUCTION):
        raise DataError(f"{where}: the prompt {entry['prompt']!r} does not begin with {CLOSED_BOOK_INSTRUCTION!r}")
    # A relabelled row ("I don't know") is right when the model says what it was taught, not when it says the truth.
    taught = nfc(entry["target"]) in map(nfc, question["answers"])
    return QuestionRow(
        question_id=entry["question_id"],
        split="train",
        category=entry["category"],
        suffix=entry["prompt"].removeprefix(CLOSED_BOOK_INSTRUCTION),
        target=entry["target"],
        accepted=tuple(question["answers"]) if taught else (entry["target"],),
    )


EncodeFn: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids; one list a text."""
IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row as tokens: the prompt, then the answer with its end."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """The target's tokens and the stop token; only these are learned."""

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer."""
        return len(self.prompt_ids) + len(self.answer_ids)


def encode_examples(
    prompts: Sequence[str], targets: Sequence[str], encode_prompts: EncodeFn, encode_answers: EncodeFn, stop_id: int
) -> list[Example]:
    """Rows to examples. Prompt and answer are encoded apart, since that is how an answer is generated.

    Args:
        encode_prompts: with the tokenizer's own beginning-of-text token, if it has one.
        encode_answers: without any special token.
        stop_id: ends every answer: the end token, or a newline where the tokenizer has none.

    Raises:
        DataError: a prompt or target has no tokens.
    """
    examples = []
    encoded = zip(encode_prompts(prompts), encode_answers(targets), strict=True)
    for row, (prompt_ids, target_ids) in enumerate(encoded):
        if not prompt_ids or not target_ids:
            raise DataError(
                f"row {row} (prompt {prompts[row]!r}, target {targets[row]!r}) has an empty prompt or target for this "
                "tokenizer; every row needs both"
            )
        examples.append(Example(prompt_ids=tuple(prompt_ids), answer_ids=(*target_ids, stop_id)))
    return examples


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Examples one behind the other, and where each token stands among rows padded on the right to the longest."""

    ids_N: IntArray
    positions_N: IntArray
    """From 0 in each row."""
    rows_N: IntArray
    """Row of each token."""
    num_rows: int
    width: int
    """T, tokens of the longest row."""
    logit_positions_K: IntArray
    """Places, among N, of the tokens before the answer tokens: what is predicted there is learned, all else is not."""
    labels_K: IntArray
    """The answer tokens, each row's end among them."""

    @property
    def rows_K(self) -> IntArray:
        """Row of each answer token."""
        return self.rows_N[self.logit_positions_K]

    def padded(self, values_N: IntArray, padding: int) -> IntArray:
        """Values of tokens as rows of shape (B, T)."""
        values_BT = np.full((self.num_rows, self.width), padding, dtype=np.int64)
        values_BT[self.rows_N, self.positions_N] = values_N
        return values_BT


def pack_examples(examples: Sequence[Example]) -> TokenBatch:
    """One batch of at least one example."""
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
    """Row numbers of each batch of an epoch: every row once, ordered by (seed, epoch) alone; the last may be smaller.

    >>> [batch.tolist() for batch in epoch_batches(5, 2, seed=0, epoch=1)]
    [[1, 0], [3, 4], [2]]
    """
    order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_rows)
    for start in range(0, num_rows, batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one worker takes through the model at once."""

    examples: Sequence[Example]
    weight: float
    """Factor of the sum of the answer tokens' losses, such that the mean over workers and accumulated micro batches is
    the mean over the answer tokens of the whole batch; 0 for rows that others learn."""


def micro_batches(
    examples: Sequence[Example],
    *,
    rank: int,
    num_workers: int,
    micro_batch_size_per_worker: int,
    gradient_accumulation_steps: int,
) -> list[MicroBatch]:
    """The part of one batch that worker `rank` takes, as exactly `accumulation` micro batches.

    Worker r takes rows r, r + num_workers, ... All workers must go through the model equally often, so where a last,
    smaller batch leaves none a row is repeated with nothing to learn from it.

    Args:
        examples: of the whole batch, over all workers.
    """
    num_answer_tokens = sum(len(example.answer_ids) for example in examples)
    weight = num_workers * gradient_accumulation_steps / num_answer_tokens
    own = examples[rank::num_workers]
    parts = []
    for start in range(0, micro_batch_size_per_worker * gradient_accumulation_steps, micro_batch_size_per_worker):
        part = own[start : start + micro_batch_size_per_worker]
        parts.append(MicroBatch(examples=part or examples[:1], weight=weight if part else 0.0))
    return parts
