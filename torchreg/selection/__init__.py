"""WHICH parameters and modules are penalized."""

from torchreg.selection.parameters import ParamInfo
from torchreg.selection.selectors import Selector, everything, in_modules, named, weights

__all__ = ["ParamInfo", "Selector", "everything", "in_modules", "named", "weights"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
