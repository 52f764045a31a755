"""WITH WHAT a model is regularized."""

from torchreg.penalties.base import Penalty, ProximalPenalty, ProximalSum, Sum, Term
from torchreg.penalties.elementwise import L1, L2

__all__ = ["L1", "L2", "Penalty", "ProximalPenalty", "ProximalSum", "Sum", "Term"]
