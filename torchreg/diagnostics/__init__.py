"""WHAT regularization did to a model.

:func:`norms` and :func:`sparsity` of its weights, :func:`compression` by zeros; :func:`compress` removes dead units,
and :func:`coupled_units` says which units can only go together.
"""

from torchreg.diagnostics.counts import Compression, compression, norms, sparsity, weights_of
from torchreg.diagnostics.dead_units import compress
from torchreg.diagnostics.units import CoupledUnits, coupled_units

__all__ = ["Compression", "CoupledUnits", "compress", "compression", "coupled_units", "norms", "sparsity", "weights_of"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
