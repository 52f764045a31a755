"""A PENALTY ON A MODEL, in four modes."""

from torchreg.regularizer.activity import ActivityRegularizer
from torchreg.regularizer.regularizer import Mode, PenalizedLoss, Regularizer

__all__ = ["ActivityRegularizer", "Mode", "PenalizedLoss", "Regularizer"]
