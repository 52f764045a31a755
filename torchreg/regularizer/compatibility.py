"""Checks of the optimizers that a regularizer is attached to."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.penalties import Term
from torchreg.regularizer.assignment import Assignment
from torchreg.schedules import Schedule
from torchreg.selection.modules import listed


def check_attachable(
    optimizers: Sequence[Optimizer],
    *,
    attached: Sequence[Optimizer],
    mode: str,
    schedule: Schedule | None,
    every: int,
    has_joint: bool,
) -> None:
    """Raises an error unless a regularizer can be attached to optimizers of that kind and number.

    Args:
        optimizers: what ``attach()`` was called with.
        attached: what the regularizer is attached to already.
        mode: the regularizer's.
        schedule: the regularizer's.
        every: the regularizer's.
        has_joint: whether one of its penalties acts on several weights at once.

    Raises:
        TypeError: one of the arguments is no optimizer, or there is none.
        ValueError: the regularizer is attached already, has nothing to attach, or needs a single optimizer.
    """
    for optimizer in optimizers or (None,):
        if not isinstance(optimizer, Optimizer):
            got = "nothing" if optimizer is None else type(optimizer).__name__
            raise TypeError(
                f"Regularizer: attach() takes a torch.optim.Optimizer, or several, got {got}: write "
                "attach(optimizer) or attach(first, second)"
            )
        if "_optimizer_step_pre_hooks" not in vars(optimizer):  # it only looks like one, as accelerate's does
            raise TypeError(
                f"Regularizer: attach() takes the optimizer itself, got the wrapper {type(optimizer).__name__}: "
                "attach before it is wrapped"
            )
    if attached:
        raise ValueError(
            f"Regularizer: already attached to {type(attached[0]).__name__}: call remove() first, "
            "or make a second Regularizer"
        )
    if mode == "loss" and schedule is None:
        raise ValueError(
            "Regularizer: mode 'loss' has nothing to attach: add value() to the loss or use penalize(criterion), "
            "or choose mode 'grad', 'decoupled' or 'prox'"
        )
    if every > 1 and len(optimizers) > 1:
        raise ValueError(
            f"Regularizer: every={every} counts the steps of one optimizer, got {len(optimizers)}: make a "
            "Regularizer for each, with select"
        )
    if has_joint and len(optimizers) > 1:
        raise ValueError(
            f"Regularizer: what acts on several weights together acts in the steps of one optimizer, got "
            f"{len(optimizers)}: make a Regularizer for each, with select"
        )


def check_optimizers(optimizers: Sequence[Optimizer], assignments: Sequence[Assignment], mode: str) -> None:
    """Raises ``ValueError`` for optimizers in whose steps a mode cannot act on the penalized parameters.

    Raises:
        ValueError: a penalized parameter is in none or in several of the optimizers, or an optimizer is LBFGS.
    """
    held = Counter(p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    twice = [a.name for a in assignments if a.is_penalized and any(held[p] > 1 for p in a.stored)]
    if twice:
        raise ValueError(
            "Regularizer: each penalized parameter must be in one optimizer, got several that have "
            f"{listed(twice)}: give each optimizer parameters of its own"
        )
    missing = [a.name for a in assignments if a.is_penalized and not any(p in held for p in a.stored)]
    if missing:
        is_other = not any(p in held for a in assignments for p in a.stored)
        advice = (
            f"{type(optimizers[0]).__name__} trains another model, such as a copy: make the Regularizer for that one"
            if is_other
            else "pass them to the optimizer, or narrow select"
        )
        raise ValueError(
            f"Regularizer: the optimizer must hold every penalized parameter, it does not hold "
            f"{listed(missing)}: {advice}"
        )
    for optimizer in optimizers:
        if mode != "grad" and isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                f"Regularizer: mode {mode!r} must act between the steps of a first-order method, LBFGS makes many "
                "steps in one call: use mode 'grad' or 'loss'"
            )


def check_new(optimizers: Sequence[Optimizer], before: Sequence[Assignment], now: Sequence[Assignment]) -> None:
    """Warns of penalized parameters that came into the model after ``attach()`` and that no optimizer holds.

    Raises:
        ValueError: one of the new parameters would decay twice.
    """
    known = {param for a in before for param in a.stored}
    new = [a for a in now if a.is_penalized and known.isdisjoint(a.stored)]
    held = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    missing = [a.name for a in new if held.isdisjoint(a.stored)]
    if missing:
        warnings.warn(
            f"Regularizer: {listed(missing)} came into the model after attach(), and {type(optimizers[0]).__name__} "
            "does not hold them: pass them to its add_param_group(), else they are neither trained nor penalized",
            stacklevel=2,
        )
    for optimizer in optimizers:
        check_decay(optimizer, new)


def check_decay(optimizer: Optimizer, assignments: Sequence[Assignment]) -> None:
    """Raises ``ValueError`` if a parameter would decay twice: by an L2 and by the optimizer's weight decay.

    An L2 on an effective weight is another penalty than weight decay of the parameters that it depends on.
    """
    decays = {p: group.get("weight_decay", 0) for group in optimizer.param_groups for p in group["params"]}
    for assignment in assignments:
        ridges = [t for t in assignment.terms if isinstance(t, Term) and t._ridge > 0]
        decay = next((decays[p] for p in assignment.stored if decays.get(p)), 0)
        if assignment.is_penalized and ridges and decay and not assignment.is_effective:
            raise ValueError(
                f"Regularizer: {assignment.name} would decay twice, by {ridges[0]} and by weight_decay={decay} of "
                f"{type(optimizer).__name__}: pass weight_decay=0 to the optimizer or drop the {ridges[0]}"
            )


class Decays:
    """The weight decay of each group of optimizers when it was last checked.

    A new group or a schedule can bring weight decay beside an L2 after ``attach()``.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._seen = {optimizer: _decays(optimizer) for optimizer in optimizers}

    def check(self, optimizer: Optimizer, assignments: Sequence[Assignment]) -> None:
        """Raises ``ValueError`` if a parameter decays twice since the weight decay changed."""
        if _decays(optimizer) != self._seen[optimizer]:
            check_decay(optimizer, assignments)
            self._seen[optimizer] = _decays(optimizer)


def _decays(optimizer: Optimizer) -> list[float | Tensor]:
    decays = [group.get("weight_decay", 0) for group in optimizer.param_groups]
    return [d.item() if isinstance(d, Tensor) and d.device.type == "cpu" else d for d in decays]


def warn_of_frozen(assignments: Sequence[Assignment]) -> None:
    """Warns if all penalized parameters are frozen. They may be trained later."""
    penalized = [a.name for a in assignments if a.penalty is not None]
    if penalized and not any(a.is_penalized for a in assignments):
        warnings.warn(
            f"Regularizer: every penalized parameter is frozen ({listed(penalized)}), so that the penalty has no "
            "effect now: call requires_grad_(True) on those to be trained, or select parameters that are trained",
            stacklevel=3,
        )


def minimized(optimizer: Optimizer) -> str:
    """What mode "prox" minimizes with the optimizer, as part of a sentence; empty if that is loss + penalty.

    A proximal step of size ``lr`` belongs to a gradient step of size ``lr``. With momentum the steps of a constant
    gradient are ``(1 - dampening) / (1 - momentum)`` times as large.
    """
    if not isinstance(optimizer, (torch.optim.SGD, torch.optim.ASGD)):
        return ", whose steps are not lr * gradient: not the minimum of loss + penalty"
    groups = [group for group in optimizer.param_groups if group.get("momentum")]
    shares = {(1 - group["momentum"]) / (1 - group["dampening"]) for group in groups if group["dampening"] != 1}
    found = [f"loss + {share:.3g} * penalty" for share in sorted(shares - {1.0})]
    return f", whose momentum makes it the minimum of {' or '.join(found)}" if found else ""
