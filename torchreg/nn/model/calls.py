"""A check that dropout layers are called, because some modules only read their rates."""

from __future__ import annotations

import warnings
from collections.abc import Container
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.fx import Proxy

from torchreg.nn.model.rates import held_by, is_torchs
from torchreg.selection.modules import listed

_checked: WeakSet[nn.Module] = WeakSet()  # the modules that a check waits for


class CallCheck:
    """Warns if a module does not call its dropout layers in its first forward pass in training mode.

    It consists of forward hooks, which that pass removes. (Whether a layer is called can only be seen then.)
    """

    def __init__(self, owner: str, holder: nn.Module, layers: dict[nn.Module, str], named: set[str]) -> None:
        self.owner = owner
        self.missing = layers
        self.named = named  # the types for which other checks have warned: a model has many modules of one type
        self.is_running = False
        self._handles = [
            holder.register_forward_pre_hook(self._begin),
            *(layer.register_forward_pre_hook(self._call) for layer in layers),
            holder.register_forward_hook(self._end),
        ]
        _checked.add(holder)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, holder: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.is_running = holder.training and not any(isinstance(arg, Proxy) for arg in args)

    def _call(self, layer: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.missing.pop(layer, None)

    def _end(self, holder: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.is_running:
            return
        self.remove()
        _checked.discard(holder)
        kind = type(holder).__name__
        if self.missing and kind not in self.named:
            self.named.add(kind)
            warnings.warn(
                f"{self.owner}: {listed(list(self.missing.values()))} was not called in a forward pass of its module "
                f"({kind}; others of this type are not named) in training mode: if attention only reads the rate, its "
                "masks are torch's, from the global generator: switch fused attention off (fused_attn=False in timm, "
                "set_attn_implementation('eager') in transformers)",
                stacklevel=2,
            )


def check_calls(owner: str, model: nn.Module, layers: Container[nn.Module]) -> tuple[CallCheck, ...]:
    """A check for each module that holds some of the layers, unless it is torch's own, which calls what it holds."""
    checks, named = [], set[str]()
    for name, holder in model.named_modules():
        if is_torchs(holder) or holder in _checked:
            continue
        held = {child: f"{name}.{key}".strip(".") for key, child in held_by(holder).items() if child in layers}
        if held:
            checks.append(CallCheck(owner, holder, held, named))
    return tuple(checks)
