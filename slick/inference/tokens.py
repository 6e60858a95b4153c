"""Prompts, answers and the tokens that end an answer, as every engine of a Hugging Face tokenizer counts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.errors import ModelError
from slick.inference.base import PromptBatch, PromptStyle
from slick.inference.packed.sampler import BoolArray, IntArray
from slick.models import num_trailing_special_tokens

_TEXT_CACHE_SIZE = 200_000


class PromptTokenizer:
    """A model's tokenizer, with a vocabulary of V tokens."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Find the tokens that end an answer.

        Args:
            model: a loaded model, or any object with its `config` and `generation_config`.
            tokenizer: its tokenizer.

        Raises:
            ModelError: no token contains a newline.
        """
        self._tokenizer = tokenizer
        self._eos = _eos_token_ids(model, tokenizer)
        self._num_trailing = num_trailing_special_tokens(tokenizer)
        self._texts: dict[tuple[PromptStyle, bytes], str] = {}
        self._after_newline: set[str] = set()
        self.size = max(int(model.config.get_text_config().vocab_size), len(tokenizer))
        self._newlines_V, self._newline_ends_V = self._newline_tokens()
        self._stops: dict[PromptStyle, StopTokens] = {}

    def stop_tokens(self, style: PromptStyle) -> "StopTokens":
        """The tokens that end an answer in this style.

        Raises:
            ModelError: an end text of the style is not one token.
        """
        if style not in self._stops:
            end_ids = self._eos | frozenset(self._token_id(text) for text in style.end_texts)
            stops_V, ends_V = (
                values_V.copy() if style.stop_at_newline else np.zeros(self.size, dtype=bool)
                for values_V in (self._newlines_V, self._newline_ends_V)
            )
            ids = [i for i in end_ids if i < self.size]
            stops_V[ids] = True
            ends_V[ids] = True
            self._stops[style] = StopTokens(end_ids=end_ids, stops_V=stops_V, ends_V=ends_V)
        return self._stops[style]

    def prompts(self, batch: PromptBatch) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Token ids of each prefix and of its prompts, whose tokens may span the end of the prefix."""
        return self._ids(list(batch.prefixes), batch.style), self._splice_prompts(batch) or [
            self._ids([prefix + suffix for suffix in batch.suffixes], batch.style) for prefix in batch.prefixes
        ]

    def answers(self, batch: PromptBatch, prompts: Sequence[Sequence[int]], gold: Sequence[str]) -> list[list[int]]:
        """Token ids of each gold answer, as it follows its prompt with the first prefix and the separator."""
        prefix = batch.prefixes[0]
        answer_texts = [batch.style.answer_separator + text.strip() for text in gold]
        texts = [prefix + suffix + text for suffix, text in zip(batch.suffixes, answer_texts, strict=True)]
        answers = []
        for whole, prompt, text in zip(self._ids(texts, batch.style), prompts, answer_texts, strict=True):
            keeps_prompt = whole[: len(prompt)] == list(prompt) and len(whole) > len(prompt)
            alone = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            answers.append(whole[len(prompt) :] if keeps_prompt else alone)
        return answers

    def text(self, tokens: IntArray, style: PromptStyle) -> str:
        """The text of an answer up to where it ends, stripped."""
        key = (style, tokens.tobytes())
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= _TEXT_CACHE_SIZE:
                self._texts.clear()
            end_ids = self.stop_tokens(style).end_ids
            kept = [token for token in tokens.tolist() if token not in end_ids]
            decoded = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            text = self._texts[key] = (decoded.split("\n", 1)[0] if style.stop_at_newline else decoded).strip()
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
        known = self._ids([batch.prefixes[0] + suffix for suffix in batch.suffixes], batch.style)
        columns = enumerate(zip(*known, strict=False))
        num_common = next((i for i, tokens in columns if len(set(tokens)) > 1), min(map(len, known)))
        ends = self._ids([prefix + batch.suffixes[i] for i in (0, -1) for prefix in batch.prefixes[1:]], batch.style)
        prompts = [known]
        for first, last in zip(ends[: len(ends) // 2], ends[len(ends) // 2 :], strict=True):
            cut = len(first) - (len(known[0]) - num_common)
            spliced = [first[:cut] + tokens[num_common:] for tokens in known]
            if spliced[0] != first or spliced[-1] != last:
                return None
            prompts.append(spliced)
        return prompts

    def _ids(self, texts: list[str], style: PromptStyle) -> list[list[int]]:
        if not style.add_special_tokens:
            return list(self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        ids: list[list[int]] = self._tokenizer(texts, return_attention_mask=False)["input_ids"]
        return [tokens[: len(tokens) - self._num_trailing] for tokens in ids]

    def _token_id(self, text: str) -> int:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ModelError(
                f"{text!r}, which ends an answer, is {len(ids)} tokens of the tokenizer "
                f"{getattr(self._tokenizer, 'name_or_path', '')!r}, expected one; give the model's own tokenizer"
            )
        return int(ids[0])

    def _newline_tokens(self) -> tuple[BoolArray, BoolArray]:
        """True for tokens whose text contains a newline, and for those of them with no other text before it."""
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
        return stops_V, ends_V


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTokens:
    """The tokens that end an answer, of a vocabulary of V."""

    end_ids: frozenset[int]
    """End tokens, which are not part of an answer's text."""
    stops_V: BoolArray
    """True for tokens that end an answer."""
    ends_V: BoolArray
    """True for those of them that add no text to it."""


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text tokens of the model, its generation configuration and the tokenizer."""
    end_ids: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        end_ids.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(end_ids)
