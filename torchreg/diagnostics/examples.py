"""An input for a sequence of layers that was given without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchreg.diagnostics.values import check_values
from torchreg.selection.parameters import copied


def as_arguments(owner: str, model: nn.Module, example: Any) -> tuple[Any, ...]:
    """The model's arguments: those given, or for a ``Sequential`` some that fit its first layer.

    Raises:
        TypeError: it is no model, or one that is no ``Sequential`` comes without an example.
        ValueError: a parameter has no values, or no square map and no few features were found that the layers take.
    """
    check_values(owner, model)
    if example is not None:
        return tuple(example) if isinstance(example, tuple | list) else (example,)
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise TypeError(
            f"{owner}: model must be a torch.nn.Sequential or come with an example of its input, "
            f"got {type(model).__name__}: {owner}(model, x)"
        )
    first: Any = next((m for m in model.modules() if hasattr(m, "weight") and not list(m.children())), None)
    if first is None:
        return (torch.zeros(2, 1),)
    with torch.no_grad():
        bare = copied(model).eval().to("meta")
        for shape in _shapes(first):
            if _takes(bare, torch.zeros(shape, device="meta", dtype=first.weight.dtype)):
                return (torch.zeros(shape, device=first.weight.device, dtype=first.weight.dtype),)
    raise ValueError(
        f"{owner}: found no input that the Sequential takes: give an example of its input, {owner}(model, x)"
    )


def _shapes(layer: Any) -> Iterator[tuple[int, ...]]:
    """Shapes that the layer takes, with a batch of two; maps of a common size first, so that few of them are runs."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        channels, dims = layer.in_channels, layer.weight.ndim - 2
        yield from ((2, channels, *[side] * dims) for side in [*range(7, 300), *range(1, 7)])
        return
    features = getattr(layer, "in_features", getattr(layer, "num_features", layer.weight.shape[-1]))
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
        dims = 2 if isinstance(layer, nn.BatchNorm2d) else 3
        yield from ((2, features, *[side] * dims) for side in [*range(7, 300), *range(1, 7)])
        return
    yield 2, features
    yield from ((2, places, features) for places in range(2, 65))
    yield from ((2, one, other, features) for one in range(2, 17) for other in range(2, 17))


def _takes(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x)
    except Exception:  # whatever a layer says to an unsuitable shape
        return False
    return True
