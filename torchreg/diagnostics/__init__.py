"""WHAT regularization did to a model.

:func:`norms` and :func:`sparsity` of its weights, :func:`compression` by zeros; :func:`compress` removes dead units.
"""

from torchreg.diagnostics.counts import Compression, compression, norms, sparsity, weights_of
from torchreg.diagnostics.dead_units import compress

__all__ = ["Compression", "compress", "compression", "norms", "sparsity", "weights_of"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
