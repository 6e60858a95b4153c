"""How prompts are cut for a packed pass: what they share, and how many tokens go through the model at once."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from slick.engines.devices import free_bytes
from slick.engines.tree import IntArray

TokenIds = Sequence[int]

_MIN_PROMPTS = 8
"""Questions whose common beginning is that of their relation."""

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 2048, 8192
"""Of a pass, at most."""
_LOGITS_BYTES_ON_CPU = 1 << 27
_LOGITS_SHARE_ON_GPU = 8
"""One of so many parts of the free memory, since some models write their logits out several times."""


def max_tokens_per_pass(model: nn.Module) -> int:
    """Many, so that weights are seldom read anew, and no more than there is room for the logits of."""
    weight = next(model.parameters())
    most, room = _TOKENS_ON_CPU, _LOGITS_BYTES_ON_CPU
    if weight.device.type != "cpu":
        most, room = _TOKENS_ON_GPU, free_bytes(weight.device) // _LOGITS_SHARE_ON_GPU
    config: Any = model.config
    logits_bytes = int(config.get_text_config().vocab_size) * weight.element_size()
    fitting = max(256, min(most, room // logits_bytes))
    return fitting - fitting % 64  # which needs no spare rows


def shared_prefix_length(prefix: TokenIds, prompts: Sequence[TokenIds], kept: IntArray | None) -> int:
    """Tokens in which all the prompts agree from the start; each keeps its wanted last tokens to itself.

    Many questions agree in the prefix and in how a question of their relation begins. Few may agree in more by
    accident, which no other batch could share with them: they agree in the prefix at most.
    """
    shared = min(len(prompt) - (1 if kept is None else int(kept[i])) for i, prompt in enumerate(prompts))
    first = prompts[0]
    others = prompts if len(prompts) >= _MIN_PROMPTS else [*prompts, [*prefix, *[-1] * shared]]
    for prompt in others:
        if prompt[:shared] != first[:shared]:
            shared = next(i for i in range(shared) if prompt[i] != first[i])
    return shared


def split_by_tokens(lengths: IntArray, limit: int) -> list[slice]:
    """Consecutive prompts with at most `limit` tokens together, a longer one alone."""
    parts: list[slice] = []
    start, total = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and total + length > limit:
            parts.append(slice(start, i))
            start, total = i, 0
        total += length
    return [*parts, slice(start, len(lengths))]
