"""WHICH parameters and modules a penalty is for."""

from torchreg.selection.modules import Choice, chosen, listed
from torchreg.selection.parameters import ParamInfo, each_parameter
from torchreg.selection.selectors import Selector, as_selector, everything, in_modules, named, weights

__all__ = [
    "Choice",
    "ParamInfo",
    "Selector",
    "as_selector",
    "chosen",
    "each_parameter",
    "everything",
    "in_modules",
    "listed",
    "named",
    "weights",
]
