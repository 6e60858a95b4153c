"""The engine for Hugging Face causal LMs: greedy and sampled answers from one packed pass over a batch of questions.

Each distinct token is computed once: a few-shot prefix once per engine, a prompt once for all its answers, and a common
prefix of answers once for all of them. Questions are processed in sub-batches of a fixed size, so the arithmetic behind
an answer depends only on the batch that was passed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import nn

from slick.errors import EngineError
from slick.inference.base import (
    Answers,
    AnswerScore,
    Engine,
    EngineStats,
    GoldScore,
    PromptBatch,
    PromptStyle,
    SamplingConfig,
)
from slick.inference.devices import AdaptiveBatcher, model_runtime
from slick.inference.packed.full_forward import DecoderSelector
from slick.inference.packed.sampler import AnswerTree, Candidates, CategoryEarlyExit, IntArray
from slick.inference.scoring import log_probabilities, score_answers, score_whole_answers, tokens_to_feed
from slick.inference.tokens import PromptTokenizer
from slick.matching import AnswerMatcher
from slick.model_files import UNLIMITED_POSITIONS, max_positions
from slick.model_validation import check_token_ids
from slick.rng import row_key

_GREEDY_ONE_TOKEN = SamplingConfig(num_samples=0, max_new_tokens=1)

Result = TypeVar("Result")


class TransformersEngine(Engine):
    """Answers prompts with a loaded model, on its device and in its dtype.

    The engine caches keys and values of prefixes, so the weights must not change while it exists: create a new engine
    after training. The constructor runs a few short forward passes to check that the model supports packed batches. If
    it does not, the engine logs a warning and feeds whole sequences, which is slower.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, batch_questions: int | None = None, compiled: bool = False
    ) -> None:
        """Check the model.

        Args:
            model: on its device, and in eval mode when it answers.
            tokenizer: its tokenizer.
            batch_questions: questions decoded together; None for 32 on the CPU, and on a GPU for as many as fit.
            compiled: compile the decoder layers; see `slick.inference.packed.compiled`.

        Raises:
            EngineError: the layers cannot be compiled, or give other logits then.
            ModelError: the tokenizer has tokens without an embedding, or no token with a newline.
        """
        self._model = model
        self.stats = EngineStats()
        config: Any = model.config
        self._context = max_positions(config.get_text_config()) or UNLIMITED_POSITIONS
        check_token_ids(tokenizer, int(config.get_text_config().vocab_size), getattr(tokenizer, "name_or_path", ""))
        self._tokenizer = PromptTokenizer(model, tokenizer)
        self._decoders = DecoderSelector(model, compiled=compiled)
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

    def answer_log_probabilities(
        self, batch: PromptBatch, answers: Sequence[str], max_new_tokens: int
    ) -> list[tuple[AnswerScore, ...]]:
        """Log-probability of one answer per question; see `Engine.answer_log_probabilities`.

        Raises:
            EngineError: see `generate`.
        """
        sampling = replace(_GREEDY_ONE_TOKEN, max_new_tokens=max_new_tokens)
        return self._run_batched(
            batch,
            sampling,
            lambda part, questions: self._answer_log_probabilities(questions, answers[part], max_new_tokens),
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
        fed = tokens_to_feed(answers, sampling.max_new_tokens)
        decoder = self._decoders.for_length(int(lengths_PQ.max()) + sampling.max_new_tokens)
        num_prefilled = decoder.num_prefilled
        candidates = decoder.start(
            prefixes,
            [[prompt + answer for prompt, answer in zip(group, fed, strict=True)] for group in prompts],
            num_candidates=min(sampling.top_k, self._tokenizer.size),
            num_kept=np.array([len(answer) + 1 for answer in fed]),
        )
        num_fed = len(prompts) * sum(map(len, fed))
        self._count(
            lengths_PQ,
            num_prefilled=decoder.num_prefilled - num_prefilled - num_fed,
            num_answer_tokens=num_fed,
            num_decoded=num_fed,
        )
        ends_V = self._tokenizer.stop_tokens(batch.style).ends_V
        return score_answers(candidates, answers, len(prompts), ends_V, sampling)

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

    def _answer_log_probabilities(
        self, batch: PromptBatch, texts: Sequence[str], max_new_tokens: int
    ) -> list[tuple[AnswerScore, ...]]:
        prefixes, prompts = self._tokenizer.prompts(batch)
        answers = self._tokenizer.answers(batch, prompts[0], texts)
        if not all(answers):
            raise EngineError(
                f"an answer to question {batch.question_ids[answers.index([])]!r} has no tokens, so it has no "
                "probability; remove it"
            )
        lengths_PQ = _lengths(prompts)
        longest = max(map(len, answers))
        self._check_fits(lengths_PQ, replace(_GREEDY_ONE_TOKEN, max_new_tokens=longest + 1), batch.question_ids)
        ends_V = self._tokenizer.stop_tokens(batch.style).ends_V
        if not ends_V.any():
            raise EngineError("no token of the model ends an answer, so no whole answer has a probability")
        decoder = self._decoders.for_length(int(lengths_PQ.max()) + longest)
        num_prefilled = decoder.num_prefilled
        candidates = decoder.start(
            prefixes,
            [[prompt + answer for prompt, answer in zip(group, answers, strict=True)] for group in prompts],
            num_candidates=1,
            num_kept=np.array([len(answer) + 1 for answer in answers]),
            scored_ids=np.union1d(np.concatenate([np.array(answer) for answer in answers]), np.flatnonzero(ends_V)),
        )
        num_fed = len(prompts) * sum(map(len, answers))
        self._count(
            lengths_PQ,
            num_prefilled=decoder.num_prefilled - num_prefilled - num_fed,
            num_answer_tokens=num_fed,
            num_decoded=num_fed,
        )
        return score_whole_answers(candidates, answers, len(prompts), ends_V, max_new_tokens)

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
