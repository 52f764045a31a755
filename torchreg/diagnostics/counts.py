"""Norms of weights, shares of zeros, and compression by zeros."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from torchreg.diagnostics.dead_units import compress
from torchreg.diagnostics.values import check_values
from torchreg.functional.sharding import as_plain
from torchreg.nn import pruned
from torchreg.nn.parametrized import PRUNING, rewriting
from torchreg.selection.parameters import each_parameter
from torchreg.selection.selectors import weights


@torch.no_grad()
def sparsity(model: nn.Module) -> dict[str, float]:
    """The share of exact zeros in each weight that :data:`~torchreg.weights` selects.

    Args:
        model: any module.

    Returns:
        The shares by the parameters' names.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
        >>> sparsity(layer)
        {'weight': 0.75}
    """
    check_values("sparsity", model)
    return {name: 1 - _number(w.count_nonzero()) / max(w.numel(), 1) for name, w in weights_of(model).items()}


@torch.no_grad()
def norms(model: nn.Module) -> dict[str, float]:
    """The Euclidean norm of each weight that :data:`~torchreg.weights` selects.

    Args:
        model: any module.

    Returns:
        The norms by the parameters' names.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> norms(layer)
        {'weight': 5.0}
    """
    check_values("norms", model)
    return {name: _number(torch.linalg.vector_norm(w)) for name, w in weights_of(model).items()}


class Compression(NamedTuple):
    """How many times smaller a model's weights have become, by three counts, and the bytes that the model takes.

    The ratios are infinite if no weight is left.

    Attributes:
        weights: the number of weights, divided by that of nonzero weights.
        units: the number of weights, divided by that of the model without its dead units; None if that is not known.
        bits: 32 bits for each weight, divided by 32 bits for each nonzero weight plus the bits for their positions.
        bytes: the size of the model without its dead units and inputs; None if that is not known.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
        >>> compression(layer).weights
        4.0
    """

    weights: float
    units: float | None
    bits: float
    bytes: int | None


@torch.no_grad()
def compression(model: nn.Module, example: Any = None) -> Compression:
    r"""How much zeros compress a model: by the number of weights, by the remaining units, in bits, and in bytes.

    .. math:: \text{weights} = \frac{\sum_w n_w}{\sum_w k_w}, \qquad
              \text{bits} = \frac{\sum_w 32 n_w}{\sum_w 32 k_w + \log_2 \binom{n_w}{k_w}}

    for weight tensors with :math:`n_w` elements, :math:`k_w` of them not zero. The binomial coefficient counts the bits
    that any code needs at least for the positions. Only the parameters that :data:`~torchreg.weights` selects are
    counted. The bytes are those of the smaller model, in which dead units and inputs are removed:

    .. math:: \text{bytes} = \sum_{w} \min\Big(4 n_w, \; \Big\lceil \frac{n_w}{8} \Big\rceil + 4 k_w\Big) + 4 m

    with a bit for each weight that says whether it is zero, which a weight tensor without zeros does not need, and
    :math:`m` other parameters, such as biases. Which inputs are left is not counted. Layers that learn what to drop
    count as :func:`torchreg.nn.pruned` makes them, and the masks of ``torch.nn.utils.prune`` as permanent ones.

    Args:
        model: any module.
        example: an input of the model, without which ``units`` is known of a ``torch.nn.Sequential`` only; see
            :func:`~torchreg.compress`.

    Raises:
        ValueError: a parameter is lazy or on the meta device.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> model[0].weight.data[1:] = 0
        >>> weights, units, bits, size = compression(model)
        >>> weights, units, round(bits, 2), size
        (1.8, 3.0, 1.75, 36)

    References:
        Utku Evci, Trevor Gale, Jacob Menick, Pablo Samuel Castro, Erich Elsen, "Rigging the Lottery: Making All Tickets
        Winners", ICML 2020 (the bytes, appendix B).
    """
    check_values("compression", model)
    model = _unmasked(pruned(model))
    tensors = list(weights_of(model).values())
    counts = [(w.numel(), int(_number(w.count_nonzero()))) for w in tensors]
    total, kept = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    smaller = _without_dead_units(model, example)
    left = None if smaller is None else sum(w.numel() for w in weights_of(smaller).values())
    places = sum(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for n, k in counts) / math.log(2)
    return Compression(
        weights=_ratio(total, kept),
        units=None if left is None else _ratio(total, left),
        bits=_ratio(32 * total, 32 * kept + places),
        bytes=None if smaller is None else _bytes(smaller),
    )


def _unmasked(model: nn.Module) -> nn.Module:
    """The model, in which the masks of pruning are made permanent."""
    for module in model.modules():
        for name in {name.removesuffix("_mask") for name, _ in module.named_buffers(recurse=False)}:
            if rewriting(module, name) == PRUNING:
                prune.remove(module, name)
    return model


def _bytes(model: nn.Module) -> int:
    """The size of a model without dead units: of each weight a mask and its nonzero values, of the rest all values."""
    ours = weights_of(model).values()
    others = sum(param.numel() for param in model.parameters()) - sum(w.numel() for w in ours)
    return 4 * others + sum(map(_bytes_of, ours))


def _bytes_of(weight: Tensor) -> int:
    """The least of all values, and a bit for each in rows and columns that are not all zero, and those not zero."""
    is_left = as_plain(weight, local=False) != 0
    count = math.prod(
        int(is_left.transpose(0, dim).flatten(1).any(1).sum()) if dim < 2 else size
        for dim, size in enumerate(weight.shape)
    )
    return min(4 * count, -(-count // 8) + 4 * int(is_left.sum()))


def _without_dead_units(model: nn.Module, example: Any) -> nn.Module | None:
    """The model without dead units; without an example None, if no input is found."""
    try:
        return compress(model, example)
    except (TypeError, ValueError):
        if example is not None:
            raise
        return None


def _ratio(whole: float, part: float) -> float:
    return whole / part if part else math.inf if whole else 1.0


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that :data:`~torchreg.weights` selects, by name.

    Example:
        >>> list(weights_of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))))
        ['0.weight']
    """
    return {places[0].name: places[0].param for places in each_parameter(model) if any(map(weights, places))}


def _number(result: Tensor) -> float:
    return as_plain(result, local=False).item()  # of a sharded weight the sum over all processes
