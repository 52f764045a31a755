"""LAYERS that drop, and functions that put them into existing models.

Replacements of torch's layers: :class:`Dropout`, :class:`Dropout1d`, :class:`Dropout2d`, :class:`Dropout3d`,
:class:`AlphaDropout`, :class:`FeatureAlphaDropout`, :class:`MultiheadAttention`. Other noise: :class:`GaussianDropout`,
:class:`DropBlock1d`, :class:`DropBlock2d`, :class:`DropBlock3d`, :class:`StochasticDepth`, :class:`LayerDrop`,
:class:`DropConnect`, :class:`LockedDropout`, :class:`EmbeddingDropout`, :class:`WordDropout`. Layers that learn what to
drop: :class:`ConcreteDropout`, :class:`VariationalDropout`, :class:`HardConcrete`. For existing models:
:func:`replace_dropout`, :func:`insert_dropout`, :func:`seed_dropout`, :func:`same_masks`, :func:`mc_dropout`,
:func:`set_linear_depth`, :func:`pruned`.
"""

from torchreg.nn.attention import MultiheadAttention
from torchreg.nn.block import DropBlock1d, DropBlock2d, DropBlock3d
from torchreg.nn.concrete import ConcreteDropout, HardConcrete
from torchreg.nn.connect import DropConnect
from torchreg.nn.depth import LayerDrop, StochasticDepth, set_linear_depth
from torchreg.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    GaussianDropout,
)
from torchreg.nn.gated import Gated, pruned
from torchreg.nn.model.insert import Insertion, insert_dropout
from torchreg.nn.model.monte_carlo import MonteCarlo, Prediction, mc_dropout
from torchreg.nn.model.replace import Replacement, replace_dropout
from torchreg.nn.model.seeding import same_masks, seed_dropout
from torchreg.nn.sequence import EmbeddingDropout, LockedDropout, WordDropout
from torchreg.nn.variational import VariationalDropout

__all__ = [
    "AlphaDropout",
    "ConcreteDropout",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnect",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "Gated",
    "GaussianDropout",
    "HardConcrete",
    "Insertion",
    "LayerDrop",
    "LockedDropout",
    "MonteCarlo",
    "MultiheadAttention",
    "Prediction",
    "Replacement",
    "StochasticDepth",
    "VariationalDropout",
    "WordDropout",
    "insert_dropout",
    "mc_dropout",
    "pruned",
    "replace_dropout",
    "same_masks",
    "seed_dropout",
    "set_linear_depth",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
