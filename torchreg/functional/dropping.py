"""Dropout, from random bits to gradients."""

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn import Parameter

_LEVELS = 1 << 16  # a drop decision reads 16 random bits, so p is kept to the nearest 2**-16


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
