"""The engine `transformers`: any Hugging Face causal LM or GGUF file, run by `slick.inference.packed`."""

from slick.inference.base import Engine, EngineConfig, register_engine


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
