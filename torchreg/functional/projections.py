"""Projections onto sets."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchreg.functional.internals import is_transformed
from torchreg.functional.measures import magnitude, real_dtype, row_norms, row_squares, wide, within


def normalize(w: Tensor) -> Tensor:
    """``w / |w|`` over the last dimension; a zero vector stays zero.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if not w.numel():
        return w
    size = magnitude(w).amax(-1, keepdim=True)
    scaled = wide(w) / size.masked_fill(size == 0, 1.0)  # so that squares neither overflow nor vanish
    square = row_squares(scaled)  # at least 1, unless all are zero
    return (scaled / square.clamp(min=1.0).sqrt()).to(w.dtype)


def project_l2_ball(w: Tensor, radius: float) -> Tensor:
    r"""Projection of each vector along the last dimension onto the Euclidean ball.

    .. math:: \operatorname{argmin}_{\|u\|_2 \le r} \|u - w\| = w \min(1, r / \|w\|_2)

    Args:
        w: tensor of shape (..., n).
        radius: ``r > 0``.

    Returns:
        Tensor like ``w``; vectors inside the ball do not change, to the bit.

    Example:
        >>> project_l2_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    lengths = row_norms(w)
    radius = within(radius, lengths.dtype)
    shorter = w * (radius / lengths.clamp(min=radius))
    is_readable = lengths.is_cpu and not torch.compiler.is_compiling() and not is_transformed()
    if not is_readable or lengths.isinf().any():  # two more passes over the weights, which others do not wait to spare
        shorter = torch.where(lengths.isinf(), normalize(w) * radius, shorter)
    return torch.where(lengths > radius, shorter.to(w.dtype), w)


def project_l1_ball(w: Tensor, radius: float) -> Tensor:
    r"""Projection of each vector along the last dimension onto the L1 ball.

    .. math:: \operatorname{argmin}_{\|u\|_1 \le r} \|u - w\|
              = \operatorname{sign}(w) \, P_{\Delta_r}(|w|) \quad \text{if } \|w\|_1 > r

    where :math:`\Delta_r` is the simplex of :func:`project_simplex`.

    Args:
        w: tensor of shape (..., n); of a complex one the magnitudes are projected.
        radius: ``r > 0``.

    Returns:
        Tensor like ``w``; vectors inside the ball do not change, to the bit.

    Example:
        >>> project_l1_ball(torch.tensor([1.0, -0.5, 0.1]), 1.0)
        tensor([ 0.7500, -0.2500,  0.0000])
    """
    size = magnitude(w)
    radius = within(radius, size.dtype)
    outside = size.sum(-1, keepdim=True) > radius
    return torch.where(outside, w.sgn() * project_simplex(size, radius).to(real_dtype(w)), w)


def project_simplex(w: Tensor, total: float = 1.0) -> Tensor:
    r"""Projection of each vector along the last dimension onto the simplex.

    .. math:: \operatorname{argmin}_{u \ge 0,\ \sum_i u_i = c} \|u - w\| = \max(w - \tau, 0), \qquad
              \tau = \max_k \frac1k \Big( \sum_{i \le k} w_{(i)} - c \Big)

    where :math:`w_{(1)} \ge w_{(2)} \ge \dots` are the elements in descending order.

    Args:
        w: real tensor of shape (..., n). Elements of minus infinity become 0.
        total: ``c > 0``.

    Example:
        >>> project_simplex(torch.tensor([0.5, 0.0, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Michael Held, Philip Wolfe, Harlan P. Crowder, "Validation of subgradient optimization", Mathematical
        Programming, 1974. John Duchi, Shai Shalev-Shwartz, Yoram Singer, Tushar Chandra, "Efficient Projections onto
        the l1-Ball for Learning in High Dimensions", ICML 2008.
    """
    if not w.numel():
        return w
    below = wide(w)
    total = within(total, below.dtype)
    below = below - below.amax(-1, keepdim=True)  # the differences of large and nearly equal elements are exact
    count = torch.arange(1, w.shape[-1] + 1, device=w.device)
    sums = below.sort(dim=-1, descending=True).values.cumsum(-1)
    u = F.relu(below - ((sums - total) / count).amax(-1, keepdim=True))
    excess = (u.sum(-1, keepdim=True) - total) / u.count_nonzero(-1).unsqueeze(-1)  # the rounding error of the sum
    return F.relu(u - excess).masked_fill(u == 0, 0.0).to(w.dtype)


def are_largest(size: Tensor, count: int) -> Tensor:
    """Which elements are the ``count`` largest along the last dimension; of equal ones the first, NaN before all.

    Args:
        size: real tensor of shape (..., n).
        count: at least 0; all elements are among the largest if it is ``n`` or more.

    Example:
        >>> are_largest(torch.tensor([2.0, 3.0, 2.0, 2.0]), 2)
        tensor([ True,  True, False, False])
    """
    if count == 0 or count >= size.shape[-1]:
        return torch.full_like(size, count > 0, dtype=torch.bool)
    size = size.masked_fill(size.isnan(), math.inf)
    least = size.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, tied = size > least, size == least
    return above | (tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
