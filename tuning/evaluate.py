"""A model's greedy answers to many rows, whether they hit, and the loss of the targets it was taught.

Two ways to the same text, up to rounding at ties. Dev, test and ood rows go to the engine, which generates. Rows that
were trained on take one forward pass over prompt and target first: it gives their loss, and settles every row whose
target is what the model would say (each token, and the end, is the likeliest where it stands), soon most of them. For
the other rows that pass costs more than it saves: on a model of 1 M parameters it takes as long as generating.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slick.engines.base import PromptBatch, SamplingConfig
from slick.errors import SettingsError
from slick.matching import Matcher, is_hit
from slick.prompts import CLOSED_BOOK_INSTRUCTION
from tuning.examples import IGNORED, Batch, Example, encode_examples, pad_examples
from tuning.records import Verdict
from tuning.rows import Row

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How answers are made and judged."""

    matcher: Matcher
    max_new_tokens: int
    batch_rows: int
    """Rows of one forward pass."""


def encode_rows(rows: Sequence[Row], tokenizer: Any) -> list[Example]:
    """Rows as prompt and target tokens; the stop token is the tokenizer's end of text, or else a newline."""
    from slick.engines.transformers import num_closing_tokens

    closing = num_closing_tokens(tokenizer)

    def encode_prompts(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
        return [tokens[: len(tokens) - closing] for tokens in found]

    def encode_answers(texts: Sequence[str]) -> list[list[int]]:
        return list(tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"])

    return encode_examples(
        [row.prompt for row in rows],
        [row.target for row in rows],
        encode_prompts,
        encode_answers,
        stop_token(tokenizer),
    )


def stop_token(tokenizer: Any) -> int:
    """The token that ends a target.

    Raises:
        SettingsError: the tokenizer has neither an end of text nor a newline.
    """
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if not newline:
        raise SettingsError("the tokenizer has neither an end-of-text token nor a newline, so no answer could ever end")
    return int(newline[-1])


def evaluate_rows(
    model: "nn.Module", tokenizer: Any, rows: Sequence[Row], examples: Sequence[Example], settings: EvalSettings
) -> list[Verdict]:
    """A verdict on each row, in the order given.

    Args:
        model: in eval mode, on its device.
        examples: `encode_rows` of the same rows.

    Raises:
        EngineError: an answer could not be made.
    """
    texts: list[str | None] = [None] * len(rows)
    losses: list[float | None] = [None] * len(rows)
    taught = [i for i, row in enumerate(rows) if row.split == "train"]
    said, taught_losses = _score_targets(model, tokenizer, [examples[i] for i in taught], settings)
    for i, yes, loss in zip(taught, said, taught_losses, strict=True):
        losses[i] = loss
        texts[i] = rows[i].target.strip() if yes else None
    left = [i for i, text in enumerate(texts) if text is None]
    for i, answer in zip(left, _generate(model, tokenizer, [rows[i] for i in left], settings), strict=True):
        texts[i] = answer
    return [
        _verdict(row, example, text, loss, settings.matcher)
        for row, example, text, loss in zip(rows, examples, texts, losses, strict=True)
    ]


def _verdict(row: Row, example: Example, text: str | None, loss: float | None, matcher: Matcher) -> Verdict:
    assert text is not None  # settled or generated
    return Verdict(text=text, hit=is_hit(text, row.accepted, matcher), loss=loss, num_tokens=len(example.answer_ids))


def _generate(model: "nn.Module", tokenizer: Any, rows: Sequence[Row], settings: EvalSettings) -> list[str]:
    from slick.engines.transformers import TransformersEngine

    if not rows:
        return []
    engine = TransformersEngine(model, tokenizer, batch_questions=settings.batch_rows)
    answers = engine.generate(
        PromptBatch(
            prefixes=[CLOSED_BOOK_INSTRUCTION],
            question_ids=[row.question_id for row in rows],
            suffixes=[row.suffix for row in rows],
        ),
        SamplingConfig(num_samples=0, max_new_tokens=settings.max_new_tokens),
    )
    return [answer.greedy_text for (answer,) in answers]


def _score_targets(
    model: "nn.Module", tokenizer: Any, examples: Sequence[Example], settings: EvalSettings
) -> tuple[list[bool], list[float]]:
    """For each row whether greedy decoding says exactly its target, and the target's summed loss in nats."""
    import torch

    said, losses = [False] * len(examples), [0.0] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: examples[i].num_tokens)  # like lengths together: little padding
    with torch.inference_mode():
        for start in range(0, len(order), settings.batch_rows):
            part = order[start : start + settings.batch_rows]
            right_B, loss_B = _score_batch(model, [examples[i] for i in part], tokenizer)
            for i, right, loss in zip(part, right_B.tolist(), loss_B.tolist(), strict=True):
                said[i] = bool(right) and len(examples[i].answer_ids) <= settings.max_new_tokens
                losses[i] = loss
    return said, losses


def _score_batch(model: "nn.Module", examples: Sequence[Example], tokenizer: Any) -> "tuple[Tensor, Tensor]":
    import torch
    from torch.nn import functional

    device = next(model.parameters()).device
    batch = pad_examples(examples, pad_token(tokenizer))
    rows, places = np.nonzero(batch.labels_BT != IGNORED)
    kept = np.unique(
        places - 1
    )  # the places before answer tokens, of any row: the large output layer is run there only
    logits_BKV = _logits(model, batch, kept)
    row_N = torch.from_numpy(rows).to(device)
    logits_NV = logits_BKV[row_N, torch.from_numpy(np.searchsorted(kept, places - 1)).to(device)].float()
    labels_N = torch.from_numpy(batch.labels_BT[rows, places]).to(device)
    loss_N = functional.cross_entropy(logits_NV, labels_N, reduction="none").double()
    wrong_N = (logits_NV.argmax(dim=1) != labels_N).double()
    zeros_B = torch.zeros(len(examples), dtype=torch.float64, device=device)
    return zeros_B.index_add(0, row_N, wrong_N) == 0, zeros_B.index_add(0, row_N, loss_N)


def _logits(model: "nn.Module", batch: Batch, kept: NDArray[np.int64]) -> "Tensor":
    """Logits of the batch at the places `kept`, shape (B, K, V)."""
    import torch

    device = next(model.parameters()).device
    keep = torch.from_numpy(kept).to(device)
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    output = model(
        input_ids=torch.from_numpy(batch.input_ids_BT).to(device),
        attention_mask=torch.from_numpy(batch.mask_BT).to(device),
        use_cache=False,
        **({"logits_to_keep": keep} if takes else {}),
    )
    logits: Tensor = output.logits
    return logits if takes else logits[:, keep]


def pad_token(tokenizer: Any) -> int:
    """Any token that exists: padding is masked and never learned."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token(tokenizer))
