"""How the weight decay of a step follows from the learning rate: the rate of each coupling, and what it has to know."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchreg.hooks import Group, scalar
from torchreg.optim.options import Coupling

_OF_PEAK = ("independent", "schedule", "corrected", "timescale")  # those that divide by the largest learning rate
_OF_STEPS = ("independent", "schedule", "constant")  # those whose decay is the share that a step takes
_FULL = (*_OF_STEPS, "timescale")  # those whose rate may be 1
_ROUNDING = 1 + 1e-5  # schedulers reach the largest learning rate with a rounding error


def rate(group: Group, lr: Any, one: Any) -> Any:
    """The :math:`r_t` of the group; ``lr`` and ``one`` are 0 if the step is skipped."""
    if group["coupling"] == "lr":
        return lr
    if group["coupling"] == "constant":
        return one
    share = scalar(group["lr"]) / _peak(group)
    if not is_readable(share):
        share = share.clamp(max=1)
    if group["coupling"] == "timescale":
        return share * one / group["timescale"]
    return share * (lr if group["coupling"] == "corrected" else one)


def remember_lr(group: Group) -> None:
    """Keeps the learning rate with which the group begins, for couplings that divide by it."""
    # Not as "initial_lr": a scheduler that is created later, after lr was changed by hand, would use it.
    lr = group["lr"]
    group.setdefault("decay_lr", lr.clone() if isinstance(lr, Tensor) else lr)


def _peak(group: Group) -> Any:
    """The largest learning rate of the group's schedule, as far as the group shows it."""
    return scalar(group.get("max_lr", group.get("initial_lr", group.get("decay_lr"))))


def is_readable(value: float | Tensor) -> bool:
    """Whether the value can be read without waiting for a device, and without ending a compiled graph."""
    return not isinstance(value, Tensor) or (value.device.type == "cpu" and not torch.compiler.is_compiling())


# -- what is refused ------------------------------------------------------------------------------------------------


def check_default(owner: str, default: float, coupling: Coupling) -> None:
    """Raises ``ValueError`` if the base's decay, which is for coupling "lr", would be the share of a step."""
    if coupling in _OF_STEPS and default > 0:
        raise ValueError(
            f"{owner}: weight_decay must be given with coupling {coupling!r}, where it is the share of the weights "
            f"that a step takes: the default {default} is for coupling 'lr', which multiplies it by lr"
        )


def check_group(owner: str, group: Group) -> None:
    """Raises ``ValueError`` if the group's options are not what its coupling needs."""
    coupling = group["coupling"]
    if coupling in _OF_PEAK and group.get("max_lr", group["lr"]) == 0:
        raise ValueError(f"{owner}: coupling {coupling!r} divides by the initial lr, which must be > 0, got 0")
    check_decay(owner, group["weight_decay"], coupling)
    if coupling == "timescale":
        _check_timescale(owner, group)


def check_decay(owner: str, decay: float | Tensor, coupling: Coupling) -> None:
    """Raises ``ValueError`` if the decay would not shrink the weights."""
    if not is_readable(decay):
        return
    if not 0 <= decay < math.inf:
        raise ValueError(f"{owner}: weight_decay must be finite and >= 0, got {decay!r}")
    if coupling in _FULL and decay > 1:
        raise ValueError(
            f"{owner}: weight_decay must be at most 1 with coupling {coupling!r}, where a step multiplies the weights "
            f"by as little as 1 - weight_decay, got {decay!r}"
        )


def check_rate(owner: str, group: Group) -> None:
    """Raises ``ValueError`` if a coupling that divides by the largest learning rate does not know it."""
    if group["coupling"] not in _OF_PEAK:
        return
    if group["coupling"] == "timescale":
        _check_timescale(owner, group)
    lr, peak = group["lr"], _peak(group)
    if is_readable(lr) and is_readable(peak) and not (peak > 0 and lr <= peak * _ROUNDING):
        raise ValueError(
            f"{owner}: lr must not be above its largest value with coupling {group['coupling']!r}, got {lr!r} and "
            f"{peak!r}: set 'max_lr' in the parameter group to the largest lr of its schedule"
        )


def _check_timescale(owner: str, group: Group) -> None:
    steps, decay = group.get("timescale"), group["weight_decay"]
    if isinstance(steps, bool) or not isinstance(steps, int | float) or not steps >= 1:
        raise ValueError(f"{owner}: timescale must be a number of steps >= 1 with coupling 'timescale', got {steps!r}")
    if is_readable(decay) and decay not in (0, 1):
        raise ValueError(
            f"{owner}: weight_decay must be 1 or 0 with coupling 'timescale', where timescale sets the strength, "
            f"got {decay!r}"
        )
