"""Between texts and tokens: prompts and answers as a model's tokenizer writes them, and where an answer ends."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.errors import ModelError
from slick.inference.base import PromptBatch
from slick.inference.packed.sampler import BoolArray, IntArray

_TEXT_CACHE_SIZE = 200_000


class PromptTokenizer:
    """A model's tokens, V of them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Find out what ends an answer.

        Raises:
            ModelError: no token holds a newline.
        """
        self._tokenizer = tokenizer
        self._eos = _eos_token_ids(model, tokenizer)
        self._num_closing = num_trailing_special_tokens(tokenizer)
        self._texts: dict[bytes, str] = {}
        self._after_newline: set[str] = set()
        self.size = max(int(model.config.get_text_config().vocab_size), len(tokenizer))
        self.stops_V, self.ends_V = self._stop_tokens()
        """Tokens that stop an answer, and those of them that add nothing to it."""

    def prompts(self, batch: PromptBatch) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Tokens of each prefix, and of its whole prompts: tokens may reach across the border between the two."""
        return self._ids(list(batch.prefixes)), self._splice_prompts(batch) or [
            self._ids([prefix + suffix for suffix in batch.suffixes]) for prefix in batch.prefixes
        ]

    def answers(self, batch: PromptBatch, prompts: Sequence[Sequence[int]], gold: Sequence[str]) -> list[list[int]]:
        """The tokens of each gold answer as they follow its prompt behind the first prefix, a space between."""
        prefix = batch.prefixes[0]
        texts = [f"{prefix}{suffix} {text.strip()}" for suffix, text in zip(batch.suffixes, gold, strict=True)]
        found = []
        for whole, prompt, text in zip(self._ids(texts), prompts, gold, strict=True):
            clean = whole[: len(prompt)] == list(prompt) and len(whole) > len(prompt)
            alone = self._tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
            found.append(whole[len(prompt) :] if clean else alone)
        return found

    def text(self, tokens: IntArray) -> str:
        """What an answer says: up to its first newline or end of text, stripped."""
        key = tokens.tobytes()
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= _TEXT_CACHE_SIZE:
                self._texts.clear()
            kept = [token for token in tokens.tolist() if token not in self._eos]
            decoded = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            text = self._texts[key] = decoded.split("\n", 1)[0].strip()
        return text

    def _splice_prompts(self, batch: PromptBatch) -> list[list[list[int]]] | None:
        """The whole prompts of each prefix from those of the first one; None where that cannot be told to be right.

        If no token reaches from the end of a line into what follows there, suffixes are written alike behind every
        prefix that ends a line. The last suffix is also put into tokens behind each prefix, to see that it is so.
        """
        beginnings = {suffix[:1] for suffix in batch.suffixes}
        # A character of several bytes may be in several tokens, and one of these behind a newline in another.
        tell = all(one.isascii() and one not in self._after_newline for one in beginnings) and "" not in beginnings
        if len(batch.prefixes) == 1 or not tell or not all(prefix.endswith("\n") for prefix in batch.prefixes):
            return None
        known = self._ids([batch.prefixes[0] + suffix for suffix in batch.suffixes])
        places = enumerate(zip(*known, strict=False))
        alike = next((i for i, tokens in places if len(set(tokens)) > 1), min(map(len, known)))
        ends = self._ids([prefix + batch.suffixes[i] for i in (0, -1) for prefix in batch.prefixes[1:]])
        prompts = [known]
        for first, last in zip(ends[: len(ends) // 2], ends[len(ends) // 2 :], strict=True):
            cut = len(first) - (len(known[0]) - alike)
            spliced = [first[:cut] + tokens[alike:] for tokens in known]
            if spliced[0] != first or spliced[-1] != last:
                return None
            prompts.append(spliced)
        return prompts

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, return_attention_mask=False)["input_ids"]
        return [tokens[: len(tokens) - self._num_closing] for tokens in found]

    def _stop_tokens(self) -> tuple[BoolArray, BoolArray]:
        """Ends of text stop an answer, and tokens whose text holds a newline, alone or among other characters."""
        num = len(self._tokenizer)
        texts = self._tokenizer.batch_decode([[i] for i in range(num)], clean_up_tokenization_spaces=False)
        self._after_newline = {after for text in texts for before, after in pairwise(text) if before == "\n"}
        stops_V: NDArray[np.bool_] = np.zeros(self.size, dtype=bool)
        ends_V: NDArray[np.bool_] = np.zeros(self.size, dtype=bool)
        stops_V[:num] = ["\n" in text for text in texts]
        ends_V[:num] = ["\n" in text and not text.split("\n", 1)[0].strip() for text in texts]
        if not stops_V.any():
            raise ModelError(
                f"no token of the tokenizer {getattr(self._tokenizer, 'name_or_path', '')!r} holds a newline, which "
                "ends an answer; prompts in Q/A lines need a tokenizer that keeps newlines"
            )
        eos = [i for i in self._eos if i < self.size]
        stops_V[eos] = True
        ends_V[eos] = True
        return stops_V, ends_V


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that the model, its generation settings or the tokenizer call an end of text."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def num_trailing_special_tokens(tokenizer: Any) -> int:
    """Special tokens that the tokenizer puts behind a text (an end of text, say), where an answer must follow."""
    bare = tokenizer("Q", add_special_tokens=False)["input_ids"]
    full = tokenizer("Q")["input_ids"]
    for opening in range(len(full) - len(bare) + 1):
        if full[opening : opening + len(bare)] == bare:
            return len(full) - len(bare) - opening
    return 0
