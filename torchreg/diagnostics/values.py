"""Models whose parameters have values, which all diagnostics need."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy


def check_values(owner: str, model: object) -> None:
    """Refuses what is no module, and a module some of whose parameters have no values.

    Raises:
        TypeError: it is no module.
        ValueError: a parameter is lazy, or on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: model must be a torch.nn.Module, got {type(model).__name__}")
    for name, param in model.named_parameters():
        if is_lazy(param):
            raise ValueError(f"{owner}: {name} has no shape yet: run one batch through the lazy model first")
        if param.is_meta:
            raise ValueError(
                f"{owner}: {name} must have values, it is on the meta device: move the model by to_empty(device=...), "
                "and load or initialize its weights first"
            )
