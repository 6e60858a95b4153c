"""Variant rows to token ids and answer-only labels, and the batches of an epoch. numpy only.

Legend of array suffixes: B rows, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from slick.draws import numpy_seed
from slick.errors import DataError

IGNORED = -100
"""Label of a token that does not count: prompt and padding."""

Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids; one list a text."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side, padded on the right to the longest."""

    input_ids_BT: NDArray[np.int64]
    mask_BT: NDArray[np.int64]
    """1 where there is a token, 0 on padding."""
    labels_BT: NDArray[np.int64]
    """The token itself where it is learned, -100 elsewhere; not shifted."""


def encode_examples(
    prompts: Sequence[str], targets: Sequence[str], encode_prompts: Encode, encode_answers: Encode, stop_id: int
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


def pad_examples(examples: Sequence[Example], pad_id: int) -> Batch:
    """One batch; the labels are the answers' tokens."""
    width = max(example.num_tokens for example in examples)
    input_ids_BT = np.full((len(examples), width), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(examples), width), dtype=np.int64)
    labels_BT = np.full((len(examples), width), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids_BT[row, : example.num_tokens] = example.prompt_ids + example.answer_ids
        mask_BT[row, : example.num_tokens] = 1
        labels_BT[row, len(example.prompt_ids) : example.num_tokens] = example.answer_ids
    return Batch(input_ids_BT=input_ids_BT, mask_BT=mask_BT, labels_BT=labels_BT)


def epoch_batches(num_rows: int, batch_size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch of an epoch: every row once, ordered by (seed, epoch) alone; the last may be smaller.

    >>> [batch.tolist() for batch in epoch_batches(5, 2, seed=0, epoch=1)]
    [[1, 0], [3, 4], [2]]
    """
    order = np.random.default_rng(numpy_seed(seed, "epoch", epoch)).permutation(num_rows)
    for start in range(0, num_rows, batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one worker takes through the model at once."""

    batch: Batch
    weight: float
    """Factor of the sum of the answer tokens' losses, such that the mean over workers and accumulated micro batches is
    the mean over the answer tokens of the whole batch."""


def micro_batches(
    examples: Sequence[Example], *, rank: int, num_workers: int, micro_rows: int, accumulation: int, pad_id: int
) -> list[MicroBatch]:
    """The part of one batch that worker `rank` takes, as exactly `accumulation` micro batches.

    Worker r takes rows r, r + num_workers, ... All workers must go through the model equally often, so where a last,
    smaller batch leaves none a row is repeated with nothing to learn from it.

    Args:
        examples: of the whole batch, over all workers.
    """
    num_answer_tokens = sum(len(example.answer_ids) for example in examples)
    weight = num_workers * accumulation / num_answer_tokens
    own = examples[rank::num_workers]
    parts = []
    for start in range(0, micro_rows * accumulation, micro_rows):
        part = own[start : start + micro_rows]
        batch = pad_examples(part or examples[:1], pad_id)
        if not part:
            batch.labels_BT[:] = IGNORED
        parts.append(MicroBatch(batch=batch, weight=weight))
    return parts
