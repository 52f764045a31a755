"""Weights that are bounded by others: the proximal operator of LassoNet."""

import torch
from torch import Tensor

from torchreg.functional.measures import magnitude, row_norms, wide


def hierarchical_threshold(skip: Tensor, first: Tensor, amount: float | Tensor, bound: float) -> tuple[Tensor, Tensor]:
    r"""The proximal operator of a group lasso on columns that bound the columns of another matrix.

    .. math:: \operatorname{argmin}_{a, b} \tfrac12 \|a - v_j\|_2^2 + \tfrac12 \|b - u_j\|_2^2 + t \|a\|_2
              \quad \text{subject to} \quad \|b\|_\infty \le M \|a\|_2

    for each column :math:`j`. With the magnitudes of :math:`u_j` in descending order it is

    .. math:: n = \max_{0 \le m \le h} \frac{\max(\|v_j\|_2 - t + M \sum_{i \le m} |u_j|_{(i)}, 0)}{1 + m M^2}, \qquad
              a = n \frac{v_j}{\|v_j\|_2}, \qquad b_i = \operatorname{sign}(u_{ji}) \min(|u_{ji}|, M n)

    because the derivative of the objective in the norm :math:`n` is the smallest of :math:`h + 1` increasing lines. If
    :math:`v_j` is zero and :math:`a` is not, all elements of :math:`a` are equal. The bound holds to the bit in single
    and double precision.

    Args:
        skip: :math:`v`, a matrix with a column for each feature.
        first: :math:`u`, a matrix with a column for each feature.
        amount: :math:`t \ge 0`, a number or a 0-d tensor.
        bound: :math:`M > 0`.

    Returns:
        ``a`` and ``b``, of the shapes of ``skip`` and ``first``.

    Example:
        >>> hierarchical_threshold(torch.tensor([[2.0, 0.5]]), torch.tensor([[3.0, 0.1], [0.5, 0.2]]), 1.0, bound=1.0)
        (tensor([[2., 0.]]), tensor([[2.0000, 0.0000],
                [0.5000, 0.0000]]))

    References:
        Ismael Lemhadri, Feng Ruan, Louis Abraham, Robert Tibshirani, "LassoNet: A Neural Network with Feature
        Sparsity", Journal of Machine Learning Research, 2021.
    """
    v, u = wide(skip), wide(first)
    norms, size = _column_norms(v), magnitude(u)
    sums = size.sort(0, descending=True).values.cumsum(0)
    count = torch.arange(1, len(size) + 1, device=size.device, dtype=size.dtype)[:, None]
    lines = torch.cat([norms - amount, (norms - amount + bound * sums) / (1 + count * bound**2)])
    length = lines.amax(0, keepdim=True).clamp(min=0)
    is_zero = norms == 0
    direction = torch.where(is_zero, max(len(v), 1) ** -0.5, v / norms.masked_fill(is_zero, 1.0))
    kept = (direction * length).to(skip.dtype)
    most = bound * _column_norms(wide(kept))  # of what it is rounded to, so that the bound holds
    return kept, torch.where(size <= most, u, u.sgn() * most).to(first.dtype)


def _column_norms(w: Tensor) -> Tensor:
    return magnitude(w) if len(w) == 1 else row_norms(w.mT).mT  # of one number without squares, so to the bit
