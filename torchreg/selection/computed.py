"""Weights that a layer computes from other tensors in each forward pass.

Three protocols of ``torch.nn.utils`` do that: ``parametrize``, with ``parametrizations`` such as ``weight_norm``;
forward pre-hooks with a method ``compute_weight``, as the older ``weight_norm`` and ``spectral_norm`` use them; and
the masks of ``prune``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

_SUFFIXES = ("orig", "g", "v", "bar")  # of the tensors that hooks store instead of a weight


@final
class ComputedWeight:
    """A weight that a layer computes from stored tensors.

    Args:
        layer: the module that uses the weight.
        own_name: the weight's name in the layer.
        how: what computes it, for messages.
        compute: a module that returns the weight when it is called without arguments.
        originals: the names below the layer of what is stored instead of the weight.
        members: of a stack, the number of its members.

    Attributes:
        stored: the parameters that the weight depends on, also those of the parametrization itself.
    """

    def __init__(
        self,
        layer: nn.Module,
        own_name: str,
        how: str,
        compute: nn.Module,
        originals: tuple[str, ...],
        members: int | None = None,
    ) -> None:
        self.layer, self.own_name, self.how = layer, own_name, how
        self.compute, self.originals, self.members = compute, originals, members
        is_whole = isinstance(compute, parametrize.ParametrizationList)  # it may have parameters of its own
        self.stored = tuple(compute.parameters() if is_whole else map(layer.get_parameter, originals))

    def __call__(self) -> Tensor:
        """The weight of the last forward pass, differentiable by the stored tensors.

        It is computed as in evaluation mode, with copies of the buffers: power iterations, random masks and running
        statistics of the layer stay as they are. It has the precision of the stored tensors, also under autocast.
        """
        device = self.stored[0].device.type
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with torch.enable_grad(), exact, evaluating(self.compute):
            buffers = {name: buffer.clone() for name, buffer in self.compute.named_buffers()}
            if self.members is None:
                return self._computed(
                    buffers | self._gathered(), ties=False
                )  # torch would not put back those of a module in two places
            state = buffers | dict(self.compute.named_parameters())
            own = ({name: value[m] for name, value in state.items()} for m in range(self.members))
            return torch.stack([self._computed(values) for values in own])

    def _gathered(self) -> dict[str, Tensor]:
        """Parameters that are sharded over processes, whole, for a user's function, which sees ordinary tensors."""
        if isinstance(self.compute, parametrize.ParametrizationList | _Hooked):
            return {}
        sharded = {param: whole(param) for param in self.stored if hasattr(param, "full_tensor")}
        places = self.compute.named_modules() if sharded else ()
        own = ((f"{prefix}.{name}", p) for prefix, m in places for name, p in m._parameters.items())
        return {name: sharded[param] for name, param in own if param in sharded}

    def _computed(self, state: dict[str, Any], ties: bool = True) -> Tensor:
        weight: Tensor = functional_call(self.compute, state, (), tie_weights=ties)
        return weight

    @torch.no_grad()
    def kept(self) -> Tensor | None:
        """Which elements of the weight are the stored elements, if all others are 0 whatever is stored; else None.

        That is so for the masks of pruning and for parametrizations that change nothing. It is found out with two
        random tensors in place of the stored one.
        """
        if len(self.stored) != 1 or len(self.originals) != 1:
            return None
        (stored,) = self.stored
        (name,) = (name for name, param in self.compute.named_parameters() if param is stored)
        draw = torch.Generator().manual_seed(0)
        found = []
        for spread in (1.0, 3.0):
            probe = (spread * torch.randn(stored.shape, generator=draw, device="cpu")).to(stored)
            try:
                with evaluating(self.compute):
                    buffers = {name: buffer.clone() for name, buffer in self.compute.named_buffers()}
                    weight = self._computed(buffers | {name: probe})
            except Exception:  # whatever a parametrization raises for a tensor that is none of its own
                return None
            mask = weight != 0
            if weight.shape != probe.shape or not torch.equal(weight, torch.where(mask, probe, 0)):
                return None
            found.append(mask | (probe == 0))
        return found[0] if torch.equal(*found) else None


class _Hooked(nn.Module):
    """What a forward pre-hook of a layer computes."""

    def __init__(self, layer: nn.Module, hook: Any) -> None:
        super().__init__()
        self.layer, self.hook = layer, hook

    def forward(self) -> Tensor:
        hook = self.hook
        if isinstance(hook, BasePruningMethod):
            weight: Tensor = hook.apply_mask(self.layer)
        elif "do_power_iteration" in signature(hook.compute_weight).parameters:
            weight = hook.compute_weight(self.layer, do_power_iteration=False)
        else:
            weight = hook.compute_weight(self.layer)
        return weight


def computed_weights(layer: nn.Module, members: int | None = None) -> Iterator[ComputedWeight]:
    """The weights that the layer computes from parameters, in any of the protocols."""
    if parametrize.is_parametrized(layer):
        for name, compute in layer.parametrizations.items():  # type: ignore[union-attr, operator]
            how = ", ".join(type(step).__name__.lstrip("_") for step in compute)
            names = ["original"] if compute.is_tensor else [f"original{i}" for i in range(compute.ntensors)]
            originals = tuple(f"parametrizations.{name}.{own}" for own in names if own in compute._parameters)
            if next(compute.parameters(), None) is not None:
                yield ComputedWeight(layer, name, how, compute, originals, members)
    for hook in layer._forward_pre_hooks.values():
        is_mask = isinstance(hook, BasePruningMethod)
        if is_mask or callable(getattr(hook, "compute_weight", None)):
            name = getattr(hook, "_tensor_name" if is_mask else "name", None)
            originals = tuple(own for s in _SUFFIXES if layer._parameters.get(own := f"{name}_{s}") is not None)
            if originals and name not in layer._parameters:
                yield ComputedWeight(layer, str(name), type(hook).__name__, _Hooked(layer, hook), originals, members)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; of one that is sharded over processes the whole, gathered."""
    if not hasattr(tensor, "full_tensor"):  # which DTensors have; some builds of torch lack them
        return tensor
    gathered: Tensor = tensor.full_tensor()
    return gathered


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, for a while."""
    training = [each for each in module.modules() if each.training]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True
