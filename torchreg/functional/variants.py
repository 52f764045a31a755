"""Other forms of dropout: blocks, paths, alpha dropout, Gaussian noise, gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.functional.dropping import all_or_none, drawn_rate, drop, keep
from torchreg.functional.masks import drawn, draws_bits, keep_mask, representable
from torchreg.functional.members import Source


def alpha_dropout(
    x: Tensor,
    p: float,
    shape: Sequence[int],
    inplace: bool = False,
    generator: Source = None,
) -> Tensor:
    r"""Sets elements to SELU's negative limit and rescales, which preserves mean 0 and variance 1.

    .. math:: y = a (m x + (1 - m) \alpha') + b, \quad a = \big((1 - p)(1 + p \alpha'^2)\big)^{-1/2}, \quad
              b = -a p \alpha', \quad \alpha' = -\lambda\alpha \approx -1.7581

    References:
        Günter Klambauer, Thomas Unterthiner, Andreas Mayr, Sepp Hochreiter, "Self-Normalizing Neural Networks",
        NIPS 2017.
    """
    p = drawn_rate(x, p, generator)
    if p in (0, 1) or x.numel() == 0:
        return all_or_none(x, p if x.numel() else 0, inplace)
    limit = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717
    a = ((1 - p) * (1 + p * limit**2)) ** -0.5
    mask = keep_mask(x, p, shape, generator).to(x.dtype)
    shift = mask * (-a * limit) + a * limit * (1 - p)  # a limit (1 - m) + b
    return (x.mul_(mask) if inplace else x * mask).mul_(a).add_(shift)


def gaussian_dropout(
    x: Tensor, p: float, shape: Sequence[int], inplace: bool = False, generator: Source = None
) -> Tensor:
    r"""Multiplies by normal noise with mean 1 and the variance of dropout.

    .. math:: y = x \epsilon, \qquad \epsilon \sim N(1, \tfrac{p}{1-p})
    """
    deviation = math.sqrt(p / (1 - p))
    noise = drawn(torch.randn, shape, x.device, generator, x.dtype) * deviation + 1
    return x.mul_(noise) if inplace else x * noise


def drop_blocks(
    x: Tensor,
    p: float,
    block: Sequence[int],
    inplace: bool = False,
    generator: Source = None,
    *,
    couple_channels: bool = False,
) -> Tensor:
    r"""Drops blocks of the last ``len(block)`` dimensions, each position with probability exactly ``p``.

    A position is dropped if any of the :math:`\prod_i b_i` positions in the block around it is a seed. Seeds are also
    drawn beyond the borders, with the rate :math:`\gamma = 1 - (1 - p)^{1 / \prod_i b_i}`. If the channels (the
    dimension before) are coupled, they lose the same blocks.
    """
    spatial = len(block)
    if p in (0, 1) or x.numel() == 0:
        return drop(x, p, x.shape, inplace, generator)
    rate = -math.expm1(math.log1p(-p) / math.prod(block))
    if draws_bits(x, generator):
        rate = representable(rate, is_rare=True)
    if rate == 1:
        return drop(x, 1.0, x.shape, inplace, generator)
    padded = [size + width - 1 for size, width in zip(x.shape[-spatial:], block, strict=True)]
    leading = (*x.shape[: -spatial - 1], 1 if couple_channels else x.shape[-spatial - 1])
    kept = keep_mask(x, rate, (*leading, *padded), generator, is_rare=True)
    for dim, width in zip(range(-spatial, 0), block, strict=True):
        kept = _running_min(kept, dim, width)
    return keep(x, kept, (1 - rate) ** -math.prod(block), inplace)


def _running_min(mask: Tensor, dim: int, width: int) -> Tensor:
    """The minimum over each window of ``width`` neighbors, computed from windows of half the width."""
    reach = 1
    while reach < width:
        shift = min(reach, width - reach)
        length = mask.shape[dim] - shift
        mask = torch.minimum(mask.narrow(dim, 0, length), mask.narrow(dim, shift, length))
        reach += shift
    return mask


def drop_paths(
    x: Tensor,
    p: float,
    rows: bool,
    inplace: bool = False,
    generator: Source = None,
    *,
    scale_by_keep: bool = True,
) -> Tensor:
    """Drops whole examples (``rows``), or all examples together; divides what is kept by ``1 - p`` if it is scaled."""
    shape = (x.shape[0] if rows and x.ndim else 1, *[1] * (x.ndim - 1))[: x.ndim]
    if scale_by_keep:
        return drop(x, p, shape, inplace, generator)
    p = drawn_rate(x, p, generator)
    if p in (0, 1) or x.numel() == 0:
        return all_or_none(x, p if x.numel() else 0, inplace)
    return keep(x, keep_mask(x, p, shape, generator), 1.0, inplace)


def interpolate_gate(logit: Tensor, noise: Tensor, temperature: float) -> Tensor:
    r"""A sample of the binary concrete distribution, :math:`\sigma((\text{logit} + \log u - \log(1-u)) / t)`.

    References:
        Chris J. Maddison, Andriy Mnih, Yee Whye Teh, "The Concrete Distribution", ICLR 2017.
    """
    return torch.sigmoid((logit + noise.log() - (-noise).log1p()) / temperature)
