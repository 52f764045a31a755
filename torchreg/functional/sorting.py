"""Isotonic regression, and what it makes of sorted magnitudes: the proximal operator of the sorted L1 norm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchreg.functional.measures import magnitude, real_dtype

_ROUNDS = 32  # of merging at once, before what is left is merged one by one


def isotonic(y: Tensor, apart: Tensor | None = None) -> Tensor:
    r"""The descending sequence that is nearest to a vector.

    .. math:: \operatorname{argmin}_{u_1 \ge u_2 \ge \dots} \|u - y\|_2

    Neighbors that ascend are equal in the result. So all runs of ascending blocks are merged at once, each into its
    mean, until none ascends. A few rounds suffice but for contrived vectors, which are finished one by one.

    Args:
        y: real vector.
        apart: whether each element begins a part of its own, which may be larger than the part before.

    Returns:
        Tensor like ``y``; elements of one block are equal, to the bit.

    Example:
        >>> isotonic(torch.tensor([3.0, 1.0, 2.0, 0.0]))
        tensor([3.0000, 1.5000, 1.5000, 0.0000])

    References:
        Miriam Ayer, H. D. Brunk, G. M. Ewing, W. T. Reid, Edward Silverman, "An Empirical Distribution Function for
        Sampling with Incomplete Information", Annals of Mathematical Statistics, 1955 (that neighbors can be pooled).
    """
    return _means(y, _pooled(y.detach(), apart, False)) if y.numel() else y


def sorted_threshold(w: Tensor, thresholds: Tensor) -> Tensor:
    r"""The proximal operator of the sorted L1 norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + \sum_i t_i |u|_{(i)}, \qquad
              t_1 \ge t_2 \ge \dots \ge 0, \quad |u|_{(1)} \ge |u|_{(2)} \ge \dots

    Of the magnitudes in descending order it is :math:`\max(P(|w|_{(\cdot)} - t), 0)`, with the isotonic regression
    :math:`P`; signs and order are those of ``w``.

    Args:
        w: vector; of a complex one the magnitudes are thresholded.
        thresholds: ``t``, a vector as long as ``w``.

    Example:
        >>> sorted_threshold(torch.tensor([1.0, -5.0, 4.5]), torch.tensor([2.0, 1.0, 0.5]))
        tensor([ 0.5000, -3.2500,  3.2500])

    References:
        Małgorzata Bogdan, Ewout van den Berg, Chiara Sabatti, Weijie Su, Emmanuel J. Candès, "SLOPE - Adaptive
        Variable Selection via Convex Optimization", Annals of Applied Statistics, 2015.
    """
    size, order = magnitude(w).sort(descending=True, stable=True)
    below = size.to(thresholds.dtype) - thresholds
    kept = F.relu(_means(below, _pooled(below.detach(), None, True)))
    shrunk = torch.zeros_like(kept).index_copy(0, order, kept)
    return w.sgn() * (shrunk + _spoilt(size)).to(real_dtype(w))


def sorted_shares(size: Tensor, weights: Tensor) -> Tensor:
    """The weight of each element in the sorted L1 norm, by the rank of its magnitude; equal ones get their mean.

    Example:
        >>> sorted_shares(torch.tensor([1.0, 3.0, 1.0]), torch.tensor([5.0, 2.0, 1.0]))
        tensor([1.5000, 5.0000, 1.5000])
    """
    if not size.numel():
        return weights
    ranked, order = size.sort(descending=True, stable=True)
    shares = _means(weights, _numbered(ranked[1:] != ranked[:-1]))
    return torch.zeros_like(shares).index_copy(0, order, shares)


def sorted_distance(w: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """The distance of ``-gradient`` to the subdifferential of the sorted L1 norm at the vector ``w``, 0-d.

    The subdifferential is a product over the sets of equal magnitudes: for each the convex hull of all orders of its
    weights, and at zero all that is below them.

    Example:
        >>> weights = torch.tensor([2.0, 1.0])
        >>> sorted_distance(torch.ones(2), torch.tensor([-1.5, -1.5]), weights)
        tensor(0.)
        >>> sorted_distance(torch.zeros(2), torch.tensor([-5.0, 0.0]), weights)
        tensor(3.)
    """
    size = magnitude(w)
    pull = torch.where(w == 0, magnitude(gradient), -(gradient * w.sgn().conj()).real.to(size.dtype))
    across = torch.where(w == 0, torch.zeros_like(gradient), gradient + pull.to(gradient.dtype) * w.sgn())
    by_pull = pull.argsort(descending=True, stable=True)
    order = by_pull[size[by_pull].argsort(descending=True, stable=True)]
    ranked = size[order]
    excess = pull[order].to(weights.dtype) - weights
    rest = isotonic(excess, ranked[1:] != ranked[:-1])
    rest = torch.where(ranked == 0, F.relu(rest), rest)
    return torch.hypot(rest.square().sum().sqrt(), magnitude(across).square().sum().sqrt().to(rest.dtype))


def _means(y: Tensor, block: Tensor) -> Tensor:
    """The mean of each element's block."""
    sums = torch.zeros_like(y).index_add(0, block, y)
    count = torch.zeros_like(y).index_add(0, block, torch.ones_like(y))
    return sums[block] / count[block]


def _numbered(begins: Tensor) -> Tensor:
    """The number of each element's block, from whether each but the first begins one."""
    return F.pad(begins.cumsum(0), (1, 0))


@torch.library.custom_op("torchreg::pooled", mutates_args=())  # compilers do not look into it: it depends on numbers
def _pooled(y: Tensor, apart: Tensor | None, is_clamped: bool) -> Tensor:
    """The number of the block of each element in the isotonic regression, of which negative values may not matter."""
    if not is_clamped:
        return _blocks(y, apart)
    # What follows the last positive element is part of no block with a positive mean.
    positive = (y > 0).nonzero()
    last = int(positive[-1]) + 1 if len(positive) else 0
    blocks = _blocks(y[:last], None)
    return torch.cat([blocks, torch.arange(last, len(y), device=y.device)])


@_pooled.register_fake
def _(y: Tensor, apart: Tensor | None, is_clamped: bool) -> Tensor:
    return torch.empty_like(y, dtype=torch.int64)


@_pooled.register_vmap
def _(info: Any, in_dims: Any, y: Tensor, apart: Tensor | None, is_clamped: bool) -> tuple[Tensor, int]:
    (of_y, of_apart, _), many = in_dims, range(info.batch_size)
    ys = [y if of_y is None else y.select(of_y, k) for k in many]
    each = [apart if apart is None or of_apart is None else apart.select(of_apart, k) for k in many]
    return torch.stack([_pooled(a, b, is_clamped) for a, b in zip(ys, each, strict=True)]), 0


def _blocks(y: Tensor, apart: Tensor | None) -> Tensor:
    block = torch.arange(len(y), device=y.device)
    means, sizes = y, torch.ones_like(y)
    for _ in range(_ROUNDS):
        descends = ~(means[:-1] < means[1:])
        if apart is not None:
            descends |= apart
        if bool(descends.all()):
            return block
        merged = _numbered(descends)
        count = int(merged[-1]) + 1
        sums = torch.stack([sizes, sizes * means])
        sizes, total = sums.new_zeros(2, count).index_add(1, merged, sums)
        means, block = total / sizes, merged[block]
        apart = None if apart is None else apart[descends]
    return _one_by_one(means, sizes, apart)[block]


def _one_by_one(means: Tensor, sizes: Tensor, apart: Tensor | None) -> Tensor:
    """The blocks of a sequence of blocks, by a stack, on the CPU."""
    held = [False] * len(means) if apart is None else [False, *apart.tolist()]
    stack: list[tuple[float, float, int, bool]] = []  # mean, size, number of blocks, whether it begins a part
    for mean, size, begins in zip(means.tolist(), sizes.tolist(), held, strict=True):
        many = 1
        while stack and not begins and stack[-1][0] < mean:
            other, more, count, begins = stack.pop()
            mean, size, many = (other * more + mean * size) / (more + size), more + size, many + count
        stack.append((mean, size, many, begins))
    counts = torch.tensor([many for _, _, many, _ in stack], device=means.device)
    return torch.arange(len(counts), device=means.device).repeat_interleave(counts)


def _spoilt(size: Tensor) -> Tensor:
    """NaN if an element is NaN, else 0: each element depends on all of them."""
    return size.new_zeros(()).masked_fill(size.isnan().any(), torch.nan)
