"""Regularization for any PyTorch model, optimizer and loop."""

from pathlib import Path as _Path
from warnings import warn as _warn

# Imported as themselves, so that they are attributes, but not in __all__: import * must not shadow torch's nn.
from torchreg import diagnostics as diagnostics
from torchreg import functional as functional
from torchreg import nn as nn
from torchreg import optim as optim
from torchreg import tuning as tuning
from torchreg.diagnostics import compress
from torchreg.ensemble import Stacked
from torchreg.nn.model.schedule import DropoutSchedule
from torchreg.penalties import (
    L1,
    L1SP,
    L2,
    L2SP,
    MCP,
    SCAD,
    SRIP,
    Complexity,
    Constraint,
    ConvolutionNorm,
    DoubleSoftOrthogonality,
    ElasticNet,
    ExclusiveLasso,
    GroupLasso,
    Heads,
    HoyerSquare,
    Huber,
    KLSparsity,
    L1Ball,
    L2Ball,
    LinfBall,
    LogSum,
    Lp,
    MaxNorm,
    NonNegative,
    Nuclear,
    Penalty,
    ProximalPenalty,
    Simplex,
    SoftOrthogonality,
    SparseGroupLasso,
    SpectralNorm,
    UnitNorm,
)
from torchreg.regularizer import ActivityRegularizer, PenalizedLoss, Regularizer
from torchreg.schedules import cosine, curriculum, early, late, linear
from torchreg.selection import ParamInfo, Selector, everything, in_modules, named, weights

__version__ = "0.2.0.dev0"


def _warn_of_namesake(package: _Path) -> None:
    """Warns if the unrelated distribution torchreg of the package index was installed into the same folder."""
    if any(package.parent.glob("torchreg-*.dist-info")) or (package / "syn.py").exists():
        _warn(
            "the unrelated package 'torchreg' is in the folder of torch-regularizers, and each overwrites the other: "
            "run 'pip uninstall torchreg', then install torch-regularizers again with --force-reinstall",
            stacklevel=3,
        )


_warn_of_namesake(_Path(__file__).parent)

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
