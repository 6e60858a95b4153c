"""Rows through a causal LM, to learn from or to score: logits of answer tokens alone, and no padding where it can be.

All rows of a batch go as one sequence: what works on single tokens computes each once, and attention, entered through
the attention interface of transformers, takes each row apart, so no row sees another. Rows are short, so setting them
side by side for attention costs little. The large output layer is run only where answer tokens are predicted.

Legend of array suffixes: N tokens of the batch, B rows, T tokens of the longest row, K answer tokens, H query heads,
D width of a head, V vocabulary.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from slick.engines.attention import Options, OwnAttention
from slick.engines.logits import takes
from tuning.examples import Batch, Example, Ints, join_examples

_LOG = logging.getLogger(__name__)


_TOKENS = 64
_ANSWER_TOKENS = 16
"""Joined batches are filled up to multiples of these: for each new shape oneDNN compiles kernels of 1 MB, in 0.4 ms."""


class RowsPass:
    """Attention of one forward pass over a joined batch: each row sees its own tokens, from its first to the asking."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.width = batch.width
        self.num_rows = batch.num_rows
        self.place_N = torch.from_numpy(_filled(batch.rows_N * batch.width + batch.positions_N, _TOKENS)).to(device)
        # Padding stands behind a row's tokens, none of which looks there; it repeats the first token.
        self.token_BT = torch.from_numpy(batch.padded(np.arange(len(batch.ids_N)), 0).ravel()).to(device)
        self.num_layers = 0
        """Layers that came by; none if the model has an attention of its own."""

    def attend(
        self, layer: int, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, scaling: float, options: Options
    ) -> Tensor:
        """Attention of one layer, shape (N, H, D).

        Raises:
            NotImplementedError: the layer asks for what this way does not have.
        """
        if options.sink_H is not None:
            raise NotImplementedError("its attention has sinks")
        if options.window and self.width > options.window:
            raise NotImplementedError(f"rows of {self.width} tokens reach beyond its window of {options.window}")
        self.num_layers += 1
        query, key, value = (self._side_by_side(x) for x in (query_HND, key_KND, value_KND))
        if options.softcap:
            out_BHTD = _capped_attention(query, key, value, scaling, options.softcap, options.dropout)
        else:
            out_BHTD = functional.scaled_dot_product_attention(
                query,
                key,
                value,
                dropout_p=options.dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        return out_BHTD.transpose(1, 2).flatten(0, 1).index_select(0, self.place_N)

    def _side_by_side(self, x_HND: Tensor) -> Tensor:
        x = x_HND.transpose(0, 1).index_select(0, self.token_BT)
        return x.view(self.num_rows, self.width, *x.shape[1:]).transpose(1, 2)


def _capped_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float, cap: float, dropout: float
) -> Tensor:
    """Causal attention whose scores are held below a cap, as Gemma 2 has it; shape (B, H, T, D)."""
    group = query_BHTD.shape[1] // key_BKTD.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key_BKTD, value_BKTD))
    scores_BHTT = torch.tanh(query_BHTD @ key.transpose(2, 3) * (scaling / cap)) * cap
    later_TT = torch.ones(scores_BHTT.shape[2:], dtype=torch.bool, device=scores_BHTT.device).triu(1)
    weights = scores_BHTT.masked_fill(later_TT, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return functional.dropout(weights.to(value.dtype), dropout) @ value


class Rows:
    """A batch on its way through models."""

    def __init__(self, batch: Batch, device: torch.device, pad_id: int, running: RowsPass | None) -> None:
        self._batch, self._device, self._pad_id, self.running = batch, device, pad_id, running
        self.labels_K = self._tensor(batch.labels_K)
        self.rows_K = self._tensor(batch.rows_K)

    def answer_logits(self, model: nn.Module, *, keeps: bool) -> Tensor:
        """Logits that predict the answer tokens, shape (K, V).

        Args:
            model: that whose `Forward` made these rows, or the DeepSpeed engine around it.
            keeps: the model can be told which logits are wanted.
        """
        batch = self._batch
        if self.running is not None:
            kept = {"logits_to_keep": self._tensor(_filled(batch.before_K, _ANSWER_TOKENS))} if keeps else {}
            logits: Tensor = model(
                input_ids=self._tensor(_filled(batch.ids_N, _TOKENS))[None],
                position_ids=self._tensor(_filled(batch.positions_N, _TOKENS))[None],
                use_cache=False,
                **kept,
            ).logits[0]
            return logits[: len(batch.before_K)] if keeps else logits[self._tensor(batch.before_K)]
        places = batch.positions_N[batch.before_K]
        columns = np.unique(places)
        logits = model(
            input_ids=self._tensor(batch.padded(batch.ids_N, self._pad_id)),
            attention_mask=self._tensor(batch.padded(np.ones_like(batch.ids_N), 0)),
            use_cache=False,
            **({"logits_to_keep": self._tensor(columns)} if keeps else {}),
        ).logits
        return logits[self.rows_K, self._tensor(np.searchsorted(columns, places) if keeps else places)]

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _filled(values_N: Ints, multiple: int) -> Ints:
    """The values, and as many more that no row has: nobody looks at such tokens, and nothing is learned from them."""
    return np.pad(values_N, (0, -len(values_N) % multiple))


class Forward:
    """How a model takes rows."""

    def __init__(self, model: nn.Module, pad_id: int, *, packing: bool) -> None:
        """Try, if rows are to be joined, whether the model gives the same logits for joined rows as for padded ones.

        Args:
            model: a causal LM; under ZeRO stage 3 all workers build theirs at the same time.
            pad_id: any token.
        """
        self._model, self._pad_id = model, pad_id
        self._keeps = takes(model, "logits_to_keep")
        self._attention: OwnAttention | None = OwnAttention(model) if packing else None
        if self._attention is not None:
            trouble = self._trouble()
            if trouble:
                name = type(model).__name__
                _LOG.warning("%s is given padded rows, which is right but slower: %s", name, trouble)
                self._attention = None

    @property
    def packs(self) -> bool:
        """True if rows are joined."""
        return self._attention is not None

    @contextmanager
    def rows(self, examples: list[Example]) -> Iterator[Rows]:
        """Rows of a batch; forward passes, and backward passes that compute activations again, belong in the block."""
        batch = join_examples(examples)
        device = next(self._model.parameters()).device
        if self._attention is None:
            yield Rows(batch, device, self._pad_id, None)
            return
        running = RowsPass(batch, device)
        with self._attention.during(running):
            yield Rows(batch, device, self._pad_id, running)

    def answer_logits(self, rows: Rows, model: nn.Module | None = None) -> Tensor:
        """Logits that predict the answer tokens, shape (K, V).

        Args:
            model: the DeepSpeed engine around the model, in training.
        """
        return rows.answer_logits(self._model if model is None else model, keeps=self._keeps)

    def _trouble(self) -> str:
        """Empty if joined rows get the logits of padded ones, else what went wrong."""
        config: Any = self._model.config
        ids = [(7 * i + 3) % int(config.get_text_config().vocab_size) for i in range(24)]
        examples = [
            Example(prompt_ids=tuple(ids[a:b]), answer_ids=tuple(ids[b:c]))
            for a, b, c in ((0, 5, 8), (3, 6, 7), (9, 18, 22))
        ]
        if getattr(self._model, "_is_stateful", False):
            return "it carries a state instead of keys and values"
        was_training = self._model.training
        self._model.eval()
        joined = self._attention
        try:
            with torch.no_grad():
                with self.rows(examples) as rows:
                    found_KV = self.answer_logits(rows)
                num_layers = rows.running.num_layers if rows.running else 0
                self._attention = None
                with self.rows(examples) as rows:
                    right_KV = self.answer_logits(rows)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            return f"it does not take joined rows ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        finally:
            self._attention = joined
            self._model.train(was_training)
        if not num_layers:
            return "its layers have an attention of their own"
        return _difference(found_KV.float(), right_KV.float(), found_KV.dtype)


def _difference(found_KV: Tensor, right_KV: Tensor, dtype: torch.dtype) -> str:
    share = float((found_KV - right_KV).abs().mean() / right_KV.std(dim=1).mean().clamp(min=1e-30))
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    limit = 2e-4 if exact else 0.15  # bfloat16 alone makes 0.05 on a model of 30 layers
    return "" if share <= limit else f"its logits differ by {share:.2g} of their spread, more than {limit:g}"
