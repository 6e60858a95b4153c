"""The column `weight` of variant files: its checks, and the rows that are trained on."""

import math
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from slick.errors import DataError, StudyError
from slick.storage import Folder
from slick.study import fingerprint
from slick.variants import read_variant
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.data import read_rows
from tuning.evaluate import encode_rows, filter_long_rows
from tuning.runs import plan_runs


@pytest.fixture(scope="module")
def trainable(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_trainable_study(tmp_path_factory.mktemp("study"), tiny_model("llama"), tiny_tokenizer())


def set_weights(study: Folder, weights: list[Any] | None, kind: pa.DataType | None = None) -> None:
    """Write the weights in turn into the variant `half`; None removes the column."""
    folder = study.child("variants")
    table = folder.read_table("half.parquet")
    if "weight" in table.column_names:
        table = table.drop_columns("weight")
    if weights is not None:
        column = pa.array([weights[i % len(weights)] for i in range(table.num_rows)], kind)
        table = table.append_column("weight", column)
    folder.write_table("half.parquet", table)


@pytest.mark.parametrize(
    ("weights", "kind", "message"),
    [
        ([1.0, -0.5], None, r"half.parquet: column weight holds -0.5, expected 0 to 1e\+06; restore it"),
        ([1.0, math.nan], None, r"column weight holds nan, expected 0 to 1e\+06"),
        ([1.0, math.inf], None, r"column weight holds inf, expected 0 to 1e\+06"),
        ([1.0, None], None, "column weight has no value in 6 of 12 rows, expected a value in every row"),
        (["1", "0.5"], None, "column weight is of type string, expected double"),
        ([0.0], None, "column weight is 0 in all of 12 rows, expected a weight above 0 in at least one"),
        ([0], pa.int64(), "column weight is 0 in all of 12 rows"),
    ],
)
def test_invalid_weights_are_refused_before_training(
    trainable: Folder, weights: list[Any], kind: pa.DataType | None, message: str
) -> None:
    set_weights(trainable, weights, kind)
    with pytest.raises(StudyError, match=message):
        plan_runs(trainable, {"half-seed0": TrainConfig(variant="half", dtype="float32")})


def test_weights_of_rows_and_their_default(trainable: Folder) -> None:
    set_weights(trainable, [2, 1], pa.int32())
    rows = read_rows(trainable, "half")
    assert [row.weight for row in rows["train"][:4]] == [2.0, 1.0, 2.0, 1.0]
    assert {row.weight for split in ("dev", "test", "ood") for row in rows[split]} == {1.0}
    assert read_variant(trainable, "half")["weight"].type == pa.float64()
    set_weights(trainable, None)
    assert {row.weight for row in read_rows(trainable, "half")["train"]} == {1.0}


def test_weights_are_part_of_the_identity_of_a_run(trainable: Folder) -> None:
    """Without the column it is that of studies written before there were weights."""

    def identity() -> str:
        (plan,) = plan_runs(trainable, {"half-seed0": TrainConfig(variant="half", dtype="float32")})
        assert plan.inputs["variant"] == fingerprint(trainable.child("variants").read_table("half.parquet").to_pydict())
        return plan.identity

    identities = []
    for weights in (None, [1.0], [0.5]):
        set_weights(trainable, weights)
        identities.append(identity())
    assert len(set(identities)) == 3


def test_rows_of_weight_0_are_not_trained_on(trainable: Folder) -> None:
    set_weights(trainable, [0.0, 0.5, 1.0])
    rows = [row for split in read_rows(trainable, "half").values() for row in split]
    filtered = filter_long_rows(rows, tiny_tokenizer(), 512, TrainConfig())
    assert [example.weight for example in filtered.train_examples] == [0.5, 1.0] * 4
    assert len(filtered.examples) == len(rows), "all are evaluated"
    (plan,) = plan_runs(trainable, {"half-seed0": TrainConfig(variant="half", dtype="float32")})
    assert plan.num_train_rows == 8


def test_training_set_without_usable_rows_is_refused(trainable: Folder) -> None:
    set_weights(trainable, None)
    rows = [row for split in read_rows(trainable, "half").values() for row in split]
    lengths = [example.num_tokens for example in encode_rows(rows, tiny_tokenizer())]
    longest = max((i for i, row in enumerate(rows) if row.split == "train"), key=lambda i: lengths[i])
    rows = [replace(row, weight=float(i == longest or row.split != "train")) for i, row in enumerate(rows)]
    config = TrainConfig(variant="half", max_new_tokens=1, max_set_aside_share=1.0)
    assert len(filter_long_rows(rows, tiny_tokenizer(), lengths[longest], config).train_examples) == 1
    with pytest.raises(DataError, match="no train row is left"):
        filter_long_rows(rows, tiny_tokenizer(), lengths[longest] - 1, config)


def test_equal_factors_have_exactly_the_gradients_of_the_plain_sum() -> None:
    """So a training without weights, or with weights of 1, is bit for bit that of versions without weights."""
    import torch
    from torch.nn import functional

    from tuning.trainer import kl_divergence, weighted_sum

    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(40, 50, generator=generator) for _ in range(2))
    labels, rows = torch.randint(50, (40,), generator=generator), torch.arange(40) // 5

    def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        (loss / 3).backward()
        assert student.grad is not None
        return student.grad

    for factor in (8 / 37, 1 / 3, 2.0):
        first, second = (logits.clone().requires_grad_() for _ in range(2))
        losses = functional.cross_entropy(first, labels, reduction="none")
        losses = losses + 0.7 * kl_divergence(teacher, first, temperature=0.5)
        plain = functional.cross_entropy(second, labels, reduction="sum")
        divergence = functional.kl_div(
            (second / 0.5).log_softmax(dim=1), (teacher / 0.5).log_softmax(dim=1), reduction="sum", log_target=True
        )
        weighted = gradient(weighted_sum(losses, rows, [factor] * 8), first)
        assert torch.equal(weighted, gradient(factor * (plain + 0.7 * divergence), second))
