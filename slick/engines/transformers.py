"""Any Hugging Face causal LM as an engine: greedy and sampled answers from one packed pass over a batch of questions.

What can be shared is computed once: the few-shot prefixes once an engine, a prompt once for all its answers, the tokens
of answers that agree so far once for all of them. Questions go in sub-batches of a fixed size, so the arithmetic of an
answer depends on the batch that was given and on nothing else.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slick.draws import row_key
from slick.engines.base import Answers, EngineStats, GoldScore, PromptBatch, SamplingConfig, Target
from slick.engines.gold import ANY, END, score_places
from slick.engines.likelihood import log_probabilities
from slick.engines.packed import PackedDecoder
from slick.engines.plain import PlainDecoder, agree
from slick.engines.tree import Candidates, Flags, Ints, Tree
from slick.errors import EngineError, ModelError

_LOG = logging.getLogger(__name__)
_TEXT_CACHE_SIZE = 200_000
_QUESTIONS_ON_CPU = 32
_MOST_QUESTIONS = 512
_TAIL_TOKENS = 24
"""Tokens of a question and of a long answer, to reckon with."""

_NO_SAMPLES = SamplingConfig(num_samples=0, max_new_tokens=1)

Result = TypeVar("Result")


class TransformersEngine:
    """Answers prompts with a loaded model, on the device and in the dtype it has.

    The weights must not change while the engine lives, since it keeps the key-value cache of prefixes: build a new
    engine for a model that was trained on. Building one costs a few short forward passes, which check that the model
    takes packed batches; where it does not, the engine warns and feeds whole sequences, which is slower.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, batch_questions: int | None = None) -> None:
        """Check the model.

        Args:
            model: in eval mode when it is asked, on its device.
            tokenizer: its tokenizer.
            batch_questions: questions decoded together; None for 32 on CPU, and on GPU for as many as memory holds.
        """
        self._model, self._tokenizer = model, tokenizer
        self._most_questions = batch_questions
        self.stats = EngineStats()
        config: Any = model.config
        self._text_config = text_config = config.get_text_config()
        self._vocab_size = max(int(text_config.vocab_size), len(tokenizer))
        self._context = _context_length(text_config)
        self._window = 1 << 30
        self._stops_V, self._ends_V = _stop_tokens(model, tokenizer, self._vocab_size)
        self._device = next(model.parameters()).device
        self._eos = eos_token_ids(model, tokenizer)
        self._num_closing = num_closing_tokens(tokenizer)
        self._texts: dict[bytes, str] = {}
        self._warned = False
        self._plain = PlainDecoder(model)
        self._packed = self._check_packed(int(text_config.vocab_size))

    @property
    def packs(self) -> bool:
        """True if the model takes packed batches; else every answer costs whole sequences."""
        return self._packed is not None

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[Target] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answers to each question of the batch, one `Answers` for each prefix; see `Engine.generate`.

        Raises:
            EngineError: a prompt does not fit the model's context, the model gave no finite logits, or memory ran out.
        """
        return self._in_parts(
            batch,
            sampling,
            lambda start, part: self._answer(part, sampling, targets and targets[start : start + len(part.suffixes)]),
        )

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """How likely the gold answer of each question is under each prefix; see `Engine.score`.

        Raises:
            EngineError: as `generate`.
        """
        return self._in_parts(
            batch,
            sampling,
            lambda start, part: self._score(part, gold[start : start + len(part.question_ids)], sampling),
        )

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """How likely the answer to each question is to begin with each choice; see `Engine.log_probabilities`.

        Raises:
            EngineError: as `generate`.
        """
        assert len(batch.prefixes) == 1
        return self._in_parts(batch, _NO_SAMPLES, lambda _, part: self._log_probabilities(part, choices))

    def _in_parts(
        self, batch: PromptBatch, sampling: SamplingConfig, run: Callable[[int, PromptBatch], list[Result]]
    ) -> list[Result]:
        """Results of a batch, in parts that fit into memory; a part that does not fit after all is done in halves."""
        if self._model.training:
            raise EngineError(
                "the model is in training mode, where dropout makes answers random; call model.eval() first"
            )
        started_at = time.monotonic()
        results: list[Result] = []
        while len(results) < len(batch.question_ids):
            if self._most_questions is None:
                self._most_questions = self._fitting(len(batch.prefixes), sampling)
            size, start = self._most_questions, len(results)
            try:
                with torch.inference_mode():
                    results += run(start, batch.part(slice(start, start + size)))
            except torch.OutOfMemoryError as error:
                size = min(size, len(batch.question_ids) - start)
                if size == 1:
                    raise EngineError(
                        f"the device ran out of memory while answering one question ({error}); use --dtype bfloat16, "
                        "a smaller model or a larger device"
                    ) from error
                self._most_questions = size // 2
                _LOG.warning("out of memory with %d questions at once; going on with %d", size, size // 2)
            if len(results) == start and self._packed is not None:
                # Here, where the error no longer holds on to what the failed part took.
                self._packed.release()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
        self.stats.seconds += time.monotonic() - started_at
        return results

    def _fitting(self, num_prefixes: int, sampling: SamplingConfig) -> int:
        """Questions whose keys and values take up half of the free memory if every answer differs from all others."""
        if self._device.type != "cuda":
            return _QUESTIONS_ON_CPU
        config = self._text_config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        itemsize = next(self._model.parameters()).element_size()
        token_bytes = 2 * config.num_hidden_layers * heads * width * itemsize
        tokens = num_prefixes * (_TAIL_TOKENS + (1 + sampling.num_samples) * min(sampling.max_new_tokens, _TAIL_TOKENS))
        free, _ = torch.cuda.mem_get_info(self._device)
        return max(1, min(_MOST_QUESTIONS, int(free / 2 / (tokens * token_bytes))))

    def _answer(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[Target] | None
    ) -> list[tuple[Answers, ...]]:
        prefixes, prompts = self._tokenize(batch)
        lengths = np.array([[len(prompt) for prompt in group] for group in prompts])
        self._check_fits(lengths, sampling, batch.question_ids)
        decoder = self._decoder(int(lengths.max()) + sampling.max_new_tokens)
        prefilled = decoder.num_prefilled
        num_candidates = min(sampling.top_k if sampling.num_samples else 1, self._vocab_size)
        tree = Tree(
            decoder.start(prefixes, prompts, num_candidates=num_candidates),
            decoder.feed,
            keys_P=np.array(
                [row_key(sampling.seed, i, place) for place in range(len(prompts)) for i in batch.question_ids],
                dtype=np.uint64,
            ),
            question_P=np.tile(np.arange(len(batch.question_ids)), len(prompts)),
            stops_V=self._stops_V,
            sampling=sampling,
        )
        if targets is None:
            tree.grow()
        else:
            tree.grow(_Watch(tree, targets, lambda row: self._row_text(tree, row)))
        self.stats.prompts += lengths.size
        self.stats.generations += int((tree.rows.lengths_R > 0).sum())
        self.stats.prompt_tokens += int(lengths.sum())
        self.stats.prefilled_tokens += decoder.num_prefilled - prefilled
        self.stats.answer_tokens += int(tree.rows.lengths_R.sum())
        self.stats.decoded_tokens += tree.num_fed
        return self._answers(tree, len(batch.question_ids), len(prompts))

    def _score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        prefixes, prompts = self._tokenize(batch)
        answers = self._answer_tokens(batch, prompts[0], gold)
        lengths = np.array([[len(prompt) for prompt in group] for group in prompts])
        self._check_fits(lengths, sampling, batch.question_ids)
        # Tokens beyond the longest answer that may be drawn cannot come, so the answer cannot either.
        fits = [len(answer) <= sampling.max_new_tokens for answer in answers]
        fed = [answer if fit else [] for answer, fit in zip(answers, fits, strict=True)]
        decoder = self._decoder(int(lengths.max()) + sampling.max_new_tokens)
        prefilled = decoder.num_prefilled
        candidates = decoder.start(
            prefixes,
            [[prompt + answer for prompt, answer in zip(group, fed, strict=True)] for group in prompts],
            num_candidates=min(sampling.top_k, self._vocab_size),
            kept=np.array([len(answer) + 1 for answer in fed]),
        )
        # An answer as long as may be needs no end: it is cut there.
        targets = [[*answer, END if len(answer) < sampling.max_new_tokens else ANY] for answer in fed] * len(prompts)
        greedy_P, chance_P = score_places(
            candidates,
            np.concatenate([np.array(target) for target in targets]),
            np.repeat(np.arange(len(targets)), [len(target) for target in targets]),
            self._ends_V,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
        )
        self.stats.prompts += lengths.size
        self.stats.prompt_tokens += int(lengths.sum())
        num_answer_tokens = len(prompts) * sum(map(len, fed))
        self.stats.answer_tokens += num_answer_tokens
        self.stats.decoded_tokens += num_answer_tokens
        self.stats.prefilled_tokens += decoder.num_prefilled - prefilled - num_answer_tokens
        size = len(fed)
        return [
            tuple(
                GoldScore(is_greedy=fits[q] and bool(greedy_P[place]), probability=fits[q] * float(chance_P[place]))
                for place in range(q, len(targets), size)
            )
            for q in range(size)
        ]

    def _log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        prefixes, (prompts,) = self._tokenize(batch)
        by_choice = [self._answer_tokens(batch, prompts, [choice] * len(prompts)) for choice in choices]
        lengths = np.array([[len(prompt) for prompt in prompts]])
        longest = max(len(answer) for answers in by_choice for answer in answers)
        self._check_fits(lengths, replace(_NO_SAMPLES, max_new_tokens=longest), batch.question_ids)
        decoder = self._decoder(int(lengths.max()) + longest)
        before, num_fed = decoder.num_prefilled, 0

        def read(sequences: list[list[int]], kept: Ints, watched: Ints) -> Candidates:
            nonlocal num_fed
            num_fed = int(kept.sum()) - len(kept)
            return decoder.start(prefixes, [sequences], num_candidates=1, kept=kept, watched=watched)

        found = log_probabilities(read, prompts, list(zip(*by_choice, strict=True)))
        self.stats.prompts += len(prompts)
        self.stats.prompt_tokens += int(lengths.sum())
        self.stats.answer_tokens += num_fed
        self.stats.decoded_tokens += num_fed
        self.stats.prefilled_tokens += decoder.num_prefilled - before - num_fed
        return found

    def _answer_tokens(
        self, batch: PromptBatch, prompts: Sequence[Sequence[int]], gold: Sequence[str]
    ) -> list[list[int]]:
        """The tokens of each gold answer as they follow its prompt, a space between."""
        prefix = batch.prefixes[0]
        texts = [f"{prefix}{suffix} {text.strip()}" for suffix, text in zip(batch.suffixes, gold, strict=True)]
        found = []
        for whole, prompt, text in zip(self._token_ids(texts), prompts, gold, strict=True):
            clean = whole[: len(prompt)] == list(prompt) and len(whole) > len(prompt)
            alone = self._tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
            found.append(whole[len(prompt) :] if clean else alone)
        return found

    def _answers(self, tree: Tree, num_questions: int, num_prefixes: int) -> list[tuple[Answers, ...]]:
        lengths = tree.rows.lengths_R.tolist()
        texts = [self._row_text(tree, row) if whole else None for row, whole in enumerate(tree.rows.whole_R.tolist())]
        missed_R = (tree.rows.lengths_R > 0) & ~tree.rows.whole_R
        size = len(texts) // (num_questions * num_prefixes)

        def of_prompt(prompt: int) -> Answers:
            greedy, *sampled = texts[prompt * size : (prompt + 1) * size]
            assert greedy is not None
            return Answers(
                greedy_text=greedy,
                sampled_text=tuple(sampled),
                missed=frozenset((np.flatnonzero(missed_R[prompt * size + 1 : (prompt + 1) * size])).tolist()),
                num_tokens=sum(lengths[prompt * size : (prompt + 1) * size]),
            )

        return [tuple(of_prompt(p * num_questions + q) for p in range(num_prefixes)) for q in range(num_questions)]

    def _row_text(self, tree: Tree, row: int) -> str:
        return self._text(tree.rows.tokens_RT[row, : int(tree.rows.lengths_R[row])])

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

    def _tokenize(self, batch: PromptBatch) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Tokens of each prefix, and of its whole prompts: tokens may reach across the border between the two."""
        texts = [prefix + suffix for prefix in batch.prefixes for suffix in batch.suffixes]
        found, size = self._token_ids([*batch.prefixes, *texts]), len(batch.suffixes)
        prefixes, prompts = found[: len(batch.prefixes)], found[len(batch.prefixes) :]
        return prefixes, [prompts[start : start + size] for start in range(0, len(prompts), size)]

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, return_attention_mask=False)["input_ids"]
        return [tokens[: len(tokens) - self._num_closing] for tokens in found]

    def _check_fits(self, lengths_PQ: Ints, sampling: SamplingConfig, question_ids: Sequence[str]) -> None:
        longest = int(lengths_PQ.max())
        needed = longest + sampling.max_new_tokens - 1  # the last token of an answer is never fed
        if needed > self._context:
            question_id = question_ids[int(lengths_PQ.max(axis=0).argmax())]
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
        packed = PackedDecoder(self._model)
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
        self._window = _untold_window(self._text_config, packed.windows)
        return PackedDecoder(self._model)


class _Watch:
    """Ends samples that do not bear on the category of their question, by what they say."""

    def __init__(self, tree: Tree, targets: Sequence[Target], text_of: Callable[[int], str]) -> None:
        self._tree, self._targets, self._text_of = tree, targets, text_of
        self._may_hit: dict[tuple[int, str], bool] = {}

    def hit(self, rows: Ints) -> Ints:
        """Questions that one of these answers hits."""
        told = set(self._told(rows))  # most texts come many times
        hit = [question for question, text in told if self._targets[question].is_hit(text)]
        return np.unique(np.array(hit, dtype=np.int64))

    def hopeless(self, rows: Ints) -> Flags:
        """Which beginnings are those of no right answer."""
        found = []
        for question, text in self._told(rows):
            beginning = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character of which some bytes are still to come
            may_hit = self._may_hit.get((question, beginning))
            if may_hit is None:
                may_hit = self._may_hit[question, beginning] = self._targets[question].may_hit(beginning)
            found.append(not may_hit)
        return np.array(found, dtype=bool)

    def _told(self, rows: Ints) -> Iterator[tuple[int, str]]:
        return zip(self._tree.question_of(rows).tolist(), map(self._text_of, rows.tolist()), strict=True)


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that the model, its generation settings or the tokenizer call an end of text."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def _stop_tokens(model: Any, tokenizer: Any, vocab_size: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tokens that stop an answer, and those of them that add nothing to it; both of shape (V,).

    Ends of text stop it, and tokens whose text holds a newline, alone or among other characters.
    """
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    stops_V, ends_V = np.zeros(vocab_size, dtype=bool), np.zeros(vocab_size, dtype=bool)
    stops_V[: len(texts)] = ["\n" in text for text in texts]
    ends_V[: len(texts)] = ["\n" in text and not text.split("\n", 1)[0].strip() for text in texts]
    if not stops_V.any():
        raise ModelError(
            f"no token of the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} holds a newline, which ends an "
            "answer; prompts in Q/A lines need a tokenizer that keeps newlines"
        )
    eos = [i for i in eos_token_ids(model, tokenizer) if i < vocab_size]
    stops_V[eos] = True
    ends_V[eos] = True
    return stops_V, ends_V


def num_closing_tokens(tokenizer: Any) -> int:
    """Special tokens that the tokenizer puts behind a text (an end of text, say), where an answer must follow."""
    bare = tokenizer("Q", add_special_tokens=False)["input_ids"]
    full = tokenizer("Q")["input_ids"]
    for opening in range(len(full) - len(bare) + 1):
        if full[opening : opening + len(bare)] == bare:
            return len(full) - len(bare) - opening
    return 0


def _context_length(text_config: Any) -> int:
    """Positions that the model has; a large number where it names none."""
    for name in ("max_position_embeddings", "n_positions"):
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 1 << 30


def _untold_window(text_config: Any, told: set[int]) -> int:
    """Tokens within which attention reaches everything before, but for windows that layers tell the attention of."""
    windows = [getattr(text_config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    if getattr(text_config, "use_sliding_window", True) is False:
        windows[0] = None
    untold = (window for window in windows if isinstance(window, int) and window > 0 and window not in told)
    return min(untold, default=1 << 30)
