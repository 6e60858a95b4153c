"""Any Hugging Face causal LM as an engine: greedy and sampled answers from one packed pass over a batch of questions.

What can be shared is computed once: the few-shot prefixes once an engine, a prompt once for all its answers, the tokens
of answers that agree so far once for all of them. Questions go in sub-batches of a fixed size, so the arithmetic of an
answer depends on the batch that was given and on nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import nn

from slick.errors import EngineError
from slick.inference.base import Answers, Engine, EngineStats, GoldScore, PromptBatch, SamplingConfig
from slick.inference.batching import AdaptiveBatcher
from slick.inference.devices import model_runtime
from slick.inference.packed.early_exit import CategoryEarlyExit
from slick.inference.packed.full_forward import DecoderSelector
from slick.inference.packed.sampler import AnswerTree, Candidates, IntArray
from slick.inference.scoring import ANY_TOKEN, END_OF_ANSWER, log_probabilities, score_positions
from slick.inference.tokens import PromptTokenizer
from slick.matching import AnswerMatcher
from slick.model_files import UNLIMITED_POSITIONS, max_positions
from slick.model_validation import check_token_ids
from slick.rng import row_key

_GREEDY_ONE_TOKEN = SamplingConfig(num_samples=0, max_new_tokens=1)

Result = TypeVar("Result")


class TransformersEngine(Engine):
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

        Raises:
            ModelError: the tokenizer has tokens that the model has not, or none with a newline.
        """
        self._model = model
        self.stats = EngineStats()
        config: Any = model.config
        self._context = max_positions(config.get_text_config()) or UNLIMITED_POSITIONS
        check_token_ids(tokenizer, int(config.get_text_config().vocab_size), getattr(tokenizer, "name_or_path", ""))
        self._vocabulary = PromptTokenizer(model, tokenizer)
        self._decoders = DecoderSelector(model)
        self.runtime = model_runtime(
            model,
            next(model.parameters()).device,
            "slick packed (tree attention)" if self._decoders.uses_packing else "",
        )
        self._portions = AdaptiveBatcher(model, batch_questions)

    @property
    def uses_packing(self) -> bool:
        """True if the model takes packed batches; else every answer costs whole sequences."""
        return self._decoders.uses_packing

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answers to each question of the batch, one `Answers` for each prefix; see `Engine.generate`.

        Raises:
            EngineError: a prompt does not fit the model's context, the model gave no finite logits, or memory ran out.
        """
        return self._run_batched(
            batch, sampling, lambda place, part: self._answer(part, sampling, targets and targets[place])
        )

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """How likely the gold answer of each question is under each prefix; see `Engine.score`.

        Raises:
            EngineError: as `generate`.
        """
        return self._run_batched(batch, sampling, lambda place, part: self._score(part, gold[place], sampling))

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """How likely the answer to each question is to begin with each choice; see `Engine.log_probabilities`.

        Raises:
            EngineError: as `generate`.
        """
        assert len(batch.prefixes) == 1
        return self._run_batched(batch, _GREEDY_ONE_TOKEN, lambda _, part: self._log_probabilities(part, choices))

    def _run_batched(
        self, batch: PromptBatch, sampling: SamplingConfig, work: Callable[[slice, PromptBatch], list[Result]]
    ) -> list[Result]:
        if self._model.training:
            raise EngineError(
                "the model is in training mode, where dropout makes answers random; call model.eval() first"
            )
        started_at = time.monotonic()
        results = self._portions.run(batch, sampling, work, self._decoders.release)
        self.stats.seconds += time.monotonic() - started_at
        return results

    def _answer(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None
    ) -> list[tuple[Answers, ...]]:
        prefixes, prompts = self._vocabulary.prompts(batch)
        lengths = np.array([[len(prompt) for prompt in group] for group in prompts])
        self._check_fits(lengths, sampling, batch.question_ids)
        decoder = self._decoders.for_length(int(lengths.max()) + sampling.max_new_tokens)
        prefilled = decoder.num_prefilled
        num_candidates = min(sampling.top_k if sampling.num_samples else 1, self._vocabulary.size)
        tree = AnswerTree(
            decoder.start(prefixes, prompts, num_candidates=num_candidates),
            decoder.feed,
            keys_P=np.array(
                [row_key(sampling.seed, i, place) for place in range(len(prompts)) for i in batch.question_ids],
                dtype=np.uint64,
            ),
            question_P=np.tile(np.arange(len(batch.question_ids)), len(prompts)),
            stops_V=self._vocabulary.stops_V,
            sampling=sampling,
        )
        if targets is None:
            tree.decode_all()
        else:
            tree.decode_all(CategoryEarlyExit(targets, tree.question_of, lambda row: self._row_text(tree, row)))
        self.stats.prompts += lengths.size
        self.stats.generations += int((tree.rows.lengths_R > 0).sum())
        self.stats.prompt_tokens += int(lengths.sum())
        self.stats.prefilled_tokens += decoder.num_prefilled - prefilled
        self.stats.answer_tokens += int(tree.rows.lengths_R.sum())
        self.stats.decoded_tokens += tree.num_fed
        return self._answers(tree, len(batch.question_ids), len(prompts))

    def _score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        prefixes, prompts = self._vocabulary.prompts(batch)
        answers = self._vocabulary.answers(batch, prompts[0], gold)
        lengths = np.array([[len(prompt) for prompt in group] for group in prompts])
        self._check_fits(lengths, sampling, batch.question_ids)
        # Tokens beyond the longest answer that may be drawn cannot come, so the answer cannot either.
        fits = [len(answer) <= sampling.max_new_tokens for answer in answers]
        fed = [answer if fit else [] for answer, fit in zip(answers, fits, strict=True)]
        decoder = self._decoders.for_length(int(lengths.max()) + sampling.max_new_tokens)
        prefilled = decoder.num_prefilled
        candidates = decoder.start(
            prefixes,
            [[prompt + answer for prompt, answer in zip(group, fed, strict=True)] for group in prompts],
            num_candidates=min(sampling.top_k, self._vocabulary.size),
            kept=np.array([len(answer) + 1 for answer in fed]),
        )
        # An answer as long as may be needs no end: it is cut there.
        targets = [
            [*answer, END_OF_ANSWER if len(answer) < sampling.max_new_tokens else ANY_TOKEN] for answer in fed
        ] * len(prompts)
        greedy_P, chance_P = score_positions(
            candidates,
            np.concatenate([np.array(target) for target in targets]),
            np.repeat(np.arange(len(targets)), [len(target) for target in targets]),
            self._vocabulary.ends_V,
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
        prefixes, (prompts,) = self._vocabulary.prompts(batch)
        by_choice = [self._vocabulary.answers(batch, prompts, [choice] * len(prompts)) for choice in choices]
        lengths = np.array([[len(prompt) for prompt in prompts]])
        longest = max(len(answer) for answers in by_choice for answer in answers)
        self._check_fits(lengths, replace(_GREEDY_ONE_TOKEN, max_new_tokens=longest), batch.question_ids)
        decoder = self._decoders.for_length(int(lengths.max()) + longest)
        before, num_fed = decoder.num_prefilled, 0

        def read(sequences: list[list[int]], kept: IntArray, scored_ids: IntArray) -> Candidates:
            nonlocal num_fed
            num_fed = int(kept.sum()) - len(kept)
            return decoder.start(prefixes, [sequences], num_candidates=1, kept=kept, scored_ids=scored_ids)

        found = log_probabilities(read, prompts, list(zip(*by_choice, strict=True)))
        self.stats.prompts += len(prompts)
        self.stats.prompt_tokens += int(lengths.sum())
        self.stats.answer_tokens += num_fed
        self.stats.decoded_tokens += num_fed
        self.stats.prefilled_tokens += decoder.num_prefilled - before - num_fed
        return found

    def _answers(self, tree: AnswerTree, num_questions: int, num_prefixes: int) -> list[tuple[Answers, ...]]:
        lengths = tree.rows.lengths_R.tolist()
        texts = [
            self._row_text(tree, row) if whole else None for row, whole in enumerate(tree.rows.finished_R.tolist())
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

    def _row_text(self, tree: AnswerTree, row: int) -> str:
        return self._vocabulary.text(tree.rows.tokens_RT[row, : int(tree.rows.lengths_R[row])])

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
