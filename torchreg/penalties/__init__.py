"""WITH WHAT a model is regularized: penalties, a file a family, and constraints."""

from torchreg.penalties.activities import KLSparsity
from torchreg.penalties.base import Penalty, ProximalPenalty, Term
from torchreg.penalties.complexity import Complexity
from torchreg.penalties.concave import MCP, SCAD, HoyerSquare, LogSum, Lp
from torchreg.penalties.concave_groups import GroupMCP, GroupSCAD
from torchreg.penalties.constraints import (
    Box,
    Constraint,
    L1Ball,
    L2Ball,
    LinfBall,
    MaxNorm,
    NonNegative,
    Simplex,
    UnitNorm,
)
from torchreg.penalties.counts import NofM, Rank, Sparsest
from torchreg.penalties.effective import Effective
from torchreg.penalties.elementwise import L1, L2, ElasticNet, Huber
from torchreg.penalties.groups import ExclusiveLasso, GroupLasso, SparseGroupLasso
from torchreg.penalties.importance import adaptive, fisher
from torchreg.penalties.lassonet import LassoNet
from torchreg.penalties.matrices import DoubleSoftOrthogonality, SoftOrthogonality
from torchreg.penalties.outputs import Confidence, ZLoss
from torchreg.penalties.partition import Heads
from torchreg.penalties.ranked import SLOPE
from torchreg.penalties.reference import L1SP, L2SP
from torchreg.penalties.spectral import SRIP, ConvolutionNorm, Nuclear, SpectralNorm

__all__ = [
    "L1",
    "L1SP",
    "L2",
    "L2SP",
    "MCP",
    "SCAD",
    "SLOPE",
    "SRIP",
    "Box",
    "Complexity",
    "Confidence",
    "Constraint",
    "ConvolutionNorm",
    "DoubleSoftOrthogonality",
    "Effective",
    "ElasticNet",
    "ExclusiveLasso",
    "GroupLasso",
    "GroupMCP",
    "GroupSCAD",
    "Heads",
    "HoyerSquare",
    "Huber",
    "KLSparsity",
    "L1Ball",
    "L2Ball",
    "LassoNet",
    "LinfBall",
    "LogSum",
    "Lp",
    "MaxNorm",
    "NofM",
    "NonNegative",
    "Nuclear",
    "Penalty",
    "ProximalPenalty",
    "Rank",
    "Simplex",
    "SoftOrthogonality",
    "SparseGroupLasso",
    "Sparsest",
    "SpectralNorm",
    "Term",
    "UnitNorm",
    "ZLoss",
    "adaptive",
    "fisher",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
