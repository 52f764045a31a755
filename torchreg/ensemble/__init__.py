"""MANY equal models trained as one."""

from torchreg.ensemble.stacked import Stacked

__all__ = ["Stacked"]
