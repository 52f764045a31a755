"""MANY models of one architecture trained as one."""

from torchreg.ensemble.stacked import Stacked

__all__ = ["Stacked"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
