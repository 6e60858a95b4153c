"""The built-in engines: `transformers`, for any Hugging Face causal LM or GGUF file, and `vllm`.

The transformers engine is `slick.inference.packed`; the other one is in `slick.inference.vllm_engine`.
"""

from slick.inference.base import Engine, EngineConfig, register_engine


@register_engine(
    "transformers",
    capabilities=("answer_log_probabilities", "answers", "compile", "early_exit", "gold", "log_probabilities"),
)
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
    if not config.compile:  # the compiler packs weights itself, and cannot compile packed layers
        prepack_linears(model)
    batch_questions = None if config.num_gpus else config.batch_questions
    return TransformersEngine(model, tokenizer, batch_questions=batch_questions, compiled=config.compile)


@register_engine("vllm", capabilities=("answers", "early_exit", "gold", "log_probabilities", "tensor_parallel"))
def load_vllm_engine(config: EngineConfig) -> Engine:
    """Load a model with vLLM, on as many GPUs as the configuration names.

    Raises:
        ModelError: vLLM is not installed or cannot load the model, or the model is not valid.
    """
    from slick.inference.vllm_engine import VllmEngine

    return VllmEngine(config)
