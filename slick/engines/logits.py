"""From logits to the candidates for the next token, ties settled."""

import inspect

import numpy as np
import torch
from torch import Tensor, nn

from slick.engines.tree import Candidates
from slick.errors import EngineError

_SPARE_CANDIDATES = 24
"""Candidates fetched beyond top-k, so that ties at its edge are seen and settled by token id."""


def candidates_of(logits_NV: Tensor, num: int) -> Candidates:
    """The `num` likeliest tokens of each row: by logit, equal ones by token id, also at the edge.

    Raises:
        EngineError: a logit is not a finite number.
    """
    num_classes = logits_NV.shape[1]
    fetched = min(num + _SPARE_CANDIDATES, num_classes)
    top, top_ids = torch.topk(logits_NV, fetched, dim=1)  # in its own dtype: converting takes longer than the search
    values, ids = top.float().cpu().numpy(), top_ids.cpu().numpy()
    # Not-a-number counts as the largest, so what is wrong shows among the likeliest.
    if not np.isfinite(values[:, 0]).all():
        raise EngineError(
            "the model gave logits that are not finite numbers (NaN or infinity), so its answers mean nothing; "
            "load it in float32 or bfloat16, and see that the weights are whole"
        )
    order = np.lexsort((ids, -values), axis=1)[:, :num]
    ids_NC = np.take_along_axis(ids, order, axis=1)
    values_NC = np.take_along_axis(values, order, axis=1)
    if fetched < num_classes:
        # A tie that reaches past the fetched tokens: only a full sort knows which ids are the lowest.
        for row in np.flatnonzero(values_NC[:, -1] == values[:, -1]).tolist():
            sorted_V, by_value = torch.sort(logits_NV[row], descending=True, stable=True)
            values_NC[row], ids_NC[row] = sorted_V[:num].float().cpu().numpy(), by_value[:num].cpu().numpy()
    return values_NC, ids_NC


def takes(model: nn.Module, parameter: str) -> bool:
    """True if the model's forward pass has that parameter."""
    return parameter in inspect.signature(model.forward).parameters
