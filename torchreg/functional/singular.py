"""Singular values that are NaN where a matrix is not finite; torch's decompositions raise an error there."""

import torch
from torch import Tensor


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(U, sigma, V^H)`` with ``matrix = U diag(sigma) V^H``, of one matrix or a batch; NaN if it is not finite.

    Example:
        >>> svd(torch.diag(torch.tensor([3.0, torch.inf])))[1]
        tensor([nan, nan])
    """
    matrix, bad = _finite(matrix)
    left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
    return left.masked_fill(bad, torch.nan), sigma.masked_fill(bad.squeeze(-1), torch.nan), right


def singular_values(matrix: Tensor) -> Tensor:
    """``sigma`` of :func:`svd`, without the vectors.

    Example:
        >>> singular_values(torch.diag(torch.tensor([3.0, 1.0])))
        tensor([3., 1.])
    """
    matrix, bad = _finite(matrix)
    sigma: Tensor = torch.linalg.svdvals(matrix)
    return sigma.masked_fill(bad.squeeze(-1), torch.nan)


def _finite(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix, or zeros if it is not finite, and whether it is not, of shape (..., 1, 1)."""
    bad = ~matrix.isfinite().flatten(-2).all(-1)[..., None, None]
    return matrix.masked_fill(bad, 0.0), bad
