"""Every formula of torchreg, on plain tensors.

Nothing here knows of models, optimizers or strengths. Half-precision weights are summed in float32, because a sum
over a layer leaves float16's range long before the weights, or the strength times the sum, do.
"""

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn import Parameter

_HALF = (torch.float16, torch.bfloat16)
_LEVELS = 1 << 16  # a drop decision reads 16 random bits, so p is kept to the nearest 2**-16


def l1_norm(w: Tensor) -> Tensor:
    """``sum(|w|)`` as a 0-d tensor: real, and float32 for half-precision ``w``.

    Example:
        >>> l1_norm(torch.tensor([3.0, -4.0]))
        tensor(7.)
    """
    norm: Tensor = torch.linalg.vector_norm(_wide(w), 1)  # in one pass; its gradient at 0 is 0
    return norm


def half_square(w: Tensor) -> Tensor:
    """``1/2 * sum(|w|**2)`` as a 0-d tensor: real, and float32 for half-precision ``w``. Its gradient is ``w`` itself.

    Example:
        >>> half_square(torch.tensor([3.0, -4.0]))
        tensor(12.5000)
    """
    flat = _wide(torch.view_as_real(w) if w.is_complex() else w).flatten()
    return torch.dot(flat, flat) / 2  # in one pass; not the norm squared, whose second derivative at 0 is lost


def soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding, the proximal operator of the L1 norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t \|u\|_1 = \operatorname{sign}(w) \max(|w| - t, 0)

    It is computed as ``w - clamp(w, -t, t)``: no division, so a zero weight stays zero at threshold 0, and what lies
    within the threshold becomes exactly zero.

    Args:
        w: real tensor of any shape.
        threshold: ``t >= 0``, a number or a tensor that broadcasts to ``w``.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 0.0]), 1.0)
        tensor([-2.,  0.,  0.])

    References:
        David L. Donoho, "De-noising by soft-thresholding", IEEE Transactions on Information Theory, 1995.
    """
    if w.is_complex():
        raise TypeError(f"soft_threshold: w must be real, got {w.dtype}")
    if isinstance(threshold, Tensor):
        return w - torch.minimum(torch.maximum(w, -threshold), threshold).to(w.dtype)
    return w - w.clamp(-threshold, threshold)


def shrink(w: Tensor, amount: float | Tensor) -> Tensor:
    r"""Shrinkage, the proximal operator of half the squared norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + \tfrac{c}{2} \|u\|^2 = w / (1 + c)

    Example:
        >>> shrink(torch.tensor([3.0, -1.0]), 1.0)
        tensor([ 1.5000, -0.5000])
    """
    return w / (1 + amount)


def axpy_(y: Tensor, x: Tensor, a: float | Tensor) -> Tensor:
    """``y += a * x`` in place, for a number or a tensor ``a``; with a number it is the addition torch's optimizers do.

    Example:
        >>> axpy_(torch.ones(2), torch.ones(2), 0.5)
        tensor([1.5000, 1.5000])
    """
    return y.addcmul_(x, a) if isinstance(a, Tensor) else y.add_(x, alpha=a)


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, generator: Generator | None = None
) -> Tensor:
    r"""Zeroes each element with probability ``p`` and scales the others by ``1 / (1 - p)``, so the mean is kept.

    On the CPU one 64-bit random number decides four elements, 16 bits each, which is several times faster than
    :func:`torch.nn.functional.dropout`; the backward pass keeps one byte an element. Other devices, tensor
    subclasses, ``torch.compile`` and the transforms of ``torch.func`` use torch's own kernels.

    Args:
        x: floating-point tensor of any shape; dtype and memory format are preserved.
        p: probability of dropping, in [0, 1]. On the CPU it is rounded to the nearest multiple of ``2**-16``, and the
            scale is that of the rounded value.
        training: ``False`` returns ``x`` itself.
        inplace: overwrites ``x``.
        generator: source of the random bits, on ``x``'s device; torch's global one (``torch.manual_seed``) if None.

    Raises:
        ValueError: ``p`` outside [0, 1] or NaN, or a generator on another device than ``x``.

    Example:
        >>> y = dropout(torch.ones(8), p=0.5, generator=torch.Generator().manual_seed(0))
        >>> sorted(set(y.tolist()))
        [0.0, 2.0]

    References:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting", Journal of Machine Learning Research 15, 2014.
    """
    check_probability("dropout", p)
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(
            f"dropout: generator must be on the input's device {x.device}, got one on {generator.device}; "
            f"make it with torch.Generator({x.device.type!r})"
        )
    if not training or p == 0:
        return x
    fast = _takes_fast_path(x)
    if generator is None and not fast:
        return F.dropout(x, p, training=True, inplace=inplace)
    if fast:
        p = round(p * _LEVELS) / _LEVELS
    if p in (0, 1):
        return x if p == 0 else x.mul_(0) if inplace else x * 0
    if fast:
        keep = _keep_mask(x, p, generator)
    else:
        keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    out: Tensor = _Drop.apply(x, keep, 1 / (1 - p), inplace)
    return out


def real_dtype(w: Tensor) -> torch.dtype:
    """``w``'s dtype, or that of its parts if it is complex."""
    return w.dtype.to_real() if w.is_complex() else w.dtype


def check_probability(owner: str, p: float) -> None:
    """Raises ``TypeError`` unless ``p`` is a number, ``ValueError`` unless it is in [0, 1]; NaN is not."""
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"{owner}: p, the probability of dropping, must be a number in [0, 1], got {p!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"{owner}: p, the probability of dropping, must be in [0, 1], got {p!r}")


def _takes_fast_path(x: Tensor) -> bool:
    """Whether ``x`` is a plain dense tensor on the CPU that no compiler or transform of ``torch.func`` looks at."""
    plain = type(x) in (Tensor, Parameter) and x.is_floating_point() and x.layout == torch.strided
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return plain and x.device.type == "cpu" and not traced


def _keep_mask(x: Tensor, p: float, generator: Generator | None) -> Tensor:
    """Boolean tensor with ``x``'s shape and strides, False with probability ``p``, a multiple of ``2**-16``."""
    count = x.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)  # the full range: by default the top bit is always 0
    keep = words.view(torch.int16)[:count] >= round(p * _LEVELS) - _LEVELS // 2
    layout = torch.empty_like(x, dtype=torch.bool, device="meta")  # dense, in x's memory format
    return keep.as_strided(layout.shape, layout.stride())


class _Drop(torch.autograd.Function):
    """``x * keep * scale``. Written out, because autograd would keep the mask in x's dtype: four bytes, not one."""

    @staticmethod
    def forward(ctx, x: Tensor, keep: Tensor, scale: float, inplace: bool) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(keep)
        ctx.scale = scale
        if inplace:
            ctx.mark_dirty(x)
            return x.mul_(keep.to(x.dtype)).mul_(scale)
        return _masked_scale(x, keep, scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        (keep,) = ctx.saved_tensors
        return _masked_scale(grad, keep, ctx.scale), None, None, None


def _masked_scale(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    # The mask is widened first: multiplying float by bool directly is a slow path on the CPU. The scale comes last,
    # as a number, so that it is applied in float32 even to half-precision tensors.
    return (x * keep.to(x.dtype)) * scale


def _wide(w: Tensor) -> Tensor:
    return w.float() if w.dtype in _HALF else w
