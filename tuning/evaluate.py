"""Rows as tokens, the rows that fit the model's context, its greedy answers to them, and the loss of the targets.

Training rows first take one forward pass over prompt and target. It gives their loss, and decides every row whose
target is the greedy answer, that is, whose tokens and end token all have the highest probability; after a few epochs
these are most rows. The engine generates all other answers. Both methods give the same text, up to rounding at ties.
Dev, test and ood rows take the forward pass only if their loss is requested: on a model of 1 M parameters it takes as
long as generating.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from slick.annotation.set_aside import SPECIAL_TOKENS, TOO_LONG
from slick.errors import DataError, SettingsError
from slick.inference.base import PromptBatch, PromptStyle, SamplingConfig
from slick.matching import is_hit
from slick.prompt_formats import PromptFormat, make_prompt_format, parse_template_arguments
from slick.storage import Folder
from slick.study_files import RUN_SET_ASIDE_SCHEMA
from tuning.config import TrainConfig
from tuning.data import Example, QuestionRow, chat_rows, encode_examples, read_rows
from tuning.records import Prediction
from tuning.runs import RunPlan

if TYPE_CHECKING:
    from torch import nn

    from tuning.forward import ForwardRunner


DEFAULT_BATCH_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How answers are generated and matched."""

    matcher: str
    max_new_tokens: int
    batch_size: int | None = None
    """Rows per batch; None: `DEFAULT_BATCH_SIZE`, and for generation on a GPU as many as fit into its memory."""
    loss_of_all: bool = False
    """Compute the loss of dev, test and ood targets too."""


def encode_rows(rows: Sequence[QuestionRow], tokenizer: Any) -> list[Example]:
    """Rows as prompt and target tokens, with a stop token: the end of a turn in chats, else see `stop_token_id`."""
    from slick.models import num_trailing_special_tokens

    style = rows[0].style if rows else PromptStyle()
    num_trailing = num_trailing_special_tokens(tokenizer) if style.add_special_tokens else 0

    def encode_prompts(texts: Sequence[str]) -> list[list[int]]:
        sequences = tokenizer(list(texts), add_special_tokens=style.add_special_tokens, return_attention_mask=False)[
            "input_ids"
        ]
        return [tokens[: len(tokens) - num_trailing] for tokens in sequences]

    def encode_answers(texts: Sequence[str]) -> list[list[int]]:
        return list(tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"])

    return encode_examples(
        [row.prompt for row in rows],
        [row.target for row in rows],
        encode_prompts,
        encode_answers,
        encode_answers(style.end_texts[:1])[0][0] if style.end_texts else stop_token_id(tokenizer),
        [row.weight for row in rows],
    )


def stop_token_id(tokenizer: Any) -> int:
    """The token that ends a target: the tokenizer's end-of-text token, or else a newline.

    Raises:
        SettingsError: the tokenizer has neither.
    """
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if not newline:
        raise SettingsError(
            "the tokenizer has neither an end-of-text token nor a newline, one of which must end answers; use another "
            "tokenizer"
        )
    return int(newline[-1])


def evaluate_rows(
    model: "nn.Module",
    forward: "ForwardRunner",
    tokenizer: Any,
    rows: Sequence[QuestionRow],
    examples: Sequence[Example],
    settings: EvalSettings,
) -> list[Prediction]:
    """A prediction for each row, in the given order.

    Args:
        model: in eval mode, on its device.
        forward: runs rows through the same model.
        tokenizer: the tokenizer of the model.
        rows: the rows to evaluate.
        examples: `encode_rows` of the same rows.
        settings: see `EvalSettings`.

    Raises:
        EngineError: an answer could not be generated.
    """
    texts: list[str | None] = [None] * len(rows)
    losses: list[float | None] = [None] * len(rows)
    scored = [i for i, row in enumerate(rows) if row.split == "train" or settings.loss_of_all]
    greedy_flags, target_losses = _score_targets(forward, [examples[i] for i in scored], settings)
    for i, is_greedy, loss in zip(scored, greedy_flags, target_losses, strict=True):
        losses[i] = loss
        texts[i] = rows[i].target.strip() if is_greedy and not examples[i].is_truncated else None
    undecided = [i for i, text in enumerate(texts) if text is None]
    answers = _generate(model, tokenizer, [rows[i] for i in undecided], settings)
    for i, answer in zip(undecided, answers, strict=True):
        texts[i] = answer
    return [
        _prediction(row, example, text, loss, settings.matcher)
        for row, example, text, loss in zip(rows, examples, texts, losses, strict=True)
    ]


def _prediction(row: QuestionRow, example: Example, text: str | None, loss: float | None, matcher: str) -> Prediction:
    assert text is not None  # decided by the forward pass or generated
    return Prediction(text=text, hit=is_hit(text, row.accepted, matcher), loss=loss, num_tokens=len(example.answer_ids))


def _generate(model: "nn.Module", tokenizer: Any, rows: Sequence[QuestionRow], settings: EvalSettings) -> list[str]:
    from slick.inference.packed.engine import TransformersEngine

    if not rows:
        return []
    on_gpu = next(model.parameters()).device.type != "cpu"
    batch_size = settings.batch_size or (None if on_gpu else DEFAULT_BATCH_SIZE)
    engine = TransformersEngine(model, tokenizer, batch_questions=batch_size)
    answers = engine.generate(
        PromptBatch(
            prefixes=[rows[0].prefix],
            question_ids=[row.question_id for row in rows],
            suffixes=[row.suffix for row in rows],
            style=rows[0].style,
        ),
        SamplingConfig(num_samples=0, max_new_tokens=settings.max_new_tokens),
    )
    return [answer.greedy_text for (answer,) in answers]


def _score_targets(
    forward: "ForwardRunner", examples: Sequence[Example], settings: EvalSettings
) -> tuple[list[bool], list[float]]:
    """For each row, whether its target is exactly the greedy answer, and the target's summed loss in nats."""
    import torch
    from torch.nn import functional

    is_greedy, losses = [False] * len(examples), [0.0] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: examples[i].num_tokens)  # similar lengths need little padding
    with torch.inference_mode():
        batch_size = settings.batch_size or DEFAULT_BATCH_SIZE
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            with forward.rows([examples[i] for i in part]) as rows:
                logits_KV = forward.answer_logits(rows).float()
            loss_K = functional.cross_entropy(logits_KV, rows.labels_K, reduction="none").double()
            wrong_K = (logits_KV.argmax(dim=1) != rows.labels_K).double()
            zeros_B = torch.zeros(len(part), dtype=torch.float64, device=loss_K.device)
            right_B = zeros_B.index_add(0, rows.rows_K, wrong_K) == 0
            loss_B = zeros_B.index_add(0, rows.rows_K, loss_K)
            for i, right, loss in zip(part, right_B.tolist(), loss_B.tolist(), strict=True):
                is_greedy[i] = bool(right) and len(examples[i].answer_ids) <= settings.max_new_tokens
                losses[i] = loss
    return is_greedy, losses


def pad_token_id(tokenizer: Any) -> int:
    """The stop token: padding is masked and never trained on, and a pad token may have no embedding."""
    return stop_token_id(tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredRows:
    """The rows that fit the model's context, as text and as tokens, and the rows that do not."""

    rows: list[QuestionRow]
    examples: list[Example]
    set_aside: pa.Table
    """The rows that do not fit, in `RUN_SET_ASIDE_SCHEMA`."""
    num_truncated: int = 0
    """Training rows whose target was cut."""

    @property
    def train_examples(self) -> list[Example]:
        """The examples to train on: the train rows with a weight above 0."""
        return [example for row, example in zip(self.rows, self.examples, strict=True) if _is_trained(row)]


def _is_trained(row: QuestionRow) -> bool:
    return row.split == "train" and row.weight > 0


def filter_long_rows(rows: Sequence[QuestionRow], tokenizer: Any, max_tokens: int, config: TrainConfig) -> FilteredRows:
    """Set aside or truncate the rows that are too long, after they got their chat prompts, if any.

    Args:
        rows: rows of all splits.
        tokenizer: the tokenizer of the model.
        max_tokens: the model's context length.
        config: the maximum lengths of a row and of an answer, and the share of rows that may be set aside.

    Raises:
        DataError: more than that share of the rows are too long, or all train or all dev rows.
    """
    if config.prompt_format == "chat":
        rows = chat_rows(rows, chat_format(rows, tokenizer, config))
    examples = encode_rows(rows, tokenizer)
    if config.long_rows == "truncate":
        longest = min(max_tokens, config.max_length or max_tokens)
        examples = [
            _truncate_target(example, longest) if row.split == "train" else example
            for row, example in zip(rows, examples, strict=True)
        ]
    lengths = [_length_and_limit(example, config, max_tokens) for example in examples]
    fits = [length <= limit for length, limit in lengths]
    too_long: list[dict[str, Any]] = [
        {
            "question_id": row.question_id,
            "split": row.split,
            "reason": TOO_LONG,
            "num_tokens": length,
            "limit": limit,
        }
        for row, (length, limit), fit in zip(rows, lengths, fits, strict=True)
        if not fit
    ]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    kept_splits = {row.split for row in kept if row.split != "train" or _is_trained(row)}
    empty_splits = {row["split"] for row in too_long} & {"train", "dev"} - kept_splits
    if empty_splits or len(too_long) > config.max_set_aside_share * len(rows):
        raise DataError(_too_many_message(too_long, len(rows), config, sorted(empty_splits)))
    return FilteredRows(
        rows=kept,
        examples=[example for example, fit in zip(examples, fits, strict=True) if fit],
        set_aside=pa.Table.from_pylist(too_long, RUN_SET_ASIDE_SCHEMA),
        num_truncated=sum(example.is_truncated for example, fit in zip(examples, fits, strict=True) if fit),
    )


def _truncate_target(example: Example, max_tokens: int) -> Example:
    """The example with at most `max_tokens` tokens; unchanged if its prompt alone has as many."""
    max_answer = max_tokens - len(example.prompt_ids)
    if len(example.answer_ids) <= max_answer or max_answer < 1:
        return example
    return replace(example, answer_ids=example.answer_ids[:max_answer], is_truncated=True)


def chat_format(rows: Sequence[QuestionRow], tokenizer: Any, config: TrainConfig) -> PromptFormat:
    """The chat template; answers end at the newline if every target is one line."""
    several_lines = any("\n" in row.target.strip() for row in rows)
    return make_prompt_format(
        "chat",
        tokenizer,
        answer_end="turn" if several_lines else "line",
        template_arguments=parse_template_arguments(config.template_arguments),
    )


def check_row_lengths(study: Folder, plans: Sequence[RunPlan]) -> None:
    """Check, before any worker starts, that no training has to set aside too many rows.

    Raises:
        DataError: see `filter_long_rows`.
    """
    from slick.models import context_length, load_tokenizer

    names = ("variant", "max_new_tokens", "prompt_format", "template_arguments", "max_length", "long_rows")
    chosen = {(plan.model, *(getattr(plan.config, name) for name in names)): plan for plan in plans}
    for plan in chosen.values():
        config = plan.config
        rows = [row for split in read_rows(study, config.variant).values() for row in split]
        max_tokens = context_length(plan.model, trust_remote_code=config.trust_remote_code)
        longest = max(_max_length(row, config.max_new_tokens) for row in rows)
        shortest_limit = min(max_tokens, config.max_length or max_tokens)
        if config.prompt_format == "chat" or longest > shortest_limit:  # else no tokenizer is needed
            tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
            filter_long_rows(rows, tokenizer, max_tokens, config)


def _max_length(row: QuestionRow, max_new_tokens: int) -> int:
    """An upper bound on the tokens of prompt and answer, from their bytes."""
    return len(row.prompt.encode()) + max(len(row.target.encode()), max_new_tokens) + SPECIAL_TOKENS


def _length_and_limit(example: Example, config: TrainConfig, context: int) -> tuple[int, int]:
    """The tokens of a row and their limit: the user's, if the row exceeds it, else that of the model's context."""
    if config.max_length is not None and example.num_tokens > config.max_length:
        return example.num_tokens, config.max_length
    return len(example.prompt_ids) + max(len(example.answer_ids), config.max_new_tokens), context


def _too_many_message(
    too_long: Sequence[Mapping[str, Any]], num_rows: int, config: TrainConfig, empty_splits: Sequence[str]
) -> str:
    longest = max(too_long, key=lambda row: int(row["num_tokens"]))
    allowed = (
        f"no {empty_splits[0]} row is left"
        if empty_splits
        else f"at most {100 * config.max_set_aside_share:g} % may be left out"
    )
    limit, remedy = "the model's context", "use a model with a longer context"
    if longest["limit"] == config.max_length:
        limit, remedy = "--max-length", "raise --max-length"
    return (
        f"{len(too_long):,} of {num_rows:,} rows of variant {config.variant} do not fit {limit} of "
        f"{longest['limit']:,} tokens, the longest is question {longest['question_id']} ({longest['split']}) with "
        f"{longest['num_tokens']:,} of prompt and answer; {allowed}. Shorten or remove those questions, lower "
        f"--max-new-tokens, {remedy}, or allow more by --max-set-aside-share"
    )
