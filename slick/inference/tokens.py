"""Tokenizes prompts and gold answers, decodes answers, and defines which tokens end an answer."""

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
    """A model's tokenizer, with a vocabulary of V tokens."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Find the tokens that end an answer.

        Raises:
            ModelError: no token contains a newline.
        """
        self._tokenizer = tokenizer
        self._eos = _eos_token_ids(model, tokenizer)
        self._num_trailing = num_trailing_special_tokens(tokenizer)
        self._texts: dict[bytes, str] = {}
        self._after_newline: set[str] = set()
        self.size = max(int(model.config.get_text_config().vocab_size), len(tokenizer))
        self.stops_V, self.ends_V = self._stop_tokens()
        """True for tokens that end an answer, and for those of them that add no text to it."""

    def prompts(self, batch: PromptBatch) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Token ids of each prefix and of its prompts, whose tokens may span the end of the prefix."""
        return self._ids(list(batch.prefixes)), self._splice_prompts(batch) or [
            self._ids([prefix + suffix for suffix in batch.suffixes]) for prefix in batch.prefixes
        ]

    def answers(self, batch: PromptBatch, prompts: Sequence[Sequence[int]], gold: Sequence[str]) -> list[list[int]]:
        """Token ids of each gold answer, as it follows its prompt with the first prefix after a space."""
        prefix = batch.prefixes[0]
        texts = [f"{prefix}{suffix} {text.strip()}" for suffix, text in zip(batch.suffixes, gold, strict=True)]
        answers = []
        for whole, prompt, text in zip(self._ids(texts), prompts, gold, strict=True):
            keeps_prompt = whole[: len(prompt)] == list(prompt) and len(whole) > len(prompt)
            alone = self._tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
            answers.append(whole[len(prompt) :] if keeps_prompt else alone)
        return answers

    def text(self, tokens: IntArray) -> str:
        """The text of an answer up to the first newline or end of text, stripped."""
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
        """Prompts of all prefixes from tokenizing those of the first; None where the result could be wrong.

        If no token spans the end of a line, a suffix has the same tokens after every prefix that ends with a newline.
        As a check, the first and the last suffix are tokenized with each prefix.
        """
        first_characters = {suffix[:1] for suffix in batch.suffixes}
        # A character of several bytes may be split over tokens, one of which may begin with the newline.
        is_safe = all(char.isascii() and char not in self._after_newline for char in first_characters)
        is_safe = is_safe and "" not in first_characters
        if len(batch.prefixes) == 1 or not is_safe or not all(prefix.endswith("\n") for prefix in batch.prefixes):
            return None
        known = self._ids([batch.prefixes[0] + suffix for suffix in batch.suffixes])
        columns = enumerate(zip(*known, strict=False))
        num_common = next((i for i, tokens in columns if len(set(tokens)) > 1), min(map(len, known)))
        ends = self._ids([prefix + batch.suffixes[i] for i in (0, -1) for prefix in batch.prefixes[1:]])
        prompts = [known]
        for first, last in zip(ends[: len(ends) // 2], ends[len(ends) // 2 :], strict=True):
            cut = len(first) - (len(known[0]) - num_common)
            spliced = [first[:cut] + tokens[num_common:] for tokens in known]
            if spliced[0] != first or spliced[-1] != last:
                return None
            prompts.append(spliced)
        return prompts

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, return_attention_mask=False)["input_ids"]
        return [tokens[: len(tokens) - self._num_trailing] for tokens in ids]

    def _stop_tokens(self) -> tuple[BoolArray, BoolArray]:
        """`stops_V` and `ends_V`: end-of-text tokens, and tokens whose text contains a newline."""
        num = len(self._tokenizer)
        texts = self._tokenizer.batch_decode([[i] for i in range(num)], clean_up_tokenization_spaces=False)
        self._after_newline = {after for text in texts for before, after in pairwise(text) if before == "\n"}
        stops_V: NDArray[np.bool_] = np.zeros(self.size, dtype=bool)
        ends_V: NDArray[np.bool_] = np.zeros(self.size, dtype=bool)
        stops_V[:num] = ["\n" in text for text in texts]
        ends_V[:num] = ["\n" in text and not text.split("\n", 1)[0].strip() for text in texts]
        if not stops_V.any():
            raise ModelError(
                f"no token of the tokenizer {getattr(self._tokenizer, 'name_or_path', '')!r} contains a newline, which "
                "ends an answer; use a tokenizer that keeps newlines"
            )
        eos = [i for i in self._eos if i < self.size]
        stops_V[eos] = True
        ends_V[eos] = True
        return stops_V, ends_V


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text tokens of the model, its generation configuration and the tokenizer."""
    end_ids: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        end_ids.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(end_ids)


def num_trailing_special_tokens(tokenizer: Any) -> int:
    """Number of special tokens, such as an end of text, that the tokenizer appends to a text.

    Prompts are fed without them, because an answer must follow.
    """
    bare = tokenizer("Q", add_special_tokens=False)["input_ids"]
    full = tokenizer("Q")["input_ids"]
    for num_leading in range(len(full) - len(bare) + 1):
        if full[num_leading : num_leading + len(bare)] == bare:
            return len(full) - len(bare) - num_leading
    return 0
