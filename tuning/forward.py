"""Forward passes over rows, for training and scoring: logits of answer tokens only, without padding where possible.

All rows of a batch form one packed sequence, so token-wise layers compute no padding. Attention, overridden through the
attention interface of transformers, unpacks the rows, so no row attends to another. Rows are short, so padding them for
attention costs little. The output layer is computed only where answer tokens are predicted.

Array suffixes: N tokens of the batch, B rows, T tokens of the longest row, K answer tokens, H query heads, D head
dimension, V vocabulary.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from slick import compat
from slick.inference.packed.attention import AttentionOptions, AttentionOverride
from slick.inference.scoring import accepts_argument, logit_tolerance
from tuning.data import Example, IntArray, TokenBatch, pack_examples

_LOG = logging.getLogger(__name__)


_TOKEN_MULTIPLE = 64
_ANSWER_TOKEN_MULTIPLE = 16
"""Packed batches are padded to multiples of these: for each new shape oneDNN compiles kernels of 1 MB, in 0.4 ms."""


class PackedRowAttention:
    """Causal attention within each row of a packed batch, for one forward pass."""

    def __init__(self, batch: TokenBatch, device: torch.device) -> None:
        self.width = batch.width
        self.num_rows = batch.num_rows
        self.padded_positions_N = torch.from_numpy(
            _pad_to_multiple(batch.rows_N * batch.width + batch.positions_N, _TOKEN_MULTIPLE)
        ).to(device)
        # Padding follows a row's tokens, none of which attends to it; it repeats the first token of the batch.
        self.token_BT = torch.from_numpy(batch.padded(np.arange(len(batch.ids_N)), 0).ravel()).to(device)
        self.num_layers = 0
        """Layers that used this attention; 0 if the model bypasses the attention interface."""

    def attend(
        self,
        layer: int,
        query_HND: Tensor,
        key_KND: Tensor,
        value_KND: Tensor,
        scaling: float,
        options: AttentionOptions,
    ) -> Tensor:
        """Attention of one layer, shape (N, H, D).

        Raises:
            NotImplementedError: the layer needs an option that is not supported here.
        """
        if options.sink_H is not None:
            raise NotImplementedError("its attention has sinks")
        if options.window and self.width > options.window:
            raise NotImplementedError(f"rows of {self.width} tokens reach beyond its window of {options.window}")
        self.num_layers += 1
        query, key, value = (self._unpack_rows(x) for x in (query_HND, key_KND, value_KND))
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
        return out_BHTD.transpose(1, 2).flatten(0, 1).index_select(0, self.padded_positions_N)

    def _unpack_rows(self, x_HND: Tensor) -> Tensor:
        x = x_HND.transpose(0, 1).index_select(0, self.token_BT)
        return x.view(self.num_rows, self.width, *x.shape[1:]).transpose(1, 2)


def _capped_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float, cap: float, dropout: float
) -> Tensor:
    """Causal attention with soft-capped scores, as in Gemma 2; shape (B, H, T, D)."""
    group = query_BHTD.shape[1] // key_BKTD.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key_BKTD, value_BKTD))
    scores_BHTT = torch.tanh(query_BHTD @ key.transpose(2, 3) * (scaling / cap)) * cap
    future_TT = torch.ones(scores_BHTT.shape[2:], dtype=torch.bool, device=scores_BHTT.device).triu(1)
    weights = scores_BHTT.masked_fill(future_TT, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return functional.dropout(weights.to(value.dtype), dropout) @ value


class PreparedBatch:
    """A batch as model inputs, packed or padded."""

    def __init__(
        self,
        batch: TokenBatch,
        device: torch.device,
        pad_id: int,
        running: PackedRowAttention | None,
        *,
        packs_for_kernel: bool = False,
    ) -> None:
        self._batch, self._device, self._pad_id, self.running = batch, device, pad_id, running
        self._packs_for_kernel = packs_for_kernel
        self.labels_K = self._tensor(batch.labels_K)
        self.rows_K = self._tensor(batch.rows_K)

    def answer_logits(self, model: nn.Module, *, supports_logits_to_keep: bool) -> Tensor:
        """Logits that predict the answer tokens, shape (K, V).

        Args:
            model: the model of the `ForwardRunner` that made these rows, or the DeepSpeed engine around it.
            supports_logits_to_keep: the model takes the argument `logits_to_keep`.
        """
        batch = self._batch
        if self.running is not None or self._packs_for_kernel:
            kept = (
                {"logits_to_keep": self._tensor(_pad_to_multiple(batch.logit_positions_K, _ANSWER_TOKEN_MULTIPLE))}
                if supports_logits_to_keep
                else {}
            )
            logits: Tensor = model(
                input_ids=self._tensor(_pad_to_multiple(batch.ids_N, _TOKEN_MULTIPLE))[None],
                position_ids=self._tensor(_pad_to_multiple(batch.positions_N, _TOKEN_MULTIPLE))[None],
                use_cache=False,
                **kept,
                **(self._row_boundaries() if self._packs_for_kernel else {}),
            ).logits[0]
            return (
                logits[: len(batch.logit_positions_K)]
                if supports_logits_to_keep
                else logits[self._tensor(batch.logit_positions_K)]
            )
        places = batch.positions_N[batch.logit_positions_K]
        columns = np.unique(places)
        logits = model(
            input_ids=self._tensor(batch.padded(batch.ids_N, self._pad_id)),
            attention_mask=self._tensor(batch.padded(np.ones_like(batch.ids_N), 0)),
            use_cache=False,
            **({"logits_to_keep": self._tensor(columns)} if supports_logits_to_keep else {}),
        ).logits
        return logits[
            self.rows_K, self._tensor(np.searchsorted(columns, places) if supports_logits_to_keep else places)
        ]

    def _row_boundaries(self) -> dict[str, Any]:
        """Arguments of transformers' flash kernels: where the rows of a packed batch begin and end.

        The padding of the batch is a row of its own.
        """
        num = len(self._batch.positions_N)
        starts = np.flatnonzero(self._batch.positions_N == 0)
        bounds = np.unique([*starts, num, num + -num % _TOKEN_MULTIPLE]).astype(np.int32)
        ends, longest = torch.from_numpy(bounds).to(self._device), int(np.diff(bounds).max())
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    def _tensor(self, values: IntArray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _pad_to_multiple(values_N: IntArray, multiple: int) -> IntArray:
    """Append zeros up to a multiple; no row contains these tokens, so they affect neither logits nor gradients."""
    return np.pad(values_N, (0, -len(values_N) % multiple))


class ForwardRunner:
    """Runs rows through a model, packed if the model supports it."""

    def __init__(self, model: nn.Module, pad_id: int, *, packing: bool, kernel: str = "") -> None:
        """With packing, check that the model gives the same logits for packed rows as for padded ones.

        Args:
            model: a causal LM; under ZeRO stage 3 all workers call this at the same time.
            pad_id: any token id.
            packing: pack rows if possible.
            kernel: the attention kernel in transformers that the model was loaded with; empty: slick's own attention.
        """
        self._model, self._pad_id, self._kernel = model, pad_id, kernel
        self._supports_logits_to_keep = accepts_argument(model, "logits_to_keep")
        self._packs_for_kernel = packing and compat.is_flash_kernel(kernel)
        self._attention: AttentionOverride | None = AttentionOverride(model) if packing and not kernel else None
        if self.uses_packing:
            error = self._packing_error()
            if error:
                _LOG.warning("%s gets padded rows, which is correct but slower: %s", type(model).__name__, error)
                self._attention, self._packs_for_kernel = None, False

    @property
    def uses_packing(self) -> bool:
        """Whether rows are packed."""
        return self._attention is not None or self._packs_for_kernel

    @property
    def attention_name(self) -> str:
        """The attention of packed rows; empty for padded rows, which use the model's."""
        if self._packs_for_kernel:
            return f"{self._kernel}, packed"
        return "slick packed (sdpa)" if self._attention is not None else ""

    @contextmanager
    def rows(self, examples: list[Example]) -> Iterator[PreparedBatch]:
        """Prepare a batch; forward passes, and backward passes that recompute activations, must run in the context."""
        batch = pack_examples(examples)
        device = next(self._model.parameters()).device
        if self._attention is None:
            yield PreparedBatch(batch, device, self._pad_id, None, packs_for_kernel=self._packs_for_kernel)
            return
        running = PackedRowAttention(batch, device)
        with self._attention.use_backend(running):
            yield PreparedBatch(batch, device, self._pad_id, running)

    def answer_logits(self, rows: PreparedBatch, model: nn.Module | None = None) -> Tensor:
        """Logits that predict the answer tokens, shape (K, V).

        Args:
            rows: from `rows`.
            model: in training, the DeepSpeed engine around the model.
        """
        return rows.answer_logits(
            self._model if model is None else model, supports_logits_to_keep=self._supports_logits_to_keep
        )

    def _packing_error(self) -> str:
        """Why packed rows do not work with this model; empty if they do."""
        config: Any = self._model.config
        ids = [(7 * i + 3) % int(config.get_text_config().vocab_size) for i in range(24)]
        examples = [
            Example(prompt_ids=tuple(ids[a:b]), answer_ids=tuple(ids[b:c]))
            for a, b, c in ((0, 5, 8), (3, 6, 7), (9, 18, 22))
        ]
        if compat.has_recurrent_state(self._model):
            return "it carries a recurrent state instead of keys and values"
        was_training = self._model.training
        self._model.eval()
        before = self._attention, self._packs_for_kernel
        try:
            with torch.no_grad():
                with self.rows(examples) as rows:
                    packed_KV = self.answer_logits(rows)
                num_layers = rows.running.num_layers if rows.running else int(self._packs_for_kernel)
                self._attention, self._packs_for_kernel = None, False
                with self.rows(examples) as rows:
                    padded_KV = self.answer_logits(rows)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            return f"it does not accept packed rows ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        finally:
            self._attention, self._packs_for_kernel = before
            self._model.train(was_training)
        if not num_layers:
            return "its layers do not use the attention interface"
        return _logits_mismatch(packed_KV.float(), padded_KV.float(), logit_tolerance(self._model))


def _logits_mismatch(packed_KV: Tensor, padded_KV: Tensor, limit: float) -> str:
    """A message if the mean difference exceeds the limit, in standard deviations of the logits; empty otherwise."""
    difference = float((packed_KV - padded_KV).abs().mean() / padded_KV.std(dim=1).mean().clamp(min=1e-30))
    return "" if difference <= limit else f"its logits differ by {difference:.2g} standard deviations (limit {limit:g})"
