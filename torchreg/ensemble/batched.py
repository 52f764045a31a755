"""Stacks of plain perceptrons as batched matrix products, which are faster than ``vmap``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchreg import functional as f
from torchreg.nn.dropout import AlphaDropout, Dropout, GaussianDropout

_DROPOUTS = (AlphaDropout, Dropout, GaussianDropout)
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh, nn.Identity)


def plain_layers(model: nn.Module, args: Sequence[Any], kwargs: Any, shared: bool) -> list[nn.Module] | None:
    """The layers of a sequence of linear, elementwise and dropout layers for vectors; None for other models."""
    if type(model) is not nn.Sequential or kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    layers = list(model)
    ndim = args[0].ndim - (not shared)
    is_flat = ndim == 2 or (ndim > 2 and bool(layers) and type(layers[0]) is nn.Flatten)
    return layers if is_flat and not _is_hooked(model) and all(map(_is_plain, layers)) else None


def batched_forward(layers: Sequence[nn.Module], y: Tensor) -> Tensor:
    """The outputs ``(members, batch, outputs)`` of layers with stacked weights, of inputs ``(members, batch, ...)``."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.transpose(1, 2)
            y = torch.bmm(y, weight) if layer.bias is None else torch.baddbmm(layer.bias.unsqueeze(1), y, weight)
        elif isinstance(layer, _DROPOUTS):
            y = _dropped(layer, y)
        else:
            y = y.flatten(2) if isinstance(layer, nn.Flatten) else layer(y)
    return y


def _dropped(layer: AlphaDropout | Dropout | GaussianDropout, y: Tensor) -> Tensor:
    """Each member's part with its own mask, of the shape that it has alone."""
    if not layer.training or layer.p == 0:
        return y
    if type(layer) is Dropout and layer.noise_shape is None and isinstance(layer.generator, f.Generators):
        return f.drop_by_member(y, layer.p, layer.generator)
    parts = []
    for member, part in enumerate(y.unbind()):
        with f.computing(member):
            parts.append(layer(part))
    return torch.stack(parts)


def _is_plain(layer: nn.Module) -> bool:
    """Whether the layer is exactly of such a type, has no hooks, and does not overwrite its input."""
    if _is_hooked(layer) or getattr(layer, "inplace", False):
        return False
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) in (nn.Linear, *_ELEMENTWISE, *_DROPOUTS)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
