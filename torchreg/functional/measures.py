"""Norms and other measures of tensors.

Half-precision weights are summed in float32, because a sum over a layer easily exceeds the range of float16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchreg.functional.chunks import CHUNK

_HALF = (torch.float16, torch.bfloat16)
_RUN = 1024  # elements that vector_norm may add one by one


def l1_norm(w: Tensor) -> Tensor:
    """``sum(|w|)`` as a 0-d tensor: real, and float32 for half-precision ``w``.

    Example:
        >>> l1_norm(torch.tensor([3.0, -4.0]))
        tensor(7.)
    """
    return magnitude(w).sum()  # not vector_norm, which adds one by one: for 1e6 equal weights its error is 1 %


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
    parts = wide(real_parts(w) if w.is_complex() else w)
    return (parts * parts).sum() / 2  # not torch.dot, which adds one by one


def row_norms(w: Tensor) -> Tensor:
    """``sqrt(sum(|w|**2))`` over the last dimension, kept with size 1; float32 for half-precision ``w``.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5.],
                [0.]])
    """
    squares = row_squares(w)
    zero = squares == 0  # where the slope of the root is infinite
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def row_lengths(w: Tensor) -> Tensor:
    """:func:`row_norms` of a matrix in one pass over it, without further memory and without derivatives.

    Example:
        >>> row_lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5.],
                [0.]])
    """
    if w.is_complex() and w.stride(1) == 1:
        return row_lengths(real_parts(w).flatten(1))
    if w.is_cpu and w.stride(1) != 1:  # vector_norm would go along each row on its own
        squares = [row_squares(some) for some in w.split(max(1, CHUNK // max(1, len(w))), dim=1)]
        return torch.stack(squares).sum(0).sqrt_() if len(squares) > 1 else squares[0].sqrt_()
    whole = w.shape[1] // _RUN * _RUN
    if whole > _RUN:
        runs = _vector_norm(w[:, :whole].unflatten(1, (-1, _RUN))).squeeze(-1)
        return row_lengths(torch.cat([runs, _vector_norm(w[:, whole:])], 1))
    return _vector_norm(w)


def _vector_norm(w: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(w, dim=-1, keepdim=True, dtype=torch.float32 if is_half(w) else None)
    return norms


def magnitude(w: Tensor) -> Tensor:
    """``|w|``, in float32 for half-precision ``w``, so that it can be summed."""
    return wide(w.abs())


def largest(w: Tensor) -> Tensor:
    """``max(|w|)``, 0-d; 0 for an empty tensor."""
    return w.abs().amax() if w.numel() else w.abs().sum()


def distance_beyond_kink(residual: Tensor, at_kink: Tensor, slope: float | Tensor) -> Tensor:
    """The Euclidean length of ``residual``, with elements at a kink reduced by up to ``slope``.

    If ``residual`` is the loss's gradient plus the penalty's subgradient that is 0 at kinks, this is the distance of
    minus the gradient to the penalty's subdifferential.
    """
    size = magnitude(residual)
    return l2_norm(torch.where(at_kink, F.relu(size - slope), size)).to(real_dtype(residual))


def as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` with ``like``'s dtype and device; for a compiler it is a variable."""
    return (like.new_zeros(()) + value).to(like.dtype)


def real_dtype(w: Tensor) -> torch.dtype:
    """``w``'s dtype; of a complex tensor that of its real part."""
    return w.dtype.to_real() if w.is_complex() else w.dtype


def row_squares(w: Tensor) -> Tensor:
    # Not vector_norm, which adds one by one: for ten million equal float32 weights its relative error is 8e-3.
    return (magnitude(w) if w.is_complex() else wide(w)).square().sum(-1, keepdim=True)


def real_parts(w: Tensor) -> Tensor:
    """The real and imaginary parts of a complex tensor along a new last dimension; the latter may be negated."""
    return torch.view_as_real(w.conj() if w.is_conj() else w)  # a lazy conjugate has no such view


def within(bound: float, dtype: torch.dtype) -> float:
    """The bound, or the dtype's largest number if that is smaller."""
    largest = torch.finfo(dtype).max
    return min(max(bound, -largest), largest)


def nan_of(w: Tensor) -> Tensor:
    """NaN where ``w`` is NaN, else 0: what a function adds whose formula would lose it, as a sign does."""
    return w.masked_fill(~w.isnan(), 0.0) if w.is_complex() else w.clamp(0.0, 0.0)


def wide(w: Tensor) -> Tensor:
    """``w``; in float32 if it has half precision."""
    return w.float() if is_half(w) else w


def is_half(w: Tensor) -> bool:
    return w.dtype in _HALF
