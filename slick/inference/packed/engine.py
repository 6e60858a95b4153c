"""The engine for Hugging Face causal LMs: greedy and sampled answers from one packed pass over a batch of questions.

Each distinct token is computed once: a few-shot prefix once per engine, a prompt once for all its answers, and a common
prefix of answers once for all of them. Questions are processed in sub-batches of a fixed size, so the arithmetic behind
an answer depends only on the batch that was passed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slick.errors import EngineError, ModelError
from slick.inference.base import (
    Answers,
    Engine,
    EngineStats,
    GoldScore,
    PromptBatch,
    PromptStyle,
    SamplingConfig,
)
from slick.inference.devices import AdaptiveBatcher, model_runtime
from slick.inference.packed.full_forward import DecoderSelector
from slick.inference.packed.sampler import AnswerTree, BoolArray, Candidates, CategoryEarlyExit, IntArray
from slick.inference.scoring import ANY_TOKEN, END_OF_ANSWER, log_probabilities, score_positions
from slick.matching import AnswerMatcher
from slick.model_files import UNLIMITED_POSITIONS, max_positions
from slick.model_validation import check_token_ids
from slick.models import num_trailing_special_tokens
from slick.rng import row_key

_TEXT_CACHE_SIZE = 200_000

_GREEDY_ONE_TOKEN = SamplingConfig(num_samples=0, max_new_tokens=1)

Result = TypeVar("Result")


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


class TransformersEngine(Engine):
    """Answers prompts with a loaded model, on its device and in its dtype.

    The engine caches keys and values of prefixes, so the weights must not change while it exists: create a new engine
    after training. The constructor runs a few short forward passes to check that the model supports packed batches. If
    it does not, the engine logs a warning and feeds whole sequences, which is slower.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, batch_questions: int | None = None) -> None:
        """Check the model.

        Args:
            model: on its device, and in eval mode when it answers.
            tokenizer: its tokenizer.
            batch_questions: questions decoded together; None for 32 on the CPU, and on a GPU for as many as fit.

        Raises:
            ModelError: the tokenizer has tokens without an embedding, or no token with a newline.
        """
        self._model = model
        self.stats = EngineStats()
        config: Any = model.config
        self._context = max_positions(config.get_text_config()) or UNLIMITED_POSITIONS
        check_token_ids(tokenizer, int(config.get_text_config().vocab_size), getattr(tokenizer, "name_or_path", ""))
        self._tokenizer = PromptTokenizer(model, tokenizer)
        self._decoders = DecoderSelector(model)
        self.runtime = model_runtime(
            model,
            next(model.parameters()).device,
            "slick packed (tree attention)" if self._decoders.uses_packing else "",
        )
        self._batcher = AdaptiveBatcher(model, batch_questions)

    @property
    def uses_packing(self) -> bool:
        """Whether the model supports packed batches; otherwise every answer costs whole sequences."""
        return self._decoders.uses_packing

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answer each question of the batch; see `Engine.generate`.

        Raises:
            EngineError: a prompt exceeds the model's context, a logit is not finite, or memory ran out.
        """
        return self._run_batched(
            batch, sampling, lambda part, questions: self._generate(questions, sampling, targets and targets[part])
        )

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """Score the gold answer of each question; see `Engine.score`.

        Raises:
            EngineError: see `generate`.
        """
        return self._run_batched(batch, sampling, lambda part, questions: self._score(questions, gold[part], sampling))

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-probability that each answer begins with each choice; see `Engine.log_probabilities`.

        Raises:
            EngineError: see `generate`.
        """
        assert len(batch.prefixes) == 1
        return self._run_batched(
            batch, _GREEDY_ONE_TOKEN, lambda _, questions: self._log_probabilities(questions, choices)
        )

    def _run_batched(
        self, batch: PromptBatch, sampling: SamplingConfig, work: Callable[[slice, PromptBatch], list[Result]]
    ) -> list[Result]:
        if self._model.training:
            raise EngineError(
                "the model is in training mode, where dropout makes answers random; call model.eval() first"
            )
        started_at = time.monotonic()
        results = self._batcher.run(batch, sampling, work, self._decoders.release)
        self.stats.seconds += time.monotonic() - started_at
        return results

    def _generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None
    ) -> list[tuple[Answers, ...]]:
        prefixes, prompts = self._tokenizer.prompts(batch)
        lengths_PQ = _lengths(prompts)
        self._check_fits(lengths_PQ, sampling, batch.question_ids)
        decoder = self._decoders.for_length(int(lengths_PQ.max()) + sampling.max_new_tokens)
        num_prefilled = decoder.num_prefilled
        num_candidates = min(sampling.top_k if sampling.num_samples else 1, self._tokenizer.size)
        tree = AnswerTree(
            decoder.start(prefixes, prompts, num_candidates=num_candidates),
            decoder.feed,
            keys_P=np.array(
                [row_key(sampling.seed, i, prefix) for prefix in range(len(prompts)) for i in batch.question_ids],
                dtype=np.uint64,
            ),
            question_P=np.tile(np.arange(len(batch.question_ids)), len(prompts)),
            stops_V=self._tokenizer.stop_tokens(batch.style).stops_V,
            sampling=sampling,
        )
        if targets is None:
            tree.decode_all()
        else:
            tree.decode_all(
                CategoryEarlyExit(targets, tree.question_of, lambda row: self._row_text(tree, row, batch.style))
            )
        self._count(
            lengths_PQ,
            num_prefilled=decoder.num_prefilled - num_prefilled,
            num_answer_tokens=int(tree.rows.lengths_R.sum()),
            num_decoded=tree.num_fed,
            num_generations=int((tree.rows.lengths_R > 0).sum()),
        )
        return self._answers(tree, batch)

    def _score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        prefixes, prompts = self._tokenizer.prompts(batch)
        answers = self._tokenizer.answers(batch, prompts[0], gold)
        lengths_PQ = _lengths(prompts)
        self._check_fits(lengths_PQ, sampling, batch.question_ids)
        # A sampled answer is cut at max_new_tokens, so a longer gold answer has probability 0.
        fits = [len(answer) <= sampling.max_new_tokens for answer in answers]
        fed = [answer if fit else [] for answer, fit in zip(answers, fits, strict=True)]
        decoder = self._decoders.for_length(int(lengths_PQ.max()) + sampling.max_new_tokens)
        num_prefilled = decoder.num_prefilled
        candidates = decoder.start(
            prefixes,
            [[prompt + answer for prompt, answer in zip(group, fed, strict=True)] for group in prompts],
            num_candidates=min(sampling.top_k, self._tokenizer.size),
            num_kept=np.array([len(answer) + 1 for answer in fed]),
        )
        # An answer of max_new_tokens is cut there, so no end token has to follow.
        targets = [
            [*answer, END_OF_ANSWER if len(answer) < sampling.max_new_tokens else ANY_TOKEN] for answer in fed
        ] * len(prompts)
        greedy_P, probability_P = score_positions(
            candidates,
            np.concatenate([np.array(target) for target in targets]),
            np.repeat(np.arange(len(targets)), [len(target) for target in targets]),
            self._tokenizer.stop_tokens(batch.style).ends_V,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
        )
        num_fed = len(prompts) * sum(map(len, fed))
        self._count(
            lengths_PQ,
            num_prefilled=decoder.num_prefilled - num_prefilled - num_fed,
            num_answer_tokens=num_fed,
            num_decoded=num_fed,
        )
        num_questions = len(fed)
        return [
            tuple(
                GoldScore(is_greedy=fits[q] and bool(greedy_P[p]), probability=fits[q] * float(probability_P[p]))
                for p in range(q, len(targets), num_questions)
            )
            for q in range(num_questions)
        ]

    def _log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        prefixes, (prompts,) = self._tokenizer.prompts(batch)
        by_choice = [self._tokenizer.answers(batch, prompts, [choice] * len(prompts)) for choice in choices]
        lengths_PQ = _lengths([prompts])
        longest = max(len(answer) for answers in by_choice for answer in answers)
        self._check_fits(lengths_PQ, replace(_GREEDY_ONE_TOKEN, max_new_tokens=longest), batch.question_ids)
        decoder = self._decoders.for_length(int(lengths_PQ.max()) + longest)
        num_prefilled, num_fed = decoder.num_prefilled, 0

        def read(sequences: list[list[int]], num_kept: IntArray, scored_ids: IntArray) -> Candidates:
            nonlocal num_fed
            num_fed = int(num_kept.sum()) - len(num_kept)
            return decoder.start(prefixes, [sequences], num_candidates=1, num_kept=num_kept, scored_ids=scored_ids)

        results = log_probabilities(read, prompts, list(zip(*by_choice, strict=True)))
        self._count(
            lengths_PQ,
            num_prefilled=decoder.num_prefilled - num_prefilled - num_fed,
            num_answer_tokens=num_fed,
            num_decoded=num_fed,
        )
        return results

    def _count(
        self,
        lengths_PQ: IntArray,
        *,
        num_prefilled: int,
        num_answer_tokens: int,
        num_decoded: int,
        num_generations: int = 0,
    ) -> None:
        self.stats.prompts += lengths_PQ.size
        self.stats.prompt_tokens += int(lengths_PQ.sum())
        self.stats.prefilled_tokens += num_prefilled
        self.stats.answer_tokens += num_answer_tokens
        self.stats.decoded_tokens += num_decoded
        self.stats.generations += num_generations

    def _answers(self, tree: AnswerTree, batch: PromptBatch) -> list[tuple[Answers, ...]]:
        num_questions, num_prefixes = len(batch.question_ids), len(batch.prefixes)
        lengths = tree.rows.lengths_R.tolist()
        texts = [
            self._row_text(tree, row, batch.style) if finished else None
            for row, finished in enumerate(tree.rows.finished_R.tolist())
        ]
        missed_R = (tree.rows.lengths_R > 0) & ~tree.rows.finished_R
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

    def _row_text(self, tree: AnswerTree, row: int, style: PromptStyle) -> str:
        return self._tokenizer.text(tree.rows.tokens_RT[row, : int(tree.rows.lengths_R[row])], style)

    def _check_fits(self, lengths_PQ: IntArray, sampling: SamplingConfig, question_ids: Sequence[str]) -> None:
        longest = int(lengths_PQ.max())
        needed = longest + sampling.max_new_tokens - 1  # the last token of an answer is never fed
        if needed > self._context:
            question_id = question_ids[int(lengths_PQ.max(axis=0).argmax())]
            raise EngineError(
                f"the prompt of question {question_id!r} has {longest} tokens and its answer may have "
                f"{sampling.max_new_tokens}; the model's context holds {self._context}; use fewer shots or a lower "
                "--max-new-tokens"
            )


def _lengths(prompts: Sequence[Sequence[Sequence[int]]]) -> IntArray:
    """Numbers of tokens, shape (prefixes, questions)."""
    return np.array([[len(prompt) for prompt in group] for group in prompts])
