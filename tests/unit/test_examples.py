"""Token encoding, batches and micro batches."""

import numpy as np
import pytest

from slick.errors import DataError
from tuning.data import Example, encode_examples, epoch_batches, micro_batches, pack_examples

STOP, PAD = 9, 0


def encode(texts):
    return [[int(letter) for letter in text] for text in texts]


def examples(num: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(
            prompt_ids=tuple(rng.integers(1, 9, rng.integers(1, 6)).tolist()),
            answer_ids=(*rng.integers(1, 9, rng.integers(1, 5)).tolist(), STOP),
        )
        for _ in range(num)
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
def test_micro_batches_give_the_mean_loss_of_the_batch(
    num_rows: int, num_workers: int, gradient_accumulation_steps: int
) -> None:
    """For any losses, the mean over workers and micro batches is the token mean of the whole batch."""
    rows = examples(num_rows)
    token_loss = np.random.default_rng(1).random(10)
    expected = np.mean([token_loss[token] for row in rows for token in row.answer_ids])
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
            labels = pack_examples(part.examples).labels_K
            num_tokens += len(labels) if part.weight else 0
            total += token_loss[labels].sum() * part.weight
    assert num_tokens == sum(len(row.answer_ids) for row in rows)
    assert total / num_workers / gradient_accumulation_steps == pytest.approx(expected)
