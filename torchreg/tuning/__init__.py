"""HOW STRONG: the strength is chosen, not guessed."""

from torchreg.stacked import Stacked
from torchreg.tuning.auto import AutoStrength
from torchreg.tuning.largest import StrengthMax, strength_max
from torchreg.tuning.path import strength_path
from torchreg.tuning.points import Point, best, one_standard_error
from torchreg.tuning.rates import AutoRate
from torchreg.tuning.table import StrengthPath

__all__ = [
    "AutoRate",
    "AutoStrength",
    "Point",
    "Stacked",
    "StrengthMax",
    "StrengthPath",
    "best",
    "one_standard_error",
    "strength_max",
    "strength_path",
]
