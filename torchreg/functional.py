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
    parts = _wide(torch.view_as_real(w) if w.is_complex() else w)
    return (parts * parts).sum() / 2  # not torch.dot, which adds up one by one


def soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding, the proximal operator of the L1 norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t \|u\|_1 = \operatorname{sign}(w) \max(|w| - t, 0)

    It is computed as ``w - clamp(w, -t, t)``: no division, so a zero weight stays zero at threshold 0, and what lies
    within the threshold becomes exactly zero.

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
    if isinstance(threshold, Tensor):
        return w - torch.minimum(torch.maximum(w, -threshold), threshold).to(w.dtype)
    return w - w.clamp(-threshold, threshold)


def soft_threshold_(w: Tensor, threshold: float | Tensor) -> Tensor:
    """:func:`soft_threshold` in place: with a number and real ``w`` in one pass, without memory of its own.

    Example:
        >>> soft_threshold_(torch.tensor([-3.0, 0.5, 0.0]), 1.0)
        tensor([-2.,  0.,  0.])
    """
    if isinstance(threshold, Tensor) or w.is_complex():
        return w.copy_(soft_threshold(w, threshold))
    result: Tensor = torch.ops.aten.softshrink.out(w, threshold, out=w)
    return result


def shrink(w: Tensor, amount: float | Tensor) -> Tensor:
    r"""Shrinkage, the proximal operator of half the squared norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + \tfrac{c}{2} \|u\|^2 = w / (1 + c)

    Example:
        >>> shrink(torch.tensor([3.0, -1.0]), 1.0)
        tensor([ 1.5000, -0.5000])
    """
    return w / (1 + amount)


def magnitude(w: Tensor) -> Tensor:
    """``|w|``, in float32 for half-precision ``w``: what a sum over a layer should start from."""
    return _wide(w.abs())


def largest(w: Tensor) -> Tensor:
    """``max(|w|)``, 0-d; 0 for an empty tensor."""
    return w.abs().amax() if w.numel() else w.abs().sum()


def scaled_sign(w: Tensor, scale: float | Tensor) -> Tensor:
    """``scale * sign(w)``, in as few passes as derivatives of it allow; of complex ``w`` the phase is the sign."""
    return w.sgn() * scale if w.is_complex() or isinstance(scale, Tensor) else w.sign().mul_(scale)


def clip(w: Tensor, limit: float) -> Tensor:
    """``w`` with no element larger than ``limit`` in magnitude; the phase of complex ones is kept."""
    return torch.where(w.abs() > limit, w.sgn() * limit, w) if w.is_complex() else w.clamp(-limit, limit)


def normalize(w: Tensor) -> Tensor:
    """``w / |w|`` over the last dimension; a zero vector, which has no direction, stays zero.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if not w.numel():
        return w
    size = magnitude(w).amax(-1, keepdim=True)
    scaled = _wide(w) / size.masked_fill(size == 0, 1.0)  # so that no square overflows or vanishes
    square = _row_squares(scaled)  # at least 1, unless all are zero
    return (scaled / square.clamp(min=1.0).sqrt()).to(w.dtype)


def project_l2_ball(w: Tensor, radius: float) -> Tensor:
    r"""Projection of each vector along the last dimension onto the Euclidean ball.

    .. math:: \operatorname{argmin}_{\|u\|_2 \le r} \|u - w\| = w \min(1, r / \|w\|_2)

    Args:
        w: tensor of shape (..., n).
        radius: ``r > 0``.

    Returns:
        Tensor like ``w``; vectors inside the ball are the same to the bit.

    Example:
        >>> project_l2_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    square = _row_squares(w)
    scale = radius / square.clamp(min=radius**2).sqrt()
    return torch.where(square > radius**2, (w * scale).to(w.dtype), w)


def project_l1_ball(w: Tensor, radius: float) -> Tensor:
    r"""Projection of each vector along the last dimension onto the L1 ball.

    .. math:: \operatorname{argmin}_{\|u\|_1 \le r} \|u - w\|
              = \operatorname{sign}(w) \, P_{\Delta_r}(|w|) \quad \text{if } \|w\|_1 > r

    where :math:`\Delta_r` is the simplex of :func:`project_simplex`.

    Args:
        w: tensor of shape (..., n); of a complex one the magnitudes are projected.
        radius: ``r > 0``.

    Returns:
        Tensor like ``w``; vectors inside the ball are the same to the bit.

    Example:
        >>> project_l1_ball(torch.tensor([1.0, -0.5, 0.1]), 1.0)
        tensor([ 0.7500, -0.2500,  0.0000])
    """
    size = magnitude(w)
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
    below = _wide(w)
    below = below - below.amax(-1, keepdim=True)  # of elements that are large and nearly equal the difference is exact
    count = torch.arange(1, w.shape[-1] + 1, device=w.device)
    sums = below.sort(dim=-1, descending=True).values.cumsum(-1)
    u = F.relu(below - ((sums - total) / count).amax(-1, keepdim=True))
    excess = (u.sum(-1, keepdim=True) - total) / u.count_nonzero(-1).unsqueeze(-1)  # what rounding left in a long sum
    return F.relu(u - excess).masked_fill(u == 0, 0.0).to(w.dtype)


def row_norms(w: Tensor) -> Tensor:
    """``sqrt(sum(|w|**2))`` over the last dimension, kept with size 1; float32 for half-precision ``w``.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5.],
                [0.]])
    """
    squares = _row_squares(w)
    zero = squares == 0  # where the root's slope is infinite
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def group_soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding of each vector along the last dimension, the proximal operator of the Euclidean norm.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t \|u\|_2 = w \max(1 - t / \|w\|_2, 0)

    Args:
        w: tensor of shape (..., n).
        threshold: ``t >= 0``, a number or a tensor that broadcasts to (..., 1).

    Example:
        >>> group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    References:
        Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped Variables", Journal of the Royal
        Statistical Society B, 2006.
    """
    norms = row_norms(w)
    threshold = as_tensor(threshold, norms)
    above = torch.maximum(norms, threshold).clamp(min=torch.finfo(norms.dtype).tiny)  # so that 0 / 0 is 0
    return (w * (1 - threshold / above)).to(w.dtype)


def exclusive_threshold(w: Tensor, amount: float | Tensor) -> Tensor:
    r"""The proximal operator of half the squared L1 norm of each vector along the last dimension.

    .. math:: \operatorname{argmin}_u \tfrac12 \|u - w\|^2 + \tfrac{c}{2} \|u\|_1^2
              = \operatorname{sign}(w) \max(|w| - \tau, 0), \qquad
              \tau = \max_k \frac{c}{1 + kc} \sum_{i \le k} |w|_{(i)}

    where :math:`|w|_{(1)} \ge |w|_{(2)} \ge \dots` are the magnitudes in descending order.

    Args:
        w: tensor of shape (..., n).
        amount: ``c >= 0``, a number or a 0-d tensor.

    Example:
        >>> exclusive_threshold(torch.tensor([[3.0, -1.0], [3.0, -2.0]]), 1.0)
        tensor([[ 1.5000,  0.0000],
                [ 1.3333, -0.3333]])

    References:
        Matthieu Kowalski, "Sparse regression using mixed norms", Applied and Computational Harmonic Analysis, 2009.
    """
    if not w.numel():
        return w.clone()
    sums = magnitude(w).sort(dim=-1, descending=True).values.cumsum(-1)
    count = torch.arange(1, w.shape[-1] + 1, dtype=sums.dtype, device=w.device)
    return soft_threshold(w, (amount / (1 + amount * count) * sums).amax(-1, keepdim=True))


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
    left, sigma, right = torch.linalg.svd(_wide(w), full_matrices=False)
    shrunk = (left * F.relu(sigma - threshold).unsqueeze(-2)) @ right
    return torch.where(as_tensor(threshold, sigma) > 0, shrunk.to(w.dtype), w)


def distance_beyond_kink(residual: Tensor, at_kink: Tensor, slope: float | Tensor) -> Tensor:
    """The Euclidean length of ``residual``, of which a kink takes up to ``slope`` at each element that lies in one.

    It is the distance of minus the loss's gradient to the subdifferential of a penalty, if ``residual`` is that
    gradient plus the penalty's subgradient which is 0 in the kinks.
    """
    size = magnitude(residual)
    return l2_norm(torch.where(at_kink, F.relu(size - slope), size)).to(real_dtype(residual))


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


def as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` with ``like``'s dtype and device. To a compiler, a number is one that may change."""
    return (like.new_zeros(()) + value).to(like.dtype)


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


def _row_squares(w: Tensor) -> Tensor:
    # Not vector_norm, which adds up one by one: of ten million equal float32 weights its norm is off by 8e-3.
    return magnitude(w).square().sum(-1, keepdim=True)


def _wide(w: Tensor) -> Tensor:
    return w.float() if w.dtype in _HALF else w
