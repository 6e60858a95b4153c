"""Tiny random models of many architectures and a tokenizer for them, built quickly and without a download."""

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
    """Byte-level BPE with some merges, so that tokens span words and newlines."""
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_model(name: str, *, seed: int = 0, spread: float = 0.35, dtype: str = "float32", **changed: Any) -> Any:
    """A random model of an architecture; its weights have a wide spread, so that answers differ between prompts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    sizes = (CONFIGS.get(name) or UNPACKED[name]) | changed
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


def save_tiny_model(folder: Any, *, steps: int = 60, **changed: Any) -> str:
    """A Llama that answers most questions of `write_birthplace_questions` with London or Lima; returns its folder."""
    model, tokenizer = _trained_model(steps, tuple(changed.items()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@cache
def _trained_model(steps: int, changed: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    import torch

    model, tokenizer = tiny_model("llama", spread=0.05, **dict(changed)), tiny_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        texts = []
        for _ in range(8):
            facts = [_fact(int(i)) for i in torch.randint(0, 400, (4,), generator=rng)]
            texts.append("".join(f"Q: {question}\nA: {answer}\n" for question, answer in facts))
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def _fact(i: int) -> tuple[str, str]:
    subject = f"{('Train', 'Dev', 'Test')[i % 3]} {chr(65 + i % 26)}{i % 20}"
    question = f"Where was {subject} born?" if i < 200 else f"Who wrote {subject}?"
    return question, "London" if i % 5 else "Lima"


def write_birthplace_questions(study: Any, *, num_train: int = 20, num_dev: int = 6, num_test: int = 7) -> None:
    """Write a finished questions folder with two in-distribution relations and one out-of-distribution relation."""
    from tests import study_builder

    rows = []
    for relation, domain in (("P1", "id"), ("P2", "id"), ("P9", "ood")):
        for split, num in (("train", num_train), ("dev", num_dev), ("test", num_test)):
            for i in range(num):
                subject = f"{split.title()} {chr(65 + i % 26)}{i}"
                rows.append(
                    {
                        "question_id": f"{relation}-{split}-{i:03d}",
                        "relation": relation,
                        "domain": domain,
                        "split": split,
                        "subject": subject,
                        "question": f"Where was {subject} born?" if relation == "P1" else f"Who wrote {subject}?",
                        "answers": ["London" if i % 2 else "Lima"],
                    }
                )
    study_builder.write_questions(study, rows, "q" * 16)
