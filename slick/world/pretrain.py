"""Training of a world's model: a Llama of a million parameters, from scratch, on CPU, in under three minutes.

    python -m slick.world.pretrain FOLDER     reads planted.parquet, training.json and model/ (the tokenizer) there,
                                              writes the model beside the tokenizer, and spent.json

The model is written out here rather than taken from transformers because time is all in the details: joined
projections, plain softmax attention (torch's fused attention takes four times as long backward on CPU) and bfloat16
products of float32 weights train at twice the speed. `llama_state_dict` gives the weights their transformers names.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.progress import ProgressReporter
from slick.rng import derive_seed
from slick.world.config import WorldConfig
from slick.world.corpus import corpus_epoch, pack_rows
from slick.world.facts import Fact

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-5
WARMUP_SHARE = 0.05

# Legend of suffixes: B rows, T tokens, H heads, D width of a head, V vocabulary.


class _Layer(nn.Module):
    def __init__(self, width: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in = nn.Parameter(torch.ones(width))
        self.norm_ffn = nn.Parameter(torch.ones(width))
        self.qkv = nn.Parameter(torch.empty(3 * width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.gate_up = nn.Parameter(torch.empty(2 * ffn, width))
        self.down = nn.Parameter(torch.empty(width, ffn))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        heads, kind = self.heads, cos.dtype
        normed = F.rms_norm(x, (width,), self.norm_in, NORM_EPSILON).to(kind)
        qkv = F.linear(normed, self.qkv.to(kind)).view(rows, tokens, 3 * heads, width // heads).transpose(1, 2)
        turned, value = qkv[:, : 2 * heads], qkv[:, 2 * heads :]
        left, right = turned.chunk(2, -1)
        turned = turned * cos + torch.cat((-right, left), -1) * sin
        query, key = turned.chunk(2, 1)
        weights = torch.softmax(query @ key.transpose(-1, -2) * (width // heads) ** -0.5 + mask, -1)
        mixed = (weights @ value).transpose(1, 2).reshape(rows, tokens, width)
        x = x + F.linear(mixed, self.out.to(kind))
        normed = F.rms_norm(x, (width,), self.norm_ffn, NORM_EPSILON).to(kind)
        gate, up = F.linear(normed, self.gate_up.to(kind)).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down.to(kind))


class TinyLlama(nn.Module):
    """The function that transformers calls LlamaForCausalLM, with tied embeddings, for whole rows only."""

    def __init__(self, config: WorldConfig, vocab_size: int, kind: torch.dtype) -> None:
        super().__init__()
        width, head = config.hidden_size, config.hidden_size // config.num_heads
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        self.layers = nn.ModuleList(_Layer(width, config.ffn_size, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.ones(width))
        frequencies = ROPE_THETA ** (-torch.arange(0, head, 2) / head)
        angles = torch.outer(torch.arange(config.row_tokens), frequencies).repeat(1, 2)
        self.tables = (angles.cos().to(kind), angles.sin().to(kind))
        self.mask = torch.full((config.row_tokens, config.row_tokens), -1e4, dtype=kind).triu(1)
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "weights") % 2**63)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits, shape (B, T, V)."""
        size = tokens_BT.shape[1]
        cos, sin = (table[:size] for table in self.tables)
        x = F.embedding(tokens_BT, self.embedding)
        for layer in self.layers:
            x = layer(x, cos, sin, self.mask[:size, :size])
        x = F.rms_norm(x, (x.shape[-1],), self.norm, NORM_EPSILON).to(cos.dtype)
        return F.linear(x, self.embedding.to(cos.dtype))


def pretrain(
    facts: Sequence[Fact], tokenizer: "PreTrainedTokenizerFast", config: WorldConfig
) -> tuple["LlamaForCausalLM", dict[str, float]]:
    """Train a model on the corpus of the facts.

    Returns:
        The model in transformers' form, and what it took: tokens, steps, editions, seconds, last loss in nats a token.
    """
    model = TinyLlama(config, len(tokenizer), _matmul_dtype())
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    num_steps = max(1, config.num_tokens // (config.batch_rows * config.row_tokens))
    progress = ProgressReporter("world: training", num_steps * config.batch_rows * config.row_tokens, "tokens")
    started_at, loss_sum, loss_num = time.monotonic(), 0.0, 0
    for step, batch in zip(range(num_steps), _batches(facts, tokenizer, config), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step / num_steps)
        tokens = torch.from_numpy(batch)
        logits = model(tokens.clamp(min=0)[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=-1)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.add(tokens.numel())
        if step >= num_steps * 0.95:
            loss_sum, loss_num = loss_sum + float(loss.detach()), loss_num + 1
    spent = {
        "tokens": num_steps * config.batch_rows * config.row_tokens,
        "steps": num_steps,
        "seconds": round(time.monotonic() - started_at, 1),
        "loss": round(loss_sum / loss_num, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return to_transformers(model, tokenizer, config), spent


def _batches(
    facts: Sequence[Fact], tokenizer: "PreTrainedTokenizerFast", config: WorldConfig
) -> Iterator[NDArray[np.int64]]:
    """Endless batches of shape (batch_rows, row_tokens): edition after edition, each row once an edition."""
    number = 0
    left = np.empty((0, config.row_tokens), dtype=np.int64)
    while True:
        documents = tokenizer(corpus_epoch(facts, config, number))["input_ids"]
        rows = pack_rows(documents, config.row_tokens, tokenizer.eos_token_id)
        rng = np.random.default_rng(derive_seed(config.seed, "rows", number))
        left = np.concatenate([left, rows[rng.permutation(len(rows))]])
        while len(left) >= config.batch_rows:
            yield left[: config.batch_rows]
            left = left[config.batch_rows :]
        number += 1


def _schedule(done: float) -> float:
    """Factor of the learning rate after a share `done` of the steps."""
    if done < WARMUP_SHARE:
        return done / WARMUP_SHARE + 1e-3
    return 0.5 * (1 + float(np.cos(np.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE))))


def _matmul_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively; elsewhere it would be slower than float32."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def to_transformers(model: TinyLlama, tokenizer: "PreTrainedTokenizerFast", config: WorldConfig) -> "LlamaForCausalLM":
    """The same function as a transformers model, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=512,
            rms_norm_eps=NORM_EPSILON,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    llama.load_state_dict(llama_state_dict(model), strict=True)
    return llama.eval()


def llama_state_dict(model: TinyLlama) -> dict[str, Tensor]:
    """The weights under the names that transformers gives them."""
    embedding = model.embedding.detach()
    state = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "model.norm.weight": model.norm.detach(),
    }
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, _Layer)
        query, key, value = layer.qkv.detach().chunk(3)
        gate, up = layer.gate_up.detach().chunk(2)
        parts = {
            "input_layernorm": layer.norm_in.detach(),
            "post_attention_layernorm": layer.norm_ffn.detach(),
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": layer.out.detach(),
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.detach(),
        }
        state |= {f"model.layers.{i}.{name}.weight": part.contiguous() for name, part in parts.items()}
    return state


def _exit_with_parent() -> None:
    """End this process when the one that started it is gone: nobody would take the model."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path) -> None:
    """Train the model of the world in `folder`, which holds everything but the model."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    _exit_with_parent()
    logging.disable_progress_bar()
    values = json.loads((folder / "training.json").read_text())
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    config = WorldConfig(**settings)
    torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
    facts = [Fact(**row) for row in pq.read_table(folder / "planted.parquet").to_pylist()]
    model, spent = pretrain(facts, AutoTokenizer.from_pretrained(folder / "model"), config)
    model.save_pretrained(folder / "model")
    (folder / "spent.json").write_text(json.dumps(spent))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
