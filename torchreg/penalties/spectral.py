"""Penalties on the singular values of a weight as a matrix; see :mod:`torchreg.penalties.matrices`.

Each step decomposes the matrix. For sides of more than a thousand that costs more than the step of most models. The
gradient of :class:`SpectralNorm` needs no decomposition in a step, on the CPU.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty, Term
from torchreg.penalties.matrices import Matrix
from torchreg.selection.parameters import ParamInfo


class Spectral(Term):
    """A penalty ``R(W) = r(sigma)`` on the singular values of one matrix or more.

    Its gradient is ``U diag(r'(sigma)) V^H``. Singular values that are equal up to rounding get the same slope, so the
    result does not depend on which of their vectors the decomposition chose. Second derivatives are autograd's: they
    exist where all singular values differ.
    """

    @abstractmethod
    def _matrix(self, w: Tensor) -> Tensor:
        """The matrix that the weight is, or the matrices: a linear function of it."""

    @abstractmethod
    def _weight(self, matrix: Tensor, w: Tensor) -> Tensor:
        """The adjoint of :meth:`_matrix`, in ``w``'s shape and dtype."""

    @abstractmethod
    def _cost(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        """``r``, 0-d, of the singular values of a matrix of that shape."""

    @abstractmethod
    def _slope(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        """``r'`` at each singular value."""

    def value(self, w: Tensor) -> Tensor:
        matrix = self._matrix(w)
        return self._cost(f.singular_values(matrix), matrix.shape).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        matrix = self._matrix(w)
        left, sigma, right = f.svd(matrix)
        return self._weight(_product(left, self._slope(sigma, matrix.shape), right), w)


@final
@dataclass(frozen=True, repr=False, eq=False)
class Nuclear(Matrix, Spectral, ProximalPenalty):
    r"""The nuclear norm: it drives singular values to zero and the weight to a low rank.

    .. math:: R(W) = s \sum_i \sigma_i(W), \qquad
              \partial R(W) \ni s\, U_r V_r^H, \qquad
              \operatorname{prox}_{tR}(W)
              = \operatorname{argmin}_X \tfrac12 \|X - W\|_F^2 + ts \sum_i \sigma_i(X)
              = U \max(\Sigma - ts, 0) V^H

    for :math:`W = U \Sigma V^H`, where :math:`U_r, V_r` are the singular vectors of the singular values that are not
    zero. A singular value counts as zero up to :math:`\sigma_1` times the larger side of the matrix times the rounding
    unit.

    In the steps of mode "prox" on the CPU, a weight with more than 128 rows and columns is decomposed while its rank is
    high. Once at most an eighth of its singular values are above ``ts``, these are followed from step to step, with a
    certificate that they are all. For 1,000 x 1,000 and a low rank that takes 4 ms instead of 200. The result is right
    up to the rounding of the largest one. A run that is resumed from a checkpoint may differ by as much. Pass
    ``every=k`` to the :class:`~torchreg.Regularizer` for one such step in ``k``.

    Args:
        strength: ``s``, finite and not negative.
        dim: the dimension of the output units in the weight, if not the module's own.

    Raises:
        ValueError: the weight has no such dimension.

    Example:
        >>> import torch
        >>> penalty = Nuclear(1.0)
        >>> penalty.value(torch.diag(torch.tensor([3.0, 1.0])))
        tensor(4.)
        >>> penalty.prox(torch.diag(torch.tensor([3.0, 1.0])), step=1.5)
        tensor([[1.5000, 0.0000],
                [0.0000, 0.0000]])

    References:
        Jian-Feng Cai, Emmanuel J. Candès, Zuowei Shen, "A Singular Value Thresholding Algorithm for Matrix
        Completion", SIAM Journal on Optimization, 2010. G. Alistair Watson, "Characterization of the subdifferential
        of some matrix norms", Linear Algebra and its Applications, 1992.
    """

    def _cost(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        return self.strength * (_positive(sigma, shape) * sigma).sum()

    def _slope(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        return self.strength * _positive(sigma, shape)

    @property
    def _curvature(self) -> float:
        return 0.0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return self._split(w).map(lambda matrix: f.singular_value_threshold(matrix.rows, step * self.strength))

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        threshold = step * self.strength
        if torch.is_grad_enabled() or not w.is_cpu or not threshold > 0:
            return super()._prox_(w, step)
        shrunk = f.low_rank_threshold(w, self._matrix(w), float(threshold))
        return super()._prox_(w, step) if shrunk is None else w.copy_(self._weight(shrunk, w))

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        matrix, residual = self._matrix(w), self._matrix(gradient)
        left, sigma, right = f.svd(matrix)
        rank = _positive(sigma, matrix.shape)
        left, right = left * rank, right * rank.unsqueeze(-1)
        off = residual - left @ (left.mH @ residual)  # off the tangent space, the subgradients are a ball of matrices
        off = off - (off @ right.mH) @ right
        excess = F.relu(f.singular_values(off) - self.strength)
        tangent = residual - off + self.strength * left @ right
        return torch.hypot(f.l2_norm(tangent), f.l2_norm(excess)).to(f.real_dtype(w))

    def strength_max(self, gradient: Tensor) -> Tensor:
        return f.largest(f.singular_values(self._matrix(gradient))).to(f.real_dtype(gradient))


class Largest(Spectral):
    """Half the squared largest singular value."""

    def _cost(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        return self.strength / 2 * (_leading(sigma, shape) * sigma.square()).sum()

    def _slope(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        return self.strength * _leading(sigma, shape) * sigma


@final
@dataclass(frozen=True, repr=False, eq=False)
class SpectralNorm(Matrix, Largest, ProximalPenalty):
    r"""Half the squared spectral norm: it bounds how much the layer stretches its input, its Lipschitz constant.

    .. math:: R(W) = \frac{s}{2} \sigma_1(W)^2, \qquad
              \nabla R(W) = s\, \sigma_1 u_1 v_1^H, \qquad
              \operatorname{prox}_{tR}(W)
              = \operatorname{argmin}_X \tfrac12 \|X - W\|_F^2 + \tfrac{ts}{2} \sigma_1(X)^2
              = U \min(\Sigma, \tau) V^H

    with :math:`\tau = \max_k (\sigma_1 + \dots + \sigma_k) / (k + ts)`. If several singular values are the largest, the
    gradient is the mean of theirs. The authors approximate :math:`\sigma_1` by one power iteration; here it is exact up
    to rounding. For a convolution this is the norm of the kernel as a matrix; the norm of the operator on images is
    :class:`ConvolutionNorm`.

    In the steps of modes "grad" and "decoupled" on the CPU, a weight with more than 128 rows and columns is not
    decomposed. Its leading vectors are followed from step to step: mostly by one iteration on a block of 16, and by as
    many as R needs to be right up to rounding; where 100 are too few, a decomposition follows. The vectors are then
    right up to the root of that, about 1e-3 in single precision, which makes the gradient a subgradient of R up to
    rounding. A run that is resumed from a checkpoint may differ by as much.

    Args:
        strength, dim: as for :class:`Nuclear`.

    Raises:
        ValueError: the weight has no such dimension.

    Example:
        >>> import torch
        >>> SpectralNorm(1.0).prox(torch.diag(torch.tensor([3.0, 1.0])), step=0.5)
        tensor([[2., 0.],
                [0., 1.]])

    References:
        Yuichi Yoshida, Takeru Miyato, "Spectral Norm Regularization for Improving the Generalizability of Deep
        Learning", arXiv:1705.10941, 2017.
    """

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        if torch.is_grad_enabled() or (isinstance(scale, Tensor) and scale.ndim):
            return super()._add_gradient_(grad, w, scale)
        matrix = self._matrix(w)
        leading = f.leading_triples(w, matrix)
        if leading is None:
            return super()._add_gradient_(grad, w, scale)
        left, sigma, right = leading
        left = left * (sigma * (self.strength / len(sigma)) * scale)
        into = self._split(grad)
        if into.is_view and grad.dtype == matrix.dtype:
            rows = into.parts[0].rows
            if len(right) == 1:
                rows.addcmul_(left, right)  # addmm_ takes four times as long
            else:
                rows.addmm_(left, right)
            return grad
        return grad.add_(self._weight(left @ right, w))

    def _descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return self._add_gradient_(w, w, -step)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        matrix = self._matrix(w)
        if not matrix.numel():
            return w.clone()
        left, sigma, right = f.svd(matrix)
        amount = f.as_tensor(step * self.strength, sigma)
        count = torch.arange(1, len(sigma) + 1, dtype=sigma.dtype, device=sigma.device)
        level = (sigma.cumsum(0) / (count + amount)).amax()
        cut = self._weight(_product(left, torch.minimum(sigma, level), right), w)
        return torch.where(amount > 0, cut, w)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        # The subgradients are s * sigma_1 * U H V^H, of the leading vectors, for H >= 0 with trace 1. The nearest one
        # has the eigenvalues of U^H (-gradient) V, projected onto the simplex.
        matrix, residual = self._matrix(w), self._matrix(gradient)
        if not (matrix.isfinite().all() and residual.isfinite().all()):  # they have no decomposition
            return torch.full((), torch.nan, dtype=f.real_dtype(w), device=w.device)
        left, sigma, right = f.svd(matrix)
        slopes = self._slope(sigma, matrix.shape)
        many, total = int(slopes.count_nonzero()), float(slopes.sum())
        if many:
            left, right = left[:, :many], right[:many]
            inner = -left.mH @ residual @ right.mH
            level, vectors = torch.linalg.eigh((inner + inner.mH) / 2)
            residual = residual + left @ _product(vectors, f.project_simplex(level, total), vectors.mH) @ right
        return f.l2_norm(residual).to(f.real_dtype(w))


@final
@dataclass(frozen=True, repr=False, eq=False)
class ConvolutionNorm(Largest):
    r"""Half the squared norm of a convolution as an operator on images: it bounds how much the layer stretches them.

    .. math:: R(K) = \frac{s}{2} \max_\omega \sigma_1\big(\hat K(\omega)\big)^2, \qquad
              \hat K(\omega)_{oi} = \sum_x K_{oix} \, e^{-2 \pi \mathrm{i} \langle \omega, x \rangle}

    over the frequencies :math:`\omega` of images of the given size. It is exact for circular padding and stride 1. A
    larger stride makes the norm of the operator smaller; zero padding changes it at the borders. The penalty has no
    proximal operator in closed form.

    Args:
        strength: ``s``, finite and not negative.
        input_size: the size of the images in pixels, with one number for each dimension: ``(height, width)``.
        groups: the number of blocks of a grouped convolution. ``None``: the module's number; without a module 1.

    Raises:
        TypeError: ``input_size`` is not a sequence of whole numbers.
        ValueError: the weight is not a kernel with that many dimensions, or it is larger than the images; in a
            :class:`~torchreg.Regularizer` also a module that is no convolution, or a dilated one.

    Example:
        >>> import torch
        >>> difference = torch.tensor([[[-1.0, 1.0]]])
        >>> ConvolutionNorm(1.0, input_size=(8,)).value(difference)
        tensor(2.)

    References:
        Hanie Sedghi, Vineet Gupta, Philip M. Long, "The Singular Values of Convolutional Layers", ICLR 2019.
    """

    input_size: Sequence[int]
    groups: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.input_size
        whole = isinstance(size, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in size)
        if not whole or min(size, default=0) < 1:
            raise TypeError(
                f"ConvolutionNorm: input_size must be whole numbers >= 1, such as (28, 28), got {self.input_size!r}"
            )
        if self.groups is not None and (not isinstance(self.groups, int) or self.groups < 1):
            raise ValueError(f"ConvolutionNorm: groups must be a whole number >= 1 or None, got {self.groups!r}")
        object.__setattr__(self, "input_size", tuple(size))

    def bind(self, place: ParamInfo) -> Self:
        module = place.module
        if not isinstance(module, nn.modules.conv._ConvNd):
            raise ValueError(
                f"ConvolutionNorm: the weight must be a convolution's, {place.name} is in {type(module).__name__}: "
                "use SpectralNorm, or select=in_modules(nn.Conv2d)"
            )
        if any(n != 1 for n in module.dilation):
            raise ValueError(f"ConvolutionNorm: the convolution must not be dilated, {place.name} is: use SpectralNorm")
        known = module.groups == 1 or self.groups is not None
        bound = self if known else replace(self, groups=module.groups)
        bound._check(place.param)
        return bound

    def gradient(self, w: Tensor) -> Tensor:
        matrix = self._matrix(w)
        slopes = self._slope(f.singular_values(matrix), matrix.shape)
        leading = slopes.any(-1)  # vectors cost much more than values, and few frequencies need them
        left, _, right = f.svd(matrix[leading])
        change = torch.zeros_like(matrix)
        change[leading] = _product(left, slopes[leading], right)
        return self._weight(change, w)

    def _matrix(self, w: Tensor) -> Tensor:
        """The transfer function: a matrix for each frequency and block."""
        self._check(w)
        blocks = self.groups or 1
        kernel = f.wide(w).reshape(blocks, w.shape[0] // blocks, *w.shape[1:])
        if not w.numel():
            return kernel.flatten(3).movedim(-1, 0)
        spectrum: Tensor = torch.fft.fftn(kernel, s=self.input_size, dim=self._axes)
        return spectrum.flatten(3).movedim(-1, 0)

    def _weight(self, matrix: Tensor, w: Tensor) -> Tensor:
        if not w.numel():
            return torch.zeros_like(w)
        spectrum = matrix.movedim(0, -1).unflatten(-1, self.input_size)
        images: Tensor = torch.fft.ifftn(spectrum, dim=self._axes, norm="forward")
        for axis, length in zip(self._axes, w.shape[2:], strict=True):
            images = images.narrow(axis, 0, length)
        return (images if w.is_complex() else images.real).reshape(w.shape).to(w.dtype)

    @property
    def _axes(self) -> list[int]:
        return list(range(-len(self.input_size), 0))

    def _check(self, w: Tensor) -> None:
        blocks, sizes = self.groups or 1, w.shape[2:]
        fits = len(sizes) == len(self.input_size) and all(map(int.__le__, sizes, self.input_size))
        if not fits or w.shape[0] % blocks:
            raise ValueError(
                f"ConvolutionNorm: the weight must be a kernel of {blocks} blocks for images of size "
                f"{self.input_size}, got shape {tuple(w.shape)}"
            )


@final
@dataclass(frozen=True, repr=False, eq=False)
class SRIP(Matrix, Spectral):
    r"""Spectral restricted isometry property: draws the largest and the smallest stretching of an input towards 1.

    .. math:: R(W) = s \max_i |\sigma_i(W)^2 - 1|

    This is :math:`s \, \|W W^H - I\|_2`, or :math:`s \, \|W^H W - I\|_2` if there are more outputs than inputs: the
    larger Gram matrix always has eigenvalues 0, which could hide all others. The authors approximate the norm by a
    power iteration; here it is exact. The penalty is not convex and has no proximal operator in closed form.

    Args:
        strength, dim: as for :class:`Nuclear`.

    Raises:
        ValueError: the weight has no such dimension.

    Example:
        >>> import torch
        >>> SRIP(1.0).value(torch.diag(torch.tensor([2.0, 0.5])))
        tensor(3.)

    References:
        Nitin Bansal, Xiaohan Chen, Zhangyang Wang, "Can We Gain More from Orthogonality Regularizations in Training
        Deep CNNs?", NeurIPS 2018.
    """

    def _cost(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        size = _excess(sigma, shape).abs()
        return self.strength * (_leading(size, shape) * size).sum()

    def _slope(self, sigma: Tensor, shape: torch.Size) -> Tensor:
        excess = _excess(sigma, shape)
        slopes = self.strength * _leading(excess.abs(), shape) * excess.sgn()
        return slopes * 2 * sigma


def _product(left: Tensor, diagonal: Tensor, right: Tensor) -> Tensor:
    return (left * diagonal.unsqueeze(-2)) @ right


def _rounding(shape: torch.Size, dtype: torch.dtype) -> float:
    """The rounding error of singular values relative to the largest one, as in :func:`torch.linalg.matrix_rank`."""
    return max(shape[-2:]) * torch.finfo(dtype).eps


def _positive(sigma: Tensor, shape: torch.Size) -> Tensor:
    """1 for singular values that are not zero, 0 for the others."""
    return (sigma > _rounding(shape, sigma.dtype) * f.largest(sigma)).to(sigma.dtype)


def _leading(sigma: Tensor, shape: torch.Size) -> Tensor:
    """Equal weights with sum 1 for the largest singular values, 0 for the others."""
    leading = sigma >= (1 - 4 * _rounding(shape, sigma.dtype)) * f.largest(sigma)
    return leading.to(sigma.dtype) / leading.sum().clamp(min=1)


def _excess(sigma: Tensor, shape: torch.Size) -> Tensor:
    """``sigma**2 - 1``; 0 where it is within rounding."""
    excess = sigma.square() - 1
    return excess.masked_fill(excess.abs() <= 4 * _rounding(shape, sigma.dtype), 0.0)
