"""Layers that drop, and what puts them into existing models."""

from torchreg.nn.block import DropBlock1d, DropBlock2d, DropBlock3d
from torchreg.nn.depth import StochasticDepth, set_linear_depth
from torchreg.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    GaussianDropout,
)
from torchreg.nn.gates import ConcreteDropout, HardConcrete, VariationalDropout, pruned
from torchreg.nn.seeding import same_masks, seed_dropout
from torchreg.nn.sequence import EmbeddingDropout, LockedDropout, WordDropout

__all__ = [
    "AlphaDropout",
    "ConcreteDropout",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "HardConcrete",
    "LockedDropout",
    "StochasticDepth",
    "VariationalDropout",
    "WordDropout",
    "pruned",
    "same_masks",
    "seed_dropout",
    "set_linear_depth",
]
