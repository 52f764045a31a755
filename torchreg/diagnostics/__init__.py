"""WHAT REGULARIZATION DID to a model: how large its weights are, how many are zero, which units are dead."""

from torchreg.diagnostics.counts import Compression, compression, norms, sparsity, weights_of
from torchreg.diagnostics.dead_units import compress

__all__ = ["Compression", "compress", "compression", "norms", "sparsity", "weights_of"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
