"""Dropout of elements and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from torchreg.functional.chunks import CHUNK
from torchreg.functional.masks import (
    check_generator,
    check_probability,
    draws_bits,
    is_plain,
    keep_mask,
    plain_mask,
    representable,
)
from torchreg.functional.members import Generators, Source

_SMALL = 3 << 13  # elements; for fewer, one call of torch is faster than several calls that draw bits
_PIECE = 1 << 20  # elements whose mask, converted, stays in the cache


def dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    noise_shape: Sequence[int | None] | None = None,
) -> Tensor:
    r"""Zeroes each element with probability ``p`` and scales the others by ``1 / (1 - p)``, which preserves the mean.

    .. math:: y_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \operatorname{Bernoulli}(1 - p)

    On the CPU one 64-bit random number decides about eight elements. This is several times faster than
    :func:`torch.nn.functional.dropout`. For the backward pass it stores a mask in ``x``'s dtype, as torch does; for
    more than 262,144 elements one byte for each. Tensors of fewer than 24,576 elements, other devices, tensor
    subclasses, ``torch.compile`` and transforms of ``torch.func`` use torch's own kernels.

    Args:
        x: floating-point tensor of any shape; dtype and memory format are preserved.
        p: probability of dropping, in [0, 1]. On the CPU it is rounded to the nearest multiple of ``2**-16``; the scale
            is that of the rounded value.
        training: ``False`` returns ``x`` itself.
        inplace: overwrites ``x``.
        generator: source of the random bits, on ``x``'s device; torch's global generator (``torch.manual_seed``) if
            None.
        noise_shape: shape of the mask, with 1 for a dimension along which elements are dropped together and None for
            ``x``'s own size.

    Raises:
        ValueError: ``p`` outside [0, 1] or NaN, a generator on another device than ``x``, or a ``noise_shape`` that
            does not broadcast to ``x``'s shape.

    Example:
        >>> y = dropout(torch.ones(8), p=0.5, generator=torch.Generator().manual_seed(0))
        >>> sorted(set(y.tolist()))
        [0.0, 2.0]
        >>> y = dropout(torch.ones(2, 3, 4), p=0.5, noise_shape=(2, 1, 4))
        >>> bool((y == y[:, :1]).all())
        True

    References:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting", Journal of Machine Learning Research 15, 2014.
    """
    check_probability("dropout", p)
    if not training or p == 0:
        return x
    if generator is None and noise_shape is None:
        if is_small(x.numel()) or not is_plain(x):
            return torch.dropout_(x, p, True) if inplace else torch.dropout(x, p, True)
        if not x.is_nested:
            return _drop_plain(x, p, x.shape, inplace, None)
    if generator is not None:
        check_generator("dropout", generator, x.device)
    if x.is_nested and noise_shape is None:
        return _drop_nested(x, p, inplace, generator)
    shape = x.shape if noise_shape is None else mask_shape("dropout", noise_shape, x)
    return drop(x, p, shape, inplace, generator)


def is_small(draws: int) -> bool:
    """Whether torch's own layers, which draw a number for each element or channel, are as fast for so many draws."""
    return draws < _SMALL


def drop(x: Tensor, p: float, shape: Sequence[int], inplace: bool = False, generator: Source = None) -> Tensor:
    """``x`` times a mask of that shape, whose elements are 0 with probability ``p``, divided by ``1 - p``."""
    if not isinstance(generator, Generators) and is_plain(x):
        return _drop_plain(x, p, shape, inplace, generator)
    p = drawn_rate(x, p, generator)
    if p in (0, 1) or x.numel() == 0:
        return all_or_none(x, p if x.numel() else 0, inplace)
    return keep(x, keep_mask(x, p, shape, generator), 1 / (1 - p), inplace)


def _drop_plain(x: Tensor, p: float, shape: Sequence[int], inplace: bool, generator: Generator | None) -> Tensor:
    p = representable(p)
    if p in (0, 1) or x.numel() == 0:
        return all_or_none(x, p if x.numel() else 0, inplace)
    return keep(x, plain_mask(x, p, shape, generator), 1 / (1 - p), inplace)


def drop_by_member(x: Tensor, p: float, generators: Generators) -> Tensor:
    """:func:`drop` of a stack ``(members, ...)``: each member's part has the mask that it has alone."""
    p = drawn_rate(x[0], p, generators)
    if p in (0, 1) or x.numel() == 0:
        return all_or_none(x, p if x.numel() else 0, inplace=False)
    parts = x.detach().unbind()
    masks = [keep_mask(part, p, part.shape, own) for part, own in zip(parts, generators.each, strict=True)]
    return keep(x, torch.stack(masks), 1 / (1 - p))


def _drop_nested(x: Tensor, p: float, inplace: bool, generator: Source) -> Tensor:
    """Dropout of the elements of a nested tensor. A jagged one keeps its offsets, so that it fits the input."""
    if x.layout == torch.jagged:
        values = drop(x.values(), p, x.values().shape, inplace, generator)
        return x if inplace else torch.nested.nested_tensor_from_jagged(values, x.offsets())  # type: ignore[attr-defined]
    parts = [drop(part, p, part.shape, inplace, generator) for part in x.unbind()]
    return x if inplace else torch.nested.as_nested_tensor(parts)


def drawn_rate(x: Tensor, p: float, generator: Source) -> float:
    """The rate with which a mask for ``x`` really drops."""
    return representable(p) if draws_bits(x, generator) else p


def all_or_none(x: Tensor, p: float, inplace: bool) -> Tensor:
    """The result of dropout with ``p`` 0 or 1."""
    if p == 0:
        return x if inplace else x.clone()
    zero = x.new_zeros(())  # of the same dtype: 0 would make integers of booleans
    return x.mul_(zero) if inplace else x * zero


def keep(x: Tensor, mask: Tensor, scale: float, inplace: bool = False) -> Tensor:
    """``x * mask * scale``; for the backward pass it stores the mask, one byte for each element.

    Masks of up to ``CHUNK`` elements are stored in ``x``'s dtype, because a product of one dtype is faster. They hold
    the scale too, except where half precision would round it.
    """
    if mask.dtype == torch.int8 and (mask.numel() < x.numel() or x.numel() <= CHUNK):
        mask = mask.to(x.dtype)
        if x.dtype in (torch.float32, torch.float64) or (scale.is_integer() and scale < 256):
            mask, scale = mask.mul_(scale), 1.0
    if inplace:
        return _times_(x.mul_(mask), scale)
    is_large = x.numel() > CHUNK
    if (is_large or scale != 1) and is_plain(x) and mask.shape == x.shape and mask.stride() == x.stride():
        if x.numel() <= _PIECE and not torch.is_grad_enabled():
            return _product(x, mask, scale)
        result: Tensor = _Masked.apply(x, mask, scale)
        return result
    return _times_(x.mul(mask), scale)


def _times_(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x.mul_(scale)


def _product(x: Tensor, mask: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    nothing = x.new_full((), -0.0)  # added to anything it changes no bit
    return torch.addcmul(nothing, mask, x, value=scale, out=out)


class _Masked(torch.autograd.Function):
    """``x * mask * scale`` in one pass; a large mask is converted in pieces, because new memory is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)
        ctx.scale = scale
        if x.numel() <= _PIECE:
            return _product(x, mask, scale)
        out, piece = torch.empty_like(x), x.new_empty(_PIECE)
        flat = (tensor.as_strided((x.numel(),), (1,)) for tensor in (x, mask, out))
        for some, kept, result in zip(*(tensor.split(_PIECE) for tensor in flat), strict=True):
            _product(some, piece[: len(kept)].copy_(kept), scale, out=result)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return keep(grad, mask, ctx.scale), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (mask,) = ctx.saved_tensors
        return keep(tangent, mask, ctx.scale)


def mask_shape(owner: str, noise_shape: Sequence[int | None], x: Tensor) -> tuple[int, ...]:
    """The shape of a mask for ``x``; raises ``ValueError`` unless it broadcasts to ``x``'s shape."""
    sizes = tuple(noise_shape)
    fits = len(sizes) == x.ndim and all(
        size is None or (type(size) is int and size in (1, own)) for size, own in zip(sizes, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{owner}: noise_shape must have 1, None or the input's own size for each of its dimensions "
            f"{tuple(x.shape)}, got {sizes}"
        )
    return tuple(own if size is None else size for size, own in zip(sizes, x.shape, strict=True))


def channel_dropout(x: Tensor, p: float, batched: bool, inplace: bool = False, generator: Source = None) -> Tensor:
    """Drops whole channels: ``x`` is ``(N, C, ...)`` if ``batched``, else ``(C, ...)``."""
    leading = 2 if batched else 1
    return drop(x, p, (*x.shape[:leading], *[1] * (x.ndim - leading)), inplace, generator)
