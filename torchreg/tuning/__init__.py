"""HOW STRONG: choosing the strength.

Before training: :func:`strength_path` trains a model at many strengths and validates each; :func:`best` and
:func:`one_standard_error` choose one; :func:`strength_max` is the smallest strength at which everything is zero.
Without held-out examples: :func:`ridge_path` is the path of a linear head under squared errors, in closed form;
:func:`leave_one_out`, :func:`generalized_cv` and :func:`evidence` choose from it. During training:
:class:`AutoStrength` tunes strengths, :class:`AutoRate` dropout rates. :class:`Stacked` trains many models as one.
"""

from torchreg.ensemble.stacked import Stacked
from torchreg.tuning.online.rate import AutoRate
from torchreg.tuning.online.strength import AutoStrength
from torchreg.tuning.path.path import strength_path
from torchreg.tuning.path.selection import Point, best, one_standard_error
from torchreg.tuning.path.strength_max import StrengthMax, strength_max
from torchreg.tuning.path.table import StrengthPath
from torchreg.tuning.ridge.path import RidgePath, RidgePoint, ridge_path
from torchreg.tuning.ridge.selection import evidence, generalized_cv, leave_one_out

__all__ = [
    "AutoRate",
    "AutoStrength",
    "Point",
    "RidgePath",
    "RidgePoint",
    "Stacked",
    "StrengthMax",
    "StrengthPath",
    "best",
    "evidence",
    "generalized_cv",
    "leave_one_out",
    "one_standard_error",
    "ridge_path",
    "strength_max",
    "strength_path",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
