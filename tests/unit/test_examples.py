"""Token encoding, batches and micro batches."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from slick.errors import DataError
from tuning.data import Example, encode_examples, epoch_batches, micro_batches, pack_examples

STOP, PAD = 9, 0


def encode(texts):
    return [[int(letter) for letter in text] for text in texts]


def examples(num: int, weights: Sequence[float] = (1.0,)) -> list[Example]:
    """Random rows, which have the weights in turn."""
    rng = np.random.default_rng(0)
    return [
        Example(
            prompt_ids=tuple(rng.integers(1, 9, rng.integers(1, 6)).tolist()),
            answer_ids=(*rng.integers(1, 9, rng.integers(1, 5)).tolist(), STOP),
            weight=weights[i % len(weights)],
        )
        for i in range(num)
    ]


def test_labels_are_the_answer_and_its_stop_token() -> None:
    batch = pack_examples(encode_examples(["123", "4"], ["56", "7"], encode, encode, STOP))
    assert batch.ids_N.tolist() == [1, 2, 3, 5, 6, STOP, 4, 7, STOP]
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert batch.labels_K.tolist() == [5, 6, STOP, 7, STOP]
    assert batch.ids_N[batch.logit_positions_K].tolist() == [3, 5, 6, 4, 7]
    assert batch.rows_K.tolist() == [0, 0, 0, 1, 1]


def test_rows_are_padded_on_the_right() -> None:
    batch = pack_examples(encode_examples(["123", "4"], ["56", "7"], encode, encode, STOP))
    assert batch.padded(batch.ids_N, PAD).tolist() == [[1, 2, 3, 5, 6, STOP], [4, 7, STOP, PAD, PAD, PAD]]
    assert batch.padded(batch.ids_N * 0 + 1, 0).tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("prompt", "target"), [("", "5"), ("1", "")])
def test_text_without_tokens_is_refused(prompt: str, target: str) -> None:
    with pytest.raises(DataError, match=r"row 1 .* no tokens in its prompt or target"):
        encode_examples(["1", prompt], ["2", target], encode, encode, STOP)


def test_each_epoch_has_every_row_once_in_its_own_order() -> None:
    epochs = [[batch.tolist() for batch in epoch_batches(10, 4, seed=3, epoch=epoch)] for epoch in (1, 2, 1)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    assert sorted(row for batch in epochs[0] for row in batch) == list(range(10))
    assert epochs[0] == epochs[2] != epochs[1]
    assert epochs[0] != [batch.tolist() for batch in epoch_batches(10, 4, seed=4, epoch=1)]


@pytest.mark.parametrize("num_rows", [8, 5, 1])
@pytest.mark.parametrize(("num_workers", "gradient_accumulation_steps"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
@pytest.mark.parametrize("weights", [(1.0,), (0.25, 1.0, 7.0), (1.0, 0.0), (1e-300, 3e-300), (1e6, 1.0)])
def test_micro_batches_give_the_weighted_mean_loss_of_the_batch(
    num_rows: int, num_workers: int, gradient_accumulation_steps: int, weights: tuple[float, ...]
) -> None:
    """For any losses, the mean over workers and micro batches is the weighted token mean of the whole batch."""
    rows = examples(num_rows, weights)
    token_loss = np.random.default_rng(1).random(10)
    expected = np.average(
        [token_loss[token] for row in rows for token in row.answer_ids],
        weights=[row.weight for row in rows for _ in row.answer_ids],
    )
    total, num_tokens = 0.0, 0
    for rank in range(num_workers):
        parts = micro_batches(
            rows,
            rank=rank,
            num_workers=num_workers,
            micro_batch_size_per_worker=8 // num_workers // gradient_accumulation_steps,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        assert len(parts) == gradient_accumulation_steps
        for part in parts:
            batch = pack_examples(part.examples)
            num_tokens += len(batch.labels_K) if any(part.factors) else 0
            total += (token_loss[batch.labels_K] * np.array(part.factors)[batch.rows_K]).sum()
    assert num_tokens >= sum(len(row.answer_ids) for row in rows if row.weight)
    assert total / num_workers / gradient_accumulation_steps == pytest.approx(expected)


def test_equal_weights_give_the_plain_mean() -> None:
    """The factor is exactly that of a batch without weights: workers x steps / answer tokens."""
    rows = examples(8)
    num_tokens = sum(len(row.answer_ids) for row in rows)
    for weight in (1.0, 2.0):  # a power of two scales numerator and denominator exactly
        for rank in (0, 1):
            parts = micro_batches(
                [replace(row, weight=weight) for row in rows],
                rank=rank,
                num_workers=2,
                micro_batch_size_per_worker=2,
                gradient_accumulation_steps=2,
            )
            assert {factor for part in parts for factor in part.factors} == {4 / num_tokens}


def test_examples_have_the_weights_of_their_rows() -> None:
    encoded = encode_examples(["123", "4"], ["56", "7"], encode, encode, STOP, [0.25, 2.0])
    assert [example.weight for example in encoded] == [0.25, 2.0]
    assert [example.weight for example in encode_examples(["1"], ["5"], encode, encode, STOP)] == [1.0]
