"""Tiny random models of many architectures, and a tokenizer for them; built in a moment, no download."""

from functools import cache
from typing import Any

TEXT = """Q: Where was Ada Lovelace born?
A: London
Q: Where was Emmy Noether born?
A: Erlangen
Q: Who wrote Dune?
A: Frank Herbert
Q: What is the capital of Peru?

A: Lima
"""
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GQA = SIZES | {"num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "qwen2": GQA,
    "qwen3": GQA | {"head_dim": 8},
    "mistral": GQA | {"sliding_window": 256},
    "gemma2": GQA | {"head_dim": 8, "sliding_window": 256},
    "gemma3_text": GQA | {"head_dim": 8, "sliding_window": 256},
    "gpt_neox": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "olmo2": GQA,
    "phi": SIZES,
}
UNPACKED: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


@cache
def tiny_tokenizer() -> Any:
    """Byte-level BPE with some merges, so that tokens reach across words and newlines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_model(name: str, *, seed: int = 0, spread: float = 0.35, dtype: str = "float32") -> Any:
    """A random model of an architecture; weights spread widely, so that its answers differ from prompt to prompt."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    sizes = CONFIGS.get(name) or UNPACKED[name]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **sizes, **ids)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.data.copy_(noise.to(parameter.dtype))
    return model.eval()
