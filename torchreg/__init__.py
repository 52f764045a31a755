"""Regularization for any PyTorch model, optimizer and loop."""

# Imported as themselves, so that they are attributes, but not in __all__: import * must not shadow torch's nn.
from torchreg import diagnostics as diagnostics
from torchreg import functional as functional
from torchreg import nn as nn
from torchreg import optim as optim
from torchreg import tuning as tuning
from torchreg.activity import ActivityRegularizer
from torchreg.compression import compress
from torchreg.constraints import Constraint, L1Ball, L2Ball, LinfBall, MaxNorm, NonNegative, Simplex, UnitNorm
from torchreg.dropout_schedule import DropoutSchedule
from torchreg.groups import Heads
from torchreg.parameters import ParamInfo
from torchreg.penalties import (
    L1,
    L1SP,
    L2,
    L2SP,
    MCP,
    SCAD,
    SRIP,
    Complexity,
    ConvolutionNorm,
    DoubleSoftOrthogonality,
    ElasticNet,
    ExclusiveLasso,
    GroupLasso,
    HoyerSquare,
    Huber,
    LogSum,
    Lp,
    Nuclear,
    Penalty,
    ProximalPenalty,
    SoftOrthogonality,
    SparseGroupLasso,
    SpectralNorm,
)
from torchreg.penalties.activities import KLSparsity
from torchreg.regularizer import PenalizedLoss, Regularizer
from torchreg.schedules import cosine, curriculum, early, late, linear
from torchreg.selectors import Selector, everything, in_modules, named, weights
from torchreg.stacked import Stacked

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L1SP",
    "L2",
    "L2SP",
    "MCP",
    "SCAD",
    "SRIP",
    "ActivityRegularizer",
    "Complexity",
    "Constraint",
    "ConvolutionNorm",
    "DoubleSoftOrthogonality",
    "DropoutSchedule",
    "ElasticNet",
    "ExclusiveLasso",
    "GroupLasso",
    "Heads",
    "HoyerSquare",
    "Huber",
    "KLSparsity",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "LogSum",
    "Lp",
    "MaxNorm",
    "NonNegative",
    "Nuclear",
    "ParamInfo",
    "PenalizedLoss",
    "Penalty",
    "ProximalPenalty",
    "Regularizer",
    "Selector",
    "Simplex",
    "SoftOrthogonality",
    "SparseGroupLasso",
    "SpectralNorm",
    "Stacked",
    "UnitNorm",
    "compress",
    "cosine",
    "curriculum",
    "early",
    "everything",
    "in_modules",
    "late",
    "linear",
    "named",
    "weights",
]
