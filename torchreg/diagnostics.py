"""What regularization did to a model: how large its weights are, and how many are zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchreg.parameters import each_parameter
from torchreg.selectors import weights
from torchreg.shards import plain


@torch.no_grad()
def sparsity(model: nn.Module) -> dict[str, float]:
    """The fraction of exact zeros in each weight that :data:`~torchreg.selectors.weights` selects.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
        >>> sparsity(layer)
        {'weight': 0.75}
    """
    return {name: 1 - _number(w.count_nonzero()) / max(w.numel(), 1) for name, w in weights_of(model).items()}


@torch.no_grad()
def norms(model: nn.Module) -> dict[str, float]:
    """The Euclidean norm of each weight that :data:`~torchreg.selectors.weights` selects.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> norms(layer)
        {'weight': 5.0}
    """
    return {name: _number(torch.linalg.vector_norm(w)) for name, w in weights_of(model).items()}


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters, by name, that :data:`~torchreg.selectors.weights` selects."""
    return {places[0].name: places[0].param for places in each_parameter(model) if any(map(weights, places))}


def _number(result: Tensor) -> float:
    return plain(result, alone=False).item()  # of a weight spread over processes, the parts must be joined first
