"""Regularization for any PyTorch model, optimizer and loop."""

from torchreg import diagnostics, functional, nn, optim
from torchreg.penalties import L1, L2, Penalty, ProximalPenalty
from torchreg.regularizer import PenalizedLoss, Regularizer
from torchreg.schedules import cosine, linear
from torchreg.selectors import ParamInfo, Selector, everything, in_modules, named, weights

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "ParamInfo",
    "PenalizedLoss",
    "Penalty",
    "ProximalPenalty",
    "Regularizer",
    "Selector",
    "cosine",
    "diagnostics",
    "everything",
    "functional",
    "in_modules",
    "linear",
    "named",
    "nn",
    "optim",
    "weights",
]
