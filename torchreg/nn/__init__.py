"""Layers that drop."""

from torchreg.nn.dropout import Dropout

__all__ = ["Dropout"]
