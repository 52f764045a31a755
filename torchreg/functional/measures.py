"""Norms and other numbers of a tensor, and what they are made of.

Half-precision weights are summed in float32, because a sum over a layer leaves float16's range long before the
weights, or the strength times the sum, do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def l1_norm(w: Tensor) -> Tensor:
    """``sum(|w|)`` as a 0-d tensor: real, and float32 for half-precision ``w``.

    Example:
        >>> l1_norm(torch.tensor([3.0, -4.0]))
        tensor(7.)
    """
    return magnitude(w).sum()  # not vector_norm, which adds up one by one: of 1e6 equal weights it is off by 1 %


def l2_norm(w: Tensor) -> Tensor:
    """``sqrt(sum(|w|**2))`` as a 0-d tensor: real, and float32 for half-precision ``w``.

    Example:
        >>> l2_norm(torch.tensor([3.0, -4.0]))
        tensor(5.)
    """
    return magnitude(w).square().sum().sqrt()


def half_square(w: Tensor) -> Tensor:
    """``1/2 * sum(|w|**2)`` as a 0-d tensor: real, and float32 for half-precision ``w``. Its gradient is ``w`` itself.

    Example:
        >>> half_square(torch.tensor([3.0, -4.0]))
        tensor(12.5000)
    """
    parts = wide(torch.view_as_real(w) if w.is_complex() else w)
    return (parts * parts).sum() / 2  # not torch.dot, which adds up one by one


def row_norms(w: Tensor) -> Tensor:
    """``sqrt(sum(|w|**2))`` over the last dimension, kept with size 1; float32 for half-precision ``w``.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5.],
                [0.]])
    """
    squares = row_squares(w)
    zero = squares == 0  # where the root's slope is infinite
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def magnitude(w: Tensor) -> Tensor:
    """``|w|``, in float32 for half-precision ``w``: what a sum over a layer should start from."""
    return wide(w.abs())


def largest(w: Tensor) -> Tensor:
    """``max(|w|)``, 0-d; 0 for an empty tensor."""
    return w.abs().amax() if w.numel() else w.abs().sum()


def distance_beyond_kink(residual: Tensor, at_kink: Tensor, slope: float | Tensor) -> Tensor:
    """The Euclidean length of ``residual``, of which a kink takes up to ``slope`` at each element that lies in one.

    It is the distance of minus the loss's gradient to the subdifferential of a penalty, if ``residual`` is that
    gradient plus the penalty's subgradient which is 0 in the kinks.
    """
    size = magnitude(residual)
    return l2_norm(torch.where(at_kink, F.relu(size - slope), size)).to(real_dtype(residual))


def as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` with ``like``'s dtype and device. To a compiler, a number is one that may change."""
    return (like.new_zeros(()) + value).to(like.dtype)


def real_dtype(w: Tensor) -> torch.dtype:
    """``w``'s dtype, or that of its parts if it is complex."""
    return w.dtype.to_real() if w.is_complex() else w.dtype


def row_squares(w: Tensor) -> Tensor:
    # Not vector_norm, which adds up one by one: of ten million equal float32 weights its norm is off by 8e-3.
    return magnitude(w).square().sum(-1, keepdim=True)


def wide(w: Tensor) -> Tensor:
    """``w``, in float32 if it is of half precision."""
    return w.float() if w.dtype in _HALF else w
