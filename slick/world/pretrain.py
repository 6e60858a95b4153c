"""Pretraining of a world's model: a Llama of about a million parameters, on CPU, in under three minutes.

    python -m slick.world.pretrain FOLDER     reads planted.parquet, training.json and model/ (the tokenizer), and
                                              writes the model beside the tokenizer, and spent.json

The model is implemented here because it trains at twice the speed of the transformers implementation: it has joined
projections, plain softmax attention (the backward pass of torch's fused attention takes four times as long on CPU) and
bfloat16 matrix products of float32 weights. `llama_state_dict` converts the weights to transformers' names.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from slick import compat
from slick.formatting import ProgressReporter
from slick.rng import derive_seed
from slick.storage import Folder
from slick.stored_files import convert
from slick.world.config import WorldConfig
from slick.world.corpus import corpus_epoch, pack_rows
from slick.world.facts import Fact

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-5
WARMUP_SHARE = 0.05
"""Warmup, as a share of `num_tokens`."""
DECAY_SHARE = 0.4
"""Decay of the learning rate at the end of the training, as a share of `num_tokens`."""
RECALL_TARGET = 0.5
"""The decay begins when the model recalls this share of the firm facts. The time at which a model begins to memorize
depends on its random weights. After a fixed number of tokens, models of different seeds would know different numbers of
facts."""
MAX_SHARE = 1.2
"""Longest training, as a share of `num_tokens`, if the target is reached late or never."""
PROBE_FACTS = 256
"""Number of firm facts whose recall is measured."""
PROBES = 60
"""Number of times that recall is measured in `num_tokens` tokens."""

# Legend of suffixes: B rows, T tokens, V vocabulary.


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
        heads, dtype = self.heads, cos.dtype
        normed = F.rms_norm(x, (width,), self.norm_in, NORM_EPSILON).to(dtype)
        qkv = F.linear(normed, self.qkv.to(dtype)).view(rows, tokens, 3 * heads, width // heads).transpose(1, 2)
        query_key, value = qkv[:, : 2 * heads], qkv[:, 2 * heads :]
        left, right = query_key.chunk(2, -1)
        rotated = query_key * cos + torch.cat((-right, left), -1) * sin
        query, key = rotated.chunk(2, 1)
        weights = torch.softmax(query @ key.transpose(-1, -2) * (width // heads) ** -0.5 + mask, -1)
        mixed = (weights @ value).transpose(1, 2).reshape(rows, tokens, width)
        x = x + F.linear(mixed, self.out.to(dtype))
        normed = F.rms_norm(x, (width,), self.norm_ffn, NORM_EPSILON).to(dtype)
        gate, up = F.linear(normed, self.gate_up.to(dtype)).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down.to(dtype))


class TinyLlama(nn.Module):
    """Computes the same function as transformers' LlamaForCausalLM with tied embeddings, for rows without padding."""

    def __init__(self, config: WorldConfig, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        width, head = config.hidden_size, config.hidden_size // config.num_heads
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        self.layers = nn.ModuleList(_Layer(width, config.ffn_size, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.ones(width))
        frequencies = ROPE_THETA ** (-torch.arange(0, head, 2) / head)
        angles = torch.outer(torch.arange(config.row_tokens), frequencies).repeat(1, 2)
        self.tables = (angles.cos().to(dtype), angles.sin().to(dtype))
        self.mask = torch.full((config.row_tokens, config.row_tokens), -1e4, dtype=dtype).triu(1)
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


Corpus = Callable[[Sequence[Fact], WorldConfig, int], list[str]]
"""The documents of one epoch, as `corpus_epoch`."""


def pretrain(
    facts: Sequence[Fact], tokenizer: "PreTrainedTokenizerFast", config: WorldConfig, corpus: Corpus = corpus_epoch
) -> tuple["LlamaForCausalLM", dict[str, float]]:
    """Train a model on the corpus of the facts.

    Args:
        facts: the facts of the world.
        tokenizer: of the model.
        config: the settings of the world.
        corpus: writes the documents of an epoch.

    Returns:
        The transformers model, and statistics of the training: tokens, steps, seconds, parameters, and the mean loss
        of the last 5 % of the steps in nats per token.
    """
    model = TinyLlama(config, len(tokenizer), _matmul_dtype())
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    step_tokens = config.batch_rows * config.row_tokens
    schedule = Schedule(max(1, config.num_tokens // step_tokens))
    probe = RecallProbe(facts, tokenizer, config)
    progress = ProgressReporter("world: training", schedule.nominal_steps * step_tokens, "tokens")
    started_at, losses = time.monotonic(), list[float]()
    for step, batch in enumerate(_batches(facts, tokenizer, config, corpus)):
        if schedule.is_probe_due(step) and probe.recall(model) >= RECALL_TARGET:
            schedule.begin_decay(step)
        if step >= schedule.num_steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule.factor(step)
        tokens = torch.from_numpy(batch)
        logits = model(tokens.clamp(min=0)[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=-1)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.add(tokens.numel())
        losses.append(float(loss.detach()))
    progress.finish()
    statistics = {
        "tokens": len(losses) * step_tokens,
        "steps": len(losses),
        "constant_steps": schedule.decay_from,
        "seconds": round(time.monotonic() - started_at, 1),
        "loss": round(float(np.mean(losses[-max(1, len(losses) // 20) :])), 4),
        "recall": round(probe.recall(model), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return to_transformers(model, tokenizer, config), statistics


class Schedule:
    """Learning rate: linear warmup, constant until `begin_decay` or the latest possible step, linear decay to 0.

    >>> schedule = Schedule(100)
    >>> schedule.num_steps, schedule.factor(50)
    (120, 1.0)
    >>> schedule.begin_decay(50)
    >>> schedule.num_steps, schedule.factor(70)
    (90, 0.5)
    """

    def __init__(self, nominal_steps: int) -> None:
        self.nominal_steps = nominal_steps
        self._decay_steps = max(1, round(nominal_steps * DECAY_SHARE))
        self.decay_from = max(1, round(nominal_steps * MAX_SHARE) - self._decay_steps)
        self._is_decaying = False

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return self.decay_from + self._decay_steps

    def is_probe_due(self, step: int) -> bool:
        """Whether to measure recall before this step."""
        return not self._is_decaying and step < self.decay_from and step % max(1, self.nominal_steps // PROBES) == 0

    def begin_decay(self, step: int) -> None:
        """Begin the decay at this step."""
        self.decay_from, self._is_decaying = step, True

    def factor(self, step: int) -> float:
        """Factor of the learning rate at a step, in [0, 1]."""
        warmup = min(1.0, step / (WARMUP_SHARE * self.nominal_steps) + 1e-3)
        return min(warmup, 1 - max(0, step - self.decay_from) / self._decay_steps)


class RecallProbe:
    """The share of firm facts of the world that a model recalls: each token of the answer is the most likely one."""

    def __init__(self, facts: Sequence[Fact], tokenizer: "PreTrainedTokenizerFast", config: WorldConfig) -> None:
        firm = [fact for fact in facts if fact.strength == "firm"]
        rng = np.random.default_rng(derive_seed(config.seed, "probe"))
        pairs = [
            (len(tokenizer(question)["input_ids"]), tokenizer(f"{question} {firm[i].answer}")["input_ids"])
            for i in rng.permutation(len(firm))[:PROBE_FACTS]
            for question in [f"Q: {firm[i].question}\nA:"]
        ]
        size = min(config.row_tokens, max((len(tokens) for _, tokens in pairs), default=1))
        self._tokens_BT = torch.zeros(len(pairs), size, dtype=torch.long)
        self._answers_BT = torch.full((len(pairs), size), -1)
        for row, (num_question, tokens) in enumerate(pairs):
            self._tokens_BT[row, : len(tokens)] = torch.tensor(tokens[:size])
            self._answers_BT[row, num_question : len(tokens)] = torch.tensor(tokens[num_question:size])

    @torch.no_grad()
    def recall(self, model: TinyLlama) -> float:
        """The share of recalled facts; 0 if the world has no firm facts."""
        if not len(self._tokens_BT):
            return 0.0
        predicted = model(self._tokens_BT[:, :-1]).argmax(-1)
        answers = self._answers_BT[:, 1:]
        return float(((predicted == answers) | (answers < 0)).all(1).float().mean())


def _batches(
    facts: Sequence[Fact], tokenizer: "PreTrainedTokenizerFast", config: WorldConfig, corpus: Corpus
) -> Iterator[NDArray[np.int64]]:
    """An endless stream of batches of shape (batch_rows, row_tokens). Each epoch yields every row once."""
    epoch = 0
    waiting = np.empty((0, config.row_tokens), dtype=np.int64)
    while True:
        documents = tokenizer(corpus(facts, config, epoch))["input_ids"]
        rows = pack_rows(documents, config.row_tokens, tokenizer.eos_token_id)
        rng = np.random.default_rng(derive_seed(config.seed, "rows", epoch))
        waiting = np.concatenate([waiting, rows[rng.permutation(len(rows))]])
        while len(waiting) >= config.batch_rows:
            yield waiting[: config.batch_rows]
            waiting = waiting[config.batch_rows :]
        epoch += 1


def _matmul_dtype() -> torch.dtype:
    """bfloat16 if the processor multiplies it natively, else float32, which is then faster."""
    return torch.bfloat16 if compat.has_native_bfloat16() else torch.float32


def to_transformers(model: TinyLlama, tokenizer: "PreTrainedTokenizerFast", config: WorldConfig) -> "LlamaForCausalLM":
    """The model as a transformers model in float32."""
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
    """The weights by their names in transformers."""
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
    """End this process if its parent process ends, because the model would not be used."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path) -> None:
    """Train the model of the world in `folder`, which holds all other files of the world."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    _exit_with_parent()
    logging.disable_progress_bar()
    files = Folder(str(folder))
    config: WorldConfig = convert(files.read_json("training.json"), WorldConfig, "training.json")
    torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
    facts = [Fact(**row) for row in pq.read_table(folder / "planted.parquet").to_pylist()]
    model, statistics = pretrain(facts, AutoTokenizer.from_pretrained(folder / "model"), config)
    model.save_pretrained(folder / "model")
    files.write_json("spent.json", statistics)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
