"""Thresholds, shrinkage, signs and in-place updates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchreg.functional.measures import as_tensor, magnitude, real_dtype, row_norms, wide, within
from torchreg.functional.singular import svd

_NEWTON_STEPS = 12


def soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding, the proximal operator of the L1 norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t \|u\|_1 = \operatorname{sign}(w) \max(|w| - t, 0)

    It is computed as ``w - clamp(w, -t, t)``, without a division: values within the threshold become exactly zero, and
    zero stays zero at threshold 0.

    Args:
        w: tensor of any shape; of a complex one the magnitudes are thresholded.
        threshold: ``t >= 0``, a number or a tensor that broadcasts to ``w``.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 0.0]), 1.0)
        tensor([-2.,  0.,  0.])

    References:
        David L. Donoho, "De-noising by soft-thresholding", IEEE Transactions on Information Theory, 1995.
    """
    if w.is_complex():
        return w - torch.where(w.abs() > threshold, w.sgn() * threshold, w)
    threshold = _beside(threshold, w)
    return w - w.clamp(-threshold, threshold).to(w.dtype)  # type: ignore[arg-type]


def soft_threshold_(w: Tensor, threshold: float | Tensor) -> Tensor:
    """:func:`soft_threshold` in place; with a number in one pass over real ``w``, without further memory.

    Example:
        >>> soft_threshold_(torch.tensor([-3.0, 0.5, 0.0]), 1.0)
        tensor([-2.,  0.,  0.])
    """
    if torch.is_grad_enabled():  # derivatives need the old w
        return w.copy_(soft_threshold(w.clone(), threshold))
    if w.is_complex():
        return w.copy_(soft_threshold(w, threshold))
    if isinstance(threshold, Tensor):
        beside = _beside(threshold, w)
        return w.sub_(w.clamp(-beside, beside))  # type: ignore[arg-type]
    return F.softshrink(w, threshold, out=w)  # type: ignore[call-arg]


def _beside(threshold: float | Tensor, w: Tensor) -> float | Tensor:
    """The threshold, on ``w``'s device: ``clamp`` takes no number on the CPU for a tensor elsewhere, as sums do."""
    if isinstance(threshold, Tensor) and threshold.is_cpu and not (w.is_cpu or w.is_meta):
        return as_tensor(threshold, w)
    return threshold


def soft_threshold_towards(w: Tensor, start: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding of ``w - start``: values nearer to ``start`` than the threshold become ``start``, to the bit.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t \|u - w^0\|_1

    At threshold 0 nothing changes, to the bit.

    Example:
        >>> soft_threshold_towards(torch.tensor([2.0, 0.9]), torch.ones(2), 0.5)
        tensor([1.5000, 1.0000])
    """
    away = w - start
    # Not start + soft_threshold(away), which would change the last bits.
    near, moved = away.abs() <= threshold, w - away.sgn() * threshold
    if start.ndim == 0 and start.is_cpu and not (w.is_cpu or w.is_meta):  # where() would wait for the device to copy it
        return moved.masked_fill(near, start).to(w.dtype)
    return torch.where(near, start, moved).to(w.dtype)


def shrink(w: Tensor, amount: float | Tensor) -> Tensor:
    r"""Shrinkage, the proximal operator of half the squared norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + \tfrac{c}{2} \|u\|^2 = w / (1 + c)

    Example:
        >>> shrink(torch.tensor([3.0, -1.0]), 1.0)
        tensor([ 1.5000, -0.5000])
    """
    return w / (1 + amount)


def scaled_sign(w: Tensor, scale: float | Tensor) -> Tensor:
    """``scale * sign(w)``, in few passes; the sign of a complex number is its phase."""
    return w.sgn() * scale if w.is_complex() or isinstance(scale, Tensor) else w.sign().mul_(scale)


def clip(w: Tensor, limit: float) -> Tensor:
    """``w`` with magnitudes of at most ``limit``; complex elements keep their phase."""
    limit = within(limit, real_dtype(w))
    return torch.where(w.abs() > limit, w.sgn() * limit, w) if w.is_complex() else w.clamp(-limit, limit)


def group_soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding of each vector along the last dimension, the proximal operator of the Euclidean norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t \|u\|_2 = w \max(1 - t / \|w\|_2, 0)

    With a threshold for each element it is the operator in another metric:

    .. math:: \operatorname{argmin}_u \sum_i \frac{(u_i - w_i)^2}{2 t_i} + \|u\|_2
              = \Big(\frac{w_i\, n}{n + t_i}\Big)_i, \qquad
              n = \|u\|_2 \text{ solves } \sum_i \frac{w_i^2}{(n + t_i)^2} = 1

    or 0 if :math:`\sum_i (w_i / t_i)^2 \le 1`. Newton's method finds :math:`n` from below.

    Args:
        w: tensor of shape (..., n).
        threshold: ``t >= 0``, a number, a tensor that broadcasts to (..., 1), or one of ``w``'s shape.

    Example:
        >>> group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    References:
        Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped Variables", Journal of the Royal
        Statistical Society B, 2006.
    """
    if isinstance(threshold, Tensor) and threshold.ndim and threshold.shape[-1] > 1:
        return _group_soft_threshold_in_metric(w, threshold)
    return (w * kept_share(row_norms(w), threshold)).to(w.dtype)


def kept_share(norms: Tensor, threshold: float | Tensor) -> Tensor:
    """What :func:`group_soft_threshold` multiplies vectors of these norms by: ``max(1 - threshold / norms, 0)``.

    Example:
        >>> kept_share(torch.tensor([4.0, 0.5, 0.0]), 1.0)
        tensor([0.7500, 0.0000, 0.0000])
    """
    threshold = as_tensor(threshold, norms)
    above = torch.maximum(norms, threshold).clamp(min=torch.finfo(norms.dtype).tiny)  # so that 0 / 0 is 0
    return 1 - threshold / above


def _group_soft_threshold_in_metric(w: Tensor, threshold: Tensor) -> Tensor:
    size = magnitude(w)
    largest = size.amax(-1, keepdim=True)
    scale = largest.masked_fill(largest == 0, 1.0)  # so that squares do not overflow
    size, t = size / scale, threshold.to(size.dtype) / scale
    norm = torch.maximum(row_norms(size) - t.amax(-1, keepdim=True), (size - t).amax(-1, keepdim=True)).clamp(min=0)
    for _ in range(_NEWTON_STEPS):  # for 1 / |w / (n + t)|, which is concave and nearly linear
        shift = (norm + t).clamp(min=torch.finfo(size.dtype).tiny)
        ratio = size / shift
        length = row_norms(ratio)
        curvature = (ratio.square() / shift).sum(-1, keepdim=True)
        move = (length - 1) * length.square() / curvature.masked_fill(curvature == 0, math.inf)
        norm = (norm + move).clamp(min=0)
    return w * (norm / (norm + t).masked_fill(norm == 0, 1.0)).to(w.dtype)


def exclusive_threshold(w: Tensor, amount: float | Tensor) -> Tensor:
    r"""The proximal operator of half the squared L1 norm of each vector along the last dimension.

    .. math:: \operatorname{argmin}_u \sum_i \frac{(u_i - w_i)^2}{2 c_i} + \tfrac12 \|u\|_1^2
              = \Big(\operatorname{sign}(w_i) \max(|w_i| - \tau c_i, 0)\Big)_i, \qquad
              \tau = \max_k \frac{\sum_{i \le k} |w|_{(i)}}{1 + \sum_{i \le k} c_{(i)}}

    where :math:`|w|_{(i)} / c_{(i)}` are in descending order.

    Args:
        w: tensor of shape (..., n).
        amount: ``c >= 0``, a number, a 0-d tensor, or one of ``w``'s shape.

    Example:
        >>> exclusive_threshold(torch.tensor([[3.0, -1.0], [3.0, -2.0]]), 1.0)
        tensor([[ 1.5000,  0.0000],
                [ 1.3333, -0.3333]])

    References:
        Matthieu Kowalski, "Sparse regression using mixed norms", Applied and Computational Harmonic Analysis, 2009.
    """
    if not w.numel():
        return w.clone()
    size = magnitude(w)
    amount = as_tensor(amount, size).expand_as(size)
    order = (size / amount).nan_to_num(nan=0.0, posinf=math.inf).argsort(dim=-1, descending=True)
    sums, amounts = size.gather(-1, order).cumsum(-1), amount.gather(-1, order).cumsum(-1)
    return soft_threshold(w, amount * (sums / (1 + amounts)).amax(-1, keepdim=True))


def singular_value_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding of singular values, the proximal operator of the nuclear norm.

    .. math:: \operatorname{argmin}_U \tfrac12 \|U - W\|_F^2 + t \|U\|_* = L \max(\Sigma - t, 0) R^H
              \quad \text{for } W = L \Sigma R^H

    Args:
        w: matrix, or a batch of them.
        threshold: ``t >= 0``, a number or a 0-d tensor; 0 returns ``w`` to the bit.

    Example:
        >>> singular_value_threshold(torch.diag(torch.tensor([3.0, 1.0])), 1.5)
        tensor([[1.5000, 0.0000],
                [0.0000, 0.0000]])

    References:
        Jian-Feng Cai, Emmanuel J. Candès, Zuowei Shen, "A Singular Value Thresholding Algorithm for Matrix
        Completion", SIAM Journal on Optimization, 2010.
    """
    left, sigma, right = svd(wide(w))
    shrunk = (left * F.relu(sigma - threshold).unsqueeze(-2)) @ right
    return torch.where(as_tensor(threshold, sigma) > 0, shrunk.to(w.dtype), w)


def axpy_(y: Tensor, x: Tensor, a: float | Tensor) -> Tensor:
    """``y += a * x`` in place, for a number or a tensor ``a``; with a number as torch's optimizers compute it.

    Example:
        >>> axpy_(torch.ones(2), torch.ones(2), 0.5)
        tensor([1.5000, 1.5000])
    """
    return y.addcmul_(x, a) if isinstance(a, Tensor) else y.add_(x, alpha=a)
