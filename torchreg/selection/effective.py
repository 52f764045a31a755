"""Weights that a function computes from the parameters of a module, such as the product of two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from torchreg.selection.computed import ComputedWeight, evaluating, whole
from torchreg.selection.layers import without_wrappers
from torchreg.selection.modules import ModuleFilter, listed, select_modules
from torchreg.selection.parameters import ComputedInfo

Function = Callable[[Any], Tensor]  # of a module


@final
class Called(nn.Module):
    """A function of a module, as a module without arguments."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> Tensor:
        return self.function(self.module)


def effective_weights(
    owner: str, model: nn.Module, function: Function, modules: ModuleFilter | tuple[ModuleFilter, ...] | None
) -> Iterator[ComputedInfo]:
    """What the function makes of each of the modules; without ``modules`` of the model within its wrappers.

    Raises:
        ValueError: the function does not make a tensor of a module that can be differentiated by its parameters.
        TypeError: it returns something else.
    """
    named = dict([without_wrappers(model)]) if modules is None else select_modules(owner, model, modules)
    called = name_of(function)
    for name, module in named.items():
        parent = model.get_submodule(name.rpartition(".")[0]) if name else None
        where = f"{name or 'the model'} ({type(module).__name__})"
        own = f"{called or 'effective'}()"
        originals = _used(owner, where, Called(module, function))
        how = f"{called or 'a function'} of {listed(list(originals))}"
        weight = ComputedWeight(module, own, how, Called(module, function), originals)
        full = own if modules is None or not name else f"{name}.{own}"
        yield ComputedInfo(full, weight, module, parent, None)


def name_of(function: Function) -> str | None:
    """The function's name; None if it has none, as a lambda."""
    name = getattr(function, "__name__", "")
    return name if name.isidentifier() else None


def _used(owner: str, where: str, called: Called) -> tuple[str, ...]:
    """The parameters, below the module, that the function's result depends on, also those that are frozen."""
    params = dict(called.named_parameters())
    if any(map(is_lazy, params.values())):
        raise ValueError(f"{owner}: {where} has no shape yet: run one batch through the lazy model first")
    params = {name: param for name, param in params.items() if param.is_floating_point() or param.is_complex()}
    # Whole ones of what is sharded over processes: a user's function sees ordinary tensors.
    probes = {param: whole(param.detach()).requires_grad_() for param in params.values()}
    weight: object = _result(owner, where, called, probes)
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{owner}: function must return one tensor, got a {type(weight).__name__} for {where}: make one "
            "Regularizer for each tensor"
        )
    if not (weight.is_floating_point() or weight.is_complex()):
        raise ValueError(
            f"{owner}: function must return a tensor that can be differentiated, got {weight.dtype} for {where}: "
            "return the weights themselves"
        )
    if weight.layout != torch.strided:
        raise ValueError(
            f"{owner}: function must return a dense tensor, got layout {weight.layout} for {where}: call to_dense()"
        )
    if not weight.requires_grad:
        raise ValueError(
            f"{owner}: function must return a tensor that can be differentiated by parameters of the module, got one "
            f"that depends on none for {where}: compute it from them without detach(), .data and no_grad()"
        )
    found = torch.autograd.grad(weight, list(probes.values()), torch.ones_like(weight), allow_unused=True)
    used = tuple(
        name.removeprefix("module.") for name, gradient in zip(params, found, strict=True) if gradient is not None
    )
    if _result(owner, where, called, {param: probe.detach() for param, probe in probes.items()}).requires_grad:
        raise ValueError(
            f"{owner}: function must use only parameters of the module that it is called with, got others beside "
            f"{listed(list(used)) if used else 'none'} of {where}: choose with modules one that holds all"
        )
    return used


def _result(owner: str, where: str, called: Called, values: dict[nn.Parameter, Tensor]) -> Tensor:
    """What the function returns with these values in place of the parameters, and with copies of the buffers."""
    given: dict[str, Tensor] = {}
    for prefix, module in called.named_modules():  # each module once, but its tied parameters in each place
        own = module._parameters.items()
        given |= {f"{prefix}.{name}": values[p] for name, p in own if p is not None and p in values}
        given |= {f"{prefix}.{name}": b.clone() for name, b in module._buffers.items() if b is not None}
    try:
        with torch.enable_grad(), evaluating(called):
            result: Tensor = functional_call(called, given, (), tie_weights=False)
    except Exception as error:  # whatever the user's function raises
        first = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{owner}: function must return a tensor for each module, for {where} it raised {type(error).__name__}: "
            f"{first.rstrip('.')}: change the function, or choose modules for which it is made"
        ) from error
    return result
