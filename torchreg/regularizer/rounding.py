"""A warning where a penalty has no effect, because low-precision weights round its changes away."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg import functional as f
from torchreg.functional.sharding import is_sharded
from torchreg.hooks import Group, gradient_scale
from torchreg.penalties import Constraint, Penalty, ProximalPenalty
from torchreg.penalties.joint import whole_of
from torchreg.regularizer.assignment import Assignment
from torchreg.selection.modules import listed

_LOST = 0.5  # the share of changes that must be lost


class Acting(Protocol):
    """What is looked at of a regularizer."""

    schedule: Any
    _listeners: list[Any]

    @property
    def mode(self) -> Any: ...

    @property
    def entries(self) -> Sequence[Assignment]: ...

    def _acting_in(self, optimizer: Optimizer) -> Iterator[tuple[Group, nn.Parameter, Penalty, float | Tensor]]: ...


class RoundingCheck:
    """A listener of a regularizer that looks at the first step of each half-precision parameter, and then leaves.

    The step is taken as large as it will get: with the largest learning rate that a scheduler has noted, and of a
    schedule with the full strength.
    """

    def __init__(self) -> None:
        self._waiting: set[nn.Parameter] | None = None

    @torch.no_grad()
    def __call__(self, regularizer: Acting, optimizer: Optimizer) -> None:
        if torch.compiler.is_compiling():
            return
        if self._waiting is None:
            self._waiting = {
                a.param for a in regularizer.entries if a.is_penalized and a.param.requires_grad and f.is_half(a.param)
            }
        lost = []
        for group, param, penalty, scale in regularizer._acting_in(optimizer) if self._waiting else ():
            if param in self._waiting:
                self._waiting.discard(param)
                factor = float(torch.as_tensor(scale).max())
                factor = factor if regularizer.schedule is None else max(factor, 1.0)
                if not is_sharded(param) and _is_lost(regularizer.mode, optimizer, group, param, penalty, factor):
                    lost.append(param)
        if not self._waiting:  # a new list, because the old one is being gone through
            regularizer._listeners = [each for each in regularizer._listeners if each is not self]
        if lost:
            names = {a.param: a.name for a in regularizer.entries}
            kind = str(lost[0].dtype).removeprefix("torch.")
            warnings.warn(
                f"Regularizer: the penalty of {listed([names[param] for param in lost])} rounds away in mode "
                f"{regularizer.mode!r}, because its changes are too small for {kind}: keep these weights in float32 "
                "and compute under torch.autocast, or raise the strength or the learning rate",
                RuntimeWarning,
                stacklevel=2,
            )


def _is_lost(mode: str, optimizer: Optimizer, group: Group, param: Tensor, penalty: Penalty, scale: float) -> bool:
    """Whether most elements that a step would change in single precision stay as they are in the parameter's."""
    if isinstance(penalty, Constraint) or whole_of(penalty):
        return False  # what is outside moves in every step
    before, w = param, f.wide(param)
    if mode == "grad":
        assert param.grad is not None
        before = param.grad
        if not f.is_half(before) or before.layout != torch.strided:
            return False
        after = f.wide(before) + penalty._gradient_times(w, scale * float(gradient_scale(optimizer)))
    else:
        step = scale * max(float(group[key]) for key in ("lr", "initial_lr", "max_lr") if key in group)
        if mode == "prox":
            assert isinstance(penalty, ProximalPenalty)
            after = penalty.prox(w, step)
        else:
            after = w - penalty._gradient_times(w, step)
    moved = after != f.wide(before)
    lost = moved & (after.to(before.dtype) == before)
    return int(lost.sum()) > _LOST * int(moved.sum())
