"""From logits to the candidates for the next token, ties settled."""

import inspect

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.engines.tree import Candidates
from slick.errors import EngineError

_SPARE_CANDIDATES = 24
"""Candidates fetched beyond top-k, so that ties at its edge are seen and settled by token id."""

_LINES = 16


def candidates_of(logits_NV: Tensor, num: int) -> Candidates:
    """The `num` likeliest tokens of each row: by logit, equal ones by token id, also at the edge.

    Raises:
        EngineError: a logit is not a finite number.
    """
    num_classes = logits_NV.shape[1]
    fetched = min(num + _SPARE_CANDIDATES, num_classes)
    values, ids = (_largest if logits_NV.device.type == "cpu" else _largest_on_gpu)(logits_NV, fetched)
    # Not-a-number counts as the largest, so what is wrong shows among the likeliest.
    _check_finite(values.max(axis=1))
    order = np.lexsort((ids, -values), axis=1)[:, :num]
    ids_NC = np.take_along_axis(ids, order, axis=1)
    values_NC = np.take_along_axis(values, order, axis=1)
    if fetched < num_classes:
        # A tie that reaches past the fetched tokens: only a full sort knows which ids are the lowest.
        for row in np.flatnonzero(values_NC[:, -1] == values.min(axis=1)).tolist():
            sorted_V, by_value = torch.sort(logits_NV[row], descending=True, stable=True)
            values_NC[row], ids_NC[row] = sorted_V[:num].float().cpu().numpy(), by_value[:num].cpu().numpy()
    return values_NC, ids_NC


def log_probabilities_of(logits_NV: Tensor, ids: NDArray[np.int64]) -> Candidates:
    """Log-probabilities of the given tokens in each row, by a softmax over the whole vocabulary in float32.

    Raises:
        EngineError: one is not a finite number.
    """
    chances_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    values = chances_NV[:, torch.from_numpy(ids).to(chances_NV.device)].cpu().numpy()
    _check_finite(values)
    return values, np.broadcast_to(ids, values.shape)


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise EngineError(
            "the model gave logits that are not finite numbers (NaN or infinity), so its answers mean nothing; "
            "load it in float32 or bfloat16, and see that the weights are whole"
        )


def _largest_on_gpu(logits_NV: Tensor, num: int) -> Candidates:
    values, ids = torch.topk(logits_NV, num, dim=1, sorted=False)
    return values.float().cpu().numpy(), ids.cpu().numpy()


def _largest(logits_NV: Tensor, num: int) -> Candidates:
    """The largest `num` of each row in any order, on CPU, where torch takes up to four times as long.

    Of a large vocabulary every `num`th largest stands in a column whose largest is among the `num` largest of all
    columns, if the row is written in lines; so only those columns are searched.
    """
    num_rows, num_classes = logits_NV.shape
    lines, width = _LINES, num_classes // _LINES
    if width <= 2 * num:
        values = logits_NV.float().numpy()
        ids = np.argpartition(values, -num, axis=1)[:, -num:] if num < num_classes else np.arange(num)[None]
        return np.take_along_axis(values, ids, axis=1), np.broadcast_to(ids, (num_rows, num))
    grid = logits_NV[:, : lines * width].view(num_rows, lines, width)
    columns = np.argpartition(grid.amax(1).float().numpy(), -num, axis=1)[:, -num:]
    places = (np.arange(lines)[:, None] * width + columns[:, None]).reshape(num_rows, -1)
    rest = np.broadcast_to(np.arange(lines * width, num_classes), (num_rows, num_classes - lines * width))
    places = np.concatenate([places, rest], axis=1)
    values = torch.gather(logits_NV, 1, torch.from_numpy(places)).float().numpy()
    kept = np.argpartition(values, -num, axis=1)[:, -num:]
    return np.take_along_axis(values, kept, axis=1), np.take_along_axis(places, kept, axis=1)


def takes(model: nn.Module, parameter: str) -> bool:
    """True if the model's forward pass has that parameter."""
    return parameter in inspect.signature(model.forward).parameters
