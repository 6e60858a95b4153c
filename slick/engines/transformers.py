"""Any Hugging Face causal LM as an engine: greedy and sampled answers from one packed pass over a batch of questions.

What can be shared is computed once: the few-shot prefix once an engine, a prompt once for all its answers, the tokens
of answers that agree so far once for all of them. Questions go in sub-batches of a fixed size, so the arithmetic of an
answer depends on the batch that was given and on nothing else.
"""

import logging
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slick.draws import row_key
from slick.engines.base import Answers, EngineStats, PromptBatch, SamplingConfig
from slick.engines.packed import PackedDecoder
from slick.engines.plain import PlainDecoder, agree
from slick.engines.tree import Rows, grow
from slick.errors import EngineError, ModelError

_LOG = logging.getLogger(__name__)
_TEXT_CACHE_SIZE = 200_000


class TransformersEngine:
    """Answers prompts with a loaded model, on the device and in the dtype it has.

    The weights must not change while the engine lives, since it keeps the key-value cache of prefixes: build a new
    engine for a model that was trained on. Building one costs a few short forward passes, which check that the model
    takes packed batches; where it does not, the engine warns and feeds whole sequences, which is slower.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, batch_questions: int = 32) -> None:
        self._model, self._tokenizer, self._batch_questions = model, tokenizer, batch_questions
        self.stats = EngineStats()
        config: Any = model.config
        text_config = config.get_text_config()
        self._vocab_size = max(int(text_config.vocab_size), len(tokenizer))
        self._context = _context_length(text_config)
        self._window = _attention_window(text_config)
        self._stops_V = _stop_tokens(model, tokenizer, self._vocab_size)
        self._eos = eos_token_ids(model, tokenizer)
        self._num_closing = num_closing_tokens(tokenizer)
        self._texts: dict[bytes, str] = {}
        self._warned = False
        self._plain = PlainDecoder(model, 1)
        self._packed = self._check_packed(int(text_config.vocab_size))

    @property
    def packs(self) -> bool:
        """True if the model takes packed batches; else every answer costs whole sequences."""
        return self._packed is not None

    def generate(self, batch: PromptBatch, sampling: SamplingConfig) -> list[Answers]:
        """One greedy and `num_samples` sampled answers to each prompt, in the order of the batch.

        Raises:
            EngineError: a prompt does not fit the model's context, the model gave no finite logits, or memory ran out.
        """
        if self._model.training:
            raise EngineError(
                "the model is in training mode, where dropout makes answers random; call model.eval() first"
            )
        started_at = time.monotonic()
        answers: list[Answers] = []
        try:
            with torch.inference_mode():
                for start in range(0, len(batch.question_ids), self._batch_questions):
                    answers += self._answer(batch, slice(start, start + self._batch_questions), sampling)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"the device ran out of memory while answering {self._batch_questions} questions at once ({error}); "
                "lower --batch-questions, or use --dtype bfloat16"
            ) from error
        self.stats.seconds += time.monotonic() - started_at
        return answers

    def _answer(self, batch: PromptBatch, part: slice, sampling: SamplingConfig) -> list[Answers]:
        ids = batch.question_ids[part]
        prefix, prompts = self._tokenize(batch.prefix, list(batch.suffixes[part]))
        longest = max(map(len, prompts))
        self._check_fits(longest, sampling, ids[int(np.argmax([len(p) for p in prompts]))])
        shared = _num_shared(prefix, prompts)
        decoder = self._decoder(longest + sampling.max_new_tokens)
        decoder.set_candidates(min(sampling.top_k if sampling.num_samples else 1, self._vocab_size))
        prefilled = decoder.num_prefilled
        node_of_Q, first = decoder.start(prefix, shared, [prompt[shared:] for prompt in prompts])
        rows = grow(
            first,
            node_of_Q,
            decoder.advance,
            keys_Q=np.array([row_key(sampling.seed, i, batch.prompt_index) for i in ids], dtype=np.uint64),
            stops_V=self._stops_V,
            sampling=sampling,
        )
        self._count(prompts, rows, decoder.num_prefilled - prefilled)
        return self._answers(rows, len(ids))

    def _answers(self, rows: Rows, num_questions: int) -> list[Answers]:
        num_answers = len(rows.lengths_R) // num_questions
        lengths = rows.lengths_R.tolist()
        texts = [self._text(rows.tokens_RT[row, :length]) for row, length in enumerate(lengths)]
        return [
            Answers(
                greedy_text=texts[start],
                sampled_text=tuple(texts[start + 1 : start + num_answers]),
                num_tokens=sum(lengths[start : start + num_answers]),
            )
            for start in range(0, len(texts), num_answers)
        ]

    def _text(self, tokens: NDArray[np.int64]) -> str:
        key = tokens.tobytes()
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= _TEXT_CACHE_SIZE:
                self._texts.clear()
            kept = [token for token in tokens.tolist() if token not in self._eos]
            decoded = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            text = self._texts[key] = decoded.split("\n", 1)[0].strip()
        return text

    def _tokenize(self, prefix: str, suffixes: list[str]) -> tuple[list[int], list[list[int]]]:
        """Tokens of the prefix alone and of every whole prompt: tokens may reach across the border between the two."""
        found = self._tokenizer([prefix, *(prefix + suffix for suffix in suffixes)], return_attention_mask=False)[
            "input_ids"
        ]
        if self._num_closing:
            found = [tokens[: -self._num_closing] for tokens in found]
        return found[0], found[1:]

    def _check_fits(self, longest: int, sampling: SamplingConfig, question_id: str) -> None:
        needed = longest + sampling.max_new_tokens - 1  # the last token of an answer is never fed
        if needed > self._context:
            raise EngineError(
                f"the prompt of question {question_id!r} has {longest} tokens and its answer may have "
                f"{sampling.max_new_tokens}; the model's context holds {self._context}; use fewer shots or a lower "
                "--max-new-tokens"
            )

    def _decoder(self, num_tokens: int) -> PackedDecoder | PlainDecoder:
        if self._packed is None:
            return self._plain
        if num_tokens <= self._window:
            return self._packed
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "prompts reach beyond the model's attention window of %d tokens: such batches are fed as whole "
                "sequences, which is right but slower",
                self._window,
            )
        return self._plain

    def _check_packed(self, vocab_size: int) -> PackedDecoder | None:
        packed = PackedDecoder(self._model, 1)
        if getattr(self._model, "_is_stateful", False):
            trouble = "it carries a state instead of keys and values"
        else:
            was_training = self._model.training
            self._model.eval()
            with torch.inference_mode():
                trouble = agree(packed, self._plain, vocab_size, next(self._model.parameters()).dtype)
            self._model.train(was_training)
        if trouble:
            name = type(self._model).__name__
            _LOG.warning("%s is fed whole sequences, which is right but slower: %s", name, trouble)
            return None
        return PackedDecoder(self._model, 1)

    def _count(self, prompts: list[list[int]], rows: Rows, prefilled: int) -> None:
        self.stats.prompts += len(prompts)
        self.stats.generations += len(rows.lengths_R)
        self.stats.prompt_tokens += sum(map(len, prompts))
        self.stats.prefilled_tokens += prefilled
        self.stats.answer_tokens += int(rows.lengths_R.sum())
        self.stats.decoded_tokens += rows.num_nodes_fed


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that the model, its generation settings or the tokenizer call an end of text."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def _stop_tokens(model: Any, tokenizer: Any, vocab_size: int) -> NDArray[np.bool_]:
    """Shape (V,): True for ends of text and for tokens whose text holds a newline, alone or among other characters."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    stops_V = np.zeros(vocab_size, dtype=bool)
    stops_V[: len(texts)] = ["\n" in text for text in texts]
    if not stops_V.any():
        raise ModelError(
            f"no token of the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} holds a newline, which ends an "
            "answer; prompts in Q/A lines need a tokenizer that keeps newlines"
        )
    stops_V[[i for i in eos_token_ids(model, tokenizer) if i < vocab_size]] = True
    return stops_V


def num_closing_tokens(tokenizer: Any) -> int:
    """Special tokens that the tokenizer puts behind a text (an end of text, say), where an answer must follow."""
    bare = tokenizer("Q", add_special_tokens=False)["input_ids"]
    full = tokenizer("Q")["input_ids"]
    for opening in range(len(full) - len(bare) + 1):
        if full[opening : opening + len(bare)] == bare:
            return len(full) - len(bare) - opening
    return 0


def _num_shared(prefix: list[int], prompts: list[list[int]]) -> int:
    """Tokens of the prefix that begin every prompt; each prompt keeps at least one token of its own."""
    shared = min(len(prefix), *(len(prompt) - 1 for prompt in prompts))
    for prompt in prompts:
        while prompt[:shared] != prefix[:shared]:
            shared -= 1
    return shared


def _context_length(text_config: Any) -> int:
    """Positions that the model has; a large number where it names none."""
    for name in ("max_position_embeddings", "n_positions"):
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 1 << 30


def _attention_window(text_config: Any) -> int:
    """Tokens within which attention reaches everything before; a large number where it always does."""
    windows = [getattr(text_config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    if getattr(text_config, "use_sliding_window", True) is False:
        windows[0] = None
    return min((window for window in windows if isinstance(window, int) and window > 0), default=1 << 30)
