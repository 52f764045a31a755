"""What an optimizer must be for a regularizer to act in its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from torchreg.entries import Entry, listed
from torchreg.penalties import Term


def check_host(optimizer: Optimizer, entries: Sequence[Entry], mode: str) -> None:
    """Refuses an optimizer in whose steps the entries' penalties could not act, or would act twice.

    Raises:
        ValueError: it does not hold a penalized parameter, decays one that carries an L2, or makes no plain steps.
    """
    held = {p: group for group in optimizer.param_groups for p in group["params"]}
    chosen = [e for e in entries if e.is_penalized]
    missing = [e.name for e in chosen if e.param not in held]
    if missing:
        raise ValueError(
            f"Regularizer: the optimizer must hold every penalized parameter, it does not hold "
            f"{listed(missing)}: pass them to the optimizer, or narrow select"
        )
    for entry in chosen:
        decay = held[entry.param].get("weight_decay", 0)
        ridges = [t for t in entry.terms if isinstance(t, Term) and t.is_ridge and t.strength > 0]
        if decay != 0 and ridges:
            raise ValueError(
                f"Regularizer: {entry.name} would decay twice, by {ridges[0]} and by weight_decay={decay} of "
                f"{type(optimizer).__name__}: pass weight_decay=0 to the optimizer or drop the {ridges[0]}"
            )
    if mode != "grad" and isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            f"Regularizer: mode {mode!r} must act between the steps of a first-order method, LBFGS makes many "
            "steps in one: use mode 'grad' or 'loss'"
        )
    if mode != "grad" and any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(
            f"Regularizer: mode {mode!r} needs the optimizer's lr, {type(optimizer).__name__} has none: "
            "use mode 'grad' or 'loss'"
        )
