"""A PENALTY ON A MODEL, in four modes."""

from torchreg.regularizer.activity import ActivityRegularizer
from torchreg.regularizer.coupled import CoupledGroupLasso
from torchreg.regularizer.inputs import InputGradient, Jacobian
from torchreg.regularizer.model_penalty import Mode
from torchreg.regularizer.penalized_loss import PenalizedLoss
from torchreg.regularizer.regularizer import Regularizer

__all__ = [
    "ActivityRegularizer",
    "CoupledGroupLasso",
    "InputGradient",
    "Jacobian",
    "Mode",
    "PenalizedLoss",
    "Regularizer",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
