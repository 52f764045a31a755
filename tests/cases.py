"""The one table of cases: tests that run over penalties, modes or optimizers draw them from here.

A new penalty is one row in ``PENALTIES``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from torchreg import L1, L2, Penalty
from torchreg.optim import SGDW, AdamW


@dataclass(frozen=True)
class PenaltyCase:
    """A penalty with its value written out a second time, in torch's own operations."""

    penalty: Penalty
    formula: Callable[[Tensor], Tensor]
    exact_zeros: bool  # whether the proximal operator makes small weights exactly zero


PENALTIES = [
    PenaltyCase(L1(0.3), lambda w: 0.3 * w.abs().sum(), exact_zeros=True),
    PenaltyCase(L2(0.7), lambda w: 0.35 * (w * w).sum(), exact_zeros=False),
    PenaltyCase(L1(0.2) + L2(0.5), lambda w: 0.2 * w.abs().sum() + 0.25 * (w * w).sum(), exact_zeros=True),
]


class NoProx(Penalty):
    """A user's own penalty, without a proximal operator."""

    def value(self, w: Tensor) -> Tensor:
        return w.pow(4).sum()

    def gradient(self, w: Tensor) -> Tensor:
        return 4 * w**3


SILENT = [L1(0.0), L2(0.0), L1(0.0) + L2(0.0)]  # of strength 0: they must leave every bit alone

OPTIMIZERS = {
    "SGD-momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "SGD-nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW-single": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, foreach=False),
    "AdamW-foreach": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, foreach=True),
    "AdamW-fused": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, fused=True),
}
FUSED = {
    "SGD-fused": partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "AdamW-fused": OPTIMIZERS["AdamW-fused"],
}

STEP_MODES = ("grad", "decoupled", "prox")  # those that act in the optimizer's step
MODES = ("loss", *STEP_MODES)

IMPLEMENTATIONS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
DECOUPLED = {
    "SGDW": (SGDW, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "SGDW-nesterov": (SGDW, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": 0.01}),
    "AdamW-amsgrad": (AdamW, torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
}
COUPLINGS = ("lr", "schedule", "independent")

each_penalty = pytest.mark.parametrize("case", PENALTIES, ids=lambda case: repr(case.penalty))
each_silent = pytest.mark.parametrize("penalty", SILENT, ids=repr)
each_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_fused = pytest.mark.parametrize("make_optimizer", FUSED.values(), ids=FUSED.keys())
each_mode = pytest.mark.parametrize("mode", MODES)
each_step_mode = pytest.mark.parametrize("mode", STEP_MODES)
each_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
each_decoupled = pytest.mark.parametrize(("ours", "base", "options"), DECOUPLED.values(), ids=DECOUPLED.keys())
