"""One weight under weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from pictures.style import BLUE, FAINT, figure, label_ends
from torchreg.optim import SGDW
from torchreg.optim.decoupled import Coupling

STEPS = 200
RATES = {
    "constant learning rate": lambda step: 1.0,
    "learning rate falls in steps": lambda step: 0.1 ** (2 * step // STEPS),
    "cosine learning rate": lambda step: 0.5 + 0.5 * math.cos(math.pi * step / STEPS),
}


def decayed(
    rate: Callable[[int], float] = lambda step: 1.0,
    gradient: Callable[[float], float] = lambda w: 0.0,
    start: float = 1.0,
    lr: float = 0.5,
    **form: Any,
) -> list[float]:
    """A weight after each step of SGDW with a gradient and a learning rate of ``lr * rate``."""
    weight = nn.Parameter(torch.tensor([start]))
    optimizer = SGDW([weight], lr=lr, **({"weight_decay": 0.01} | form))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    sizes = [start]
    for _ in range(STEPS):
        weight.grad = torch.full_like(weight, gradient(sizes[-1]))
        optimizer.step()
        scheduler.step()
        sizes.append(weight.item())
    return sizes


def couplings(shown: str) -> None:
    """A weight without a gradient under three schedules; one coupling in blue, others faint."""
    alike = (
        "schedule",
        "independent" if shown == "timescale" else "timescale",
    )  # one rule, so one curve
    rules = [name for name in get_args(Coupling) if name not in alike]
    order = sorted(rules, key=lambda coupling: coupling == shown)  # that one on top
    for title, rate in RATES.items():
        axes = figure(f"A weight without a gradient, {title}, each coupling", 2.35, 2.3)
        ends: dict[float, str] = {}
        for coupling in order:
            strength = (
                {"weight_decay": 1.0, "timescale": 100} if coupling == "timescale" else {}
            )
            sizes = decayed(rate, coupling=coupling, **strength)
            color, width = (BLUE, 2.2) if coupling == shown else (FAINT, 1.2)
            axes.plot(sizes, color=color, lw=width)
            end = round(sizes[-1], 3)
            ends[end] = f"{coupling},\n{ends[end]}" if end in ends else coupling
        axes.set(title=title, xlabel="step", xticks=(0, 100, 200), yticks=(0, 0.5, 1))
        axes.set(xlim=(0, STEPS), ylim=(0, 1.05))
        names = [(name, BLUE if shown in name else FAINT, end) for end, name in ends.items()]
        label_ends(axes, names)
