"""HOW STRONG: the strength is chosen, not guessed."""

from torchreg.ensemble.stacked import Stacked
from torchreg.tuning.online.rate import AutoRate
from torchreg.tuning.online.strength import AutoStrength
from torchreg.tuning.path.path import strength_path
from torchreg.tuning.path.selection import Point, best, one_standard_error
from torchreg.tuning.path.strength_max import StrengthMax, strength_max
from torchreg.tuning.path.table import StrengthPath

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


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
