"""Rows that a training leaves out because prompt and answer exceed the model's context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from slick.annotation.set_aside import SPECIAL_TOKENS, TOO_LONG
from slick.errors import DataError
from slick.storage import Folder
from slick.study_files import RUN_SET_ASIDE_SCHEMA
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, read_rows
from tuning.evaluate import encode_rows
from tuning.runs import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredRows:
    """The rows that fit the model's context, as text and as tokens, and the rows that do not."""

    rows: list[QuestionRow]
    examples: list[Example]
    set_aside: pa.Table
    """The rows that do not fit, in `RUN_SET_ASIDE_SCHEMA`."""

    @property
    def train_examples(self) -> list[Example]:
        """The examples to train on."""
        return [example for row, example in zip(self.rows, self.examples, strict=True) if row.split == "train"]


def filter_long_rows(rows: Sequence[QuestionRow], tokenizer: Any, max_tokens: int, config: TrainConfig) -> FilteredRows:
    """Set aside the rows that are too long to be trained on or answered.

    Args:
        rows: rows of all splits.
        tokenizer: of the model.
        max_tokens: the model's context length.
        config: the maximum length of an answer, and the share of rows that may be set aside.

    Raises:
        DataError: more than that share of the rows are too long, or all train or all dev rows.
    """
    examples = encode_rows(rows, tokenizer)
    lengths = [_num_tokens(example, config.max_new_tokens) for example in examples]
    fits = [length <= max_tokens for length in lengths]
    too_long: list[dict[str, Any]] = [
        {
            "question_id": row.question_id,
            "split": row.split,
            "reason": TOO_LONG,
            "num_tokens": length,
            "limit": max_tokens,
        }
        for row, length, fit in zip(rows, lengths, fits, strict=True)
        if not fit
    ]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    empty_splits = {row["split"] for row in too_long} & {"train", "dev"} - {row.split for row in kept}
    if empty_splits or len(too_long) > config.max_set_aside_share * len(rows):
        raise DataError(_too_many_message(too_long, len(rows), config, sorted(empty_splits)))
    return FilteredRows(
        rows=kept,
        examples=[example for example, fit in zip(examples, fits, strict=True) if fit],
        set_aside=pa.Table.from_pylist(too_long, RUN_SET_ASIDE_SCHEMA),
    )


def check_row_lengths(study: Folder, plans: Sequence[RunPlan]) -> None:
    """Check, before any worker starts, that no training has to set aside too many rows.

    Raises:
        DataError: see `filter_long_rows`.
    """
    from slick.models import context_length, load_tokenizer

    chosen = {(plan.config.variant, plan.model, plan.config.max_new_tokens): plan for plan in plans}
    for plan in chosen.values():
        config = plan.config
        rows = [row for split in read_rows(study, config.variant).values() for row in split]
        max_tokens = context_length(plan.model, trust_remote_code=config.trust_remote_code)
        if max(_max_length(row, config.max_new_tokens) for row in rows) > max_tokens:  # else no tokenizer is needed
            tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
            filter_long_rows(rows, tokenizer, max_tokens, config)


def _max_length(row: QuestionRow, max_new_tokens: int) -> int:
    """An upper bound on the tokens of prompt and answer, from their bytes."""
    return len(row.prompt.encode()) + max(len(row.target.encode()), max_new_tokens) + SPECIAL_TOKENS


def _num_tokens(example: Example, max_new_tokens: int) -> int:
    return len(example.prompt_ids) + max(len(example.answer_ids), max_new_tokens)


def _too_many_message(
    too_long: Sequence[Mapping[str, Any]], num_rows: int, config: TrainConfig, empty_splits: Sequence[str]
) -> str:
    longest = max(too_long, key=lambda row: int(row["num_tokens"]))
    allowed = (
        f"no {empty_splits[0]} row is left"
        if empty_splits
        else f"at most {100 * config.max_set_aside_share:g} % may be left out"
    )
    return (
        f"{len(too_long):,} of {num_rows:,} rows of variant {config.variant} do not fit the model's context of "
        f"{longest['limit']:,} tokens, the longest is question {longest['question_id']} ({longest['split']}) with "
        f"{longest['num_tokens']:,} of prompt and answer; {allowed}. Shorten or remove those questions, lower "
        "--max-new-tokens, use a model with a longer context, or allow more by --max-set-aside-share"
    )
