"""Rows that a training leaves out, since prompt and answer are longer than the model's context."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from slick.annotation.set_aside import SPECIAL_TOKENS, TOO_LONG
from slick.errors import DataError
from slick.storage import Folder
from slick.study_files import RUN_SET_ASIDE_SCHEMA, read_run_set_aside
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, read_rows
from tuning.evaluate import encode_rows
from tuning.runs import RunPlan

SET_ASIDE_FILE: Final = "set_aside.parquet"
"""In a run's folder; only where there are such rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredRows:
    """The rows that fit the model's context, as text and as tokens, and those that do not."""

    rows: list[QuestionRow]
    examples: list[Example]
    set_aside: pa.Table
    """As `RUN_SET_ASIDE_SCHEMA`."""

    @property
    def train_examples(self) -> list[Example]:
        """Those that are learned."""
        return [example for row, example in zip(self.rows, self.examples, strict=True) if row.split == "train"]


def filter_long_rows(rows: Sequence[QuestionRow], tokenizer: Any, context: int, config: TrainConfig) -> FilteredRows:
    """Set the rows aside that are too long to be trained on or answered.

    Args:
        rows: of all splits.
        tokenizer: of the model.
        context: tokens that a sequence of the model may have.
        config: how long an answer may be, and the share of rows that may be set aside.

    Raises:
        DataError: more than that share are too long, or all train or all dev rows.
    """
    examples = encode_rows(rows, tokenizer)
    needed = [_num_tokens(example, config.max_new_tokens) for example in examples]
    fits = [num <= context for num in needed]
    long: list[dict[str, Any]] = [
        {"question_id": row.question_id, "split": row.split, "reason": TOO_LONG, "num_tokens": num, "limit": context}
        for row, num, fit in zip(rows, needed, fits, strict=True)
        if not fit
    ]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    emptied = {row["split"] for row in long} & {"train", "dev"} - {row.split for row in kept}
    if emptied or len(long) > config.max_set_aside_share * len(rows):
        raise DataError(_too_many_message(long, len(rows), config, sorted(emptied)))
    return FilteredRows(
        rows=kept,
        examples=[example for example, fit in zip(examples, fits, strict=True) if fit],
        set_aside=pa.Table.from_pylist(long, RUN_SET_ASIDE_SCHEMA),
    )


def check_row_lengths(study: Folder, plans: Sequence[RunPlan]) -> None:
    """See, before any worker is started, that no training has to set too many rows aside.

    Raises:
        DataError: as `filter_long_rows`.
    """
    from slick.models import context_length, load_tokenizer

    chosen = {(plan.config.variant, plan.model, plan.config.max_new_tokens): plan for plan in plans}
    for plan in chosen.values():
        config = plan.config
        rows = [row for split in read_rows(study, config.variant).values() for row in split]
        context = context_length(plan.model, trust_remote_code=config.trust_remote_code)
        if max(_max_tokens(row, config.max_new_tokens) for row in rows) > context:  # else no tokenizer is needed
            tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
            filter_long_rows(rows, tokenizer, context, config)


def _max_tokens(row: QuestionRow, max_new_tokens: int) -> int:
    """An upper bound of the tokens of prompt and answer, from their bytes."""
    return len(row.prompt.encode()) + max(len(row.target.encode()), max_new_tokens) + SPECIAL_TOKENS


def _num_tokens(example: Example, max_new_tokens: int) -> int:
    return len(example.prompt_ids) + max(len(example.answer_ids), max_new_tokens)


def _too_many_message(
    long: Sequence[Mapping[str, Any]], num_rows: int, config: TrainConfig, emptied: Sequence[str]
) -> str:
    longest = max(long, key=lambda row: int(row["num_tokens"]))
    allowed = f"no {emptied[0]} row is left" if emptied else f"at most {100 * config.max_set_aside_share:g} % may be"
    return (
        f"{len(long):,} of {num_rows:,} rows of variant {config.variant} do not fit the model's context of "
        f"{longest['limit']:,} tokens, the longest is question {longest['question_id']} ({longest['split']}) with "
        f"{longest['num_tokens']:,} of prompt and answer; {allowed}. Shorten or remove those questions, lower "
        "--max-new-tokens, use a model with a longer context, or allow more by --max-set-aside-share"
    )


def count_set_aside(folder: Folder) -> dict[str, dict[str, int]]:
    """Reason to split to number of rows that a run set aside; empty where there are none.

    Args:
        folder: of the run.
    """
    counts: dict[str, dict[str, int]] = {}
    if folder.exists(SET_ASIDE_FILE):
        rows = read_run_set_aside(folder, SET_ASIDE_FILE).to_pylist()
        for (reason, split), num in sorted(Counter((row["reason"], row["split"]) for row in rows).items()):
            counts.setdefault(reason, {})[split] = num
    return counts
