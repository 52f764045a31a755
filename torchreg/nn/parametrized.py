"""Layers whose weights are computed from other parameters: weight normalization, pruning, parametrizations."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import parametrize

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PRUNING = "torch.nn.utils.prune"
PARAMETRIZATION = "a parametrization"  # that of torch.nn.utils.parametrize, computed whenever it is read


def rewriting(module: nn.Module, name: str) -> str | None:
    """What computes the tensor of that name from other parameters, or None."""
    if parametrize.is_parametrized(module, name):
        return PARAMETRIZATION
    if hasattr(module, f"{name}_g"):
        return "torch.nn.utils.weight_norm"
    if hasattr(module, f"{name}_orig"):
        return PRUNING if hasattr(module, f"{name}_mask") else "torch.nn.utils.spectral_norm"
    return None


def name_of(module: nn.Module) -> str:
    """The name of its type; a parametrization puts "Parametrized" before it."""
    return type(module).__name__.removeprefix("Parametrized")


def plain_copy(owner: nn.Module, layer: Layer) -> Layer:
    """A copy of the layer whose weight and bias are parameters with the values that act.

    Raises:
        ValueError: they are computed before each forward pass, by the older functions of ``torch.nn.utils``.
    """
    names = ("weight", "bias")
    for name in names:
        if not parametrize.is_parametrized(layer, name) and (why := rewriting(layer, name)):
            raise ValueError(
                f"{name_of(owner)}: pruned() needs the layer's {name} as a parameter, it is behind {why}: remove that"
            )
    copied, kind = copy.deepcopy(layer), parametrize.type_before_parametrizations(layer)
    if parametrize.is_parametrized(copied):
        # remove_parametrizations() would change the class, which the copy shares with the layer.
        values = {n: getattr(copied, n).detach().clone() for n in names if parametrize.is_parametrized(copied, n)}
        del copied.parametrizations
        copied.__class__ = kind
        for name, value in values.items():
            setattr(copied, name, nn.Parameter(value))
    return copied
