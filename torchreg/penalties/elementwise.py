"""Convex penalties that are sums over single weights."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty, Term
from torchreg.penalties.weighted import Weighted


@final
@dataclass(frozen=True, repr=False, eq=False)
class L1(Weighted):
    r"""The Lasso penalty: it drives weights to zero, in mode ``"prox"`` to exactly zero.

    .. math:: R(w) = s \sum_i c_i |w_i|, \qquad
              \partial R(w)_i \ni s c_i \operatorname{sign}(w_i), \qquad
              \operatorname{prox}_{tR}(w)_i = \operatorname{argmin}_u \tfrac12 (u - w_i)^2 + ts c_i |u|
              = \operatorname{sign}(w_i) \max(|w_i| - ts c_i, 0)

    With ``weights=adaptive(model)`` it is the adaptive lasso.

    Args:
        strength: ``s``, finite and not negative.
        weights: :math:`c_i`, by default 1: a tensor, a dict of them, or a function of the weight; see
            :class:`~torchreg.penalties.weighted.Weighted`.

    Raises:
        ValueError: ``strength`` or a weight is negative, infinite or NaN, or the weights do not fit a parameter.

    Example:
        >>> import torch
        >>> penalty = L1(0.1)
        >>> penalty.value(torch.tensor([3.0, -4.0]))
        tensor(0.7000)
        >>> penalty.prox(torch.tensor([3.0, -0.05]), step=1.0)
        tensor([2.9000, 0.0000])

    References:
        Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of the Royal Statistical Society
        B, 1996.
    """

    @property
    def is_uniform(self) -> bool:  # type: ignore[override]
        return self.weights is None

    def value(self, w: Tensor) -> Tensor:
        return self._l1_norm(w).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return f.scaled_sign(w, self._strengths(w)) + f.nan_of(w)

    # These take one pass less over the weights than the general forms.

    def _gradient_times(self, w: Tensor, scale: float | Tensor) -> Tensor:
        return f.scaled_sign(w, self._strengths(w) * scale)

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return f.axpy_(grad, w.sgn(), self._strengths(w) * scale)

    def _slope_and_factor(self, w: Tensor) -> tuple[Tensor, float]:
        return (w.sgn(), self.strength) if self.weights is None else super()._slope_and_factor(w)

    @property
    def _lasso_and_ridge(self) -> tuple[float, float] | None:
        return (self.strength, 0.0) if self.weights is None else None

    @property
    def _curvature(self) -> float:
        return 0.0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.soft_threshold(w, step * self._strengths(w))

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.soft_threshold_(w, step * self._strengths(w))

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return f.distance_beyond_kink(gradient + self.gradient(w), w == 0, self._strengths(w))

    def strength_max(self, gradient: Tensor) -> Tensor:
        return self._largest(gradient)


@final
@dataclass(frozen=True, repr=False, eq=False)
class L2(Weighted):
    r"""The Ridge penalty: it shrinks weights in proportion to their size.

    .. math:: R(w) = \frac{s}{2} \sum_i c_i w_i^2, \qquad
              \nabla R(w)_i = s c_i w_i, \qquad
              \operatorname{prox}_{tR}(w)_i = \operatorname{argmin}_u \tfrac12 (u - w_i)^2 + \tfrac{ts c_i}{2} u^2
              = \frac{w_i}{1 + ts c_i}

    The factor 1/2 makes the gradient ``s * w``. Mode ``"grad"`` is therefore ``torch.optim.SGD(weight_decay=s)`` and
    mode ``"decoupled"`` is ``torch.optim.AdamW(weight_decay=s)``. The L2 of Keras has no factor 1/2, so its strength is
    half of this one.

    Args:
        strength: ``s``, finite and not negative.
        weights: :math:`c_i`, by default 1; as for :class:`L1`.

    Raises:
        ValueError: as for :class:`L1`.

    Example:
        >>> import torch
        >>> penalty = L2(0.1)
        >>> penalty.value(torch.tensor([3.0, -4.0]))
        tensor(1.2500)
        >>> penalty.gradient(torch.tensor([3.0, -4.0]))
        tensor([ 0.3000, -0.4000])

    References:
        Arthur E. Hoerl, Robert W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
        Technometrics, 1970.
    """

    @property
    def is_uniform(self) -> bool:  # type: ignore[override]
        return self.weights is None

    @property
    def _is_ridge(self) -> bool:  # type: ignore[override]
        return self.weights is None

    @property
    def _ridge(self) -> float:
        return self.strength

    def value(self, w: Tensor) -> Tensor:
        return self._half_square(w).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return self._strengths(w) * w

    def _gradient_times(self, w: Tensor, scale: float | Tensor) -> Tensor:
        return w * (self._strengths(w) * scale)

    # The in-place forms do the arithmetic of torch's weight decay, to the bit.

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return f.axpy_(grad, w, self._strengths(w) * scale)

    def _descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return w.mul_(1 - step * self._strengths(w))

    @property
    def _lasso_and_ridge(self) -> tuple[float, float] | None:
        return (0.0, self.strength) if self.weights is None else None

    @property
    def _curvature(self) -> float | None:
        return self.strength if self.weights is None else None

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.shrink(w, step * self._strengths(w))

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return w.div_(1 + step * self._strengths(w))


@dataclass(frozen=True, repr=False, eq=False)
class L1Mixture(Term):
    """L1 and another penalty under one strength.

    Args:
        strength: ``s``, finite and not negative.
        l1_ratio: the share of L1, in [0, 1].

    Raises:
        ValueError: ``l1_ratio`` outside [0, 1].
    """

    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("l1_ratio", "in [0, 1]", lambda ratio: 0 <= ratio <= 1)

    @property
    def _lasso(self) -> float:
        return self.strength * self.l1_ratio

    @property
    def _rest(self) -> float:
        return self.strength * (1 - self.l1_ratio)


@final
@dataclass(frozen=True, repr=False, eq=False)
class ElasticNet(L1Mixture, ProximalPenalty):
    r"""The elastic net: Lasso and Ridge under one strength, as in scikit-learn.

    .. math:: R(w) = s \Big( \alpha \|w\|_1 + \frac{1 - \alpha}{2} \|w\|_2^2 \Big), \qquad
              \operatorname{prox}_{tR}(w) = \operatorname{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u)
              = \frac{\operatorname{sign}(w) \max(|w| - ts\alpha, 0)}{1 + ts(1 - \alpha)}

    It gives zeros, and keeps groups of correlated weights together. ``L1(a) + L2(b)`` is the same penalty with two
    strengths.

    Args:
        strength: ``s``, finite and not negative (scikit-learn's ``alpha``).
        l1_ratio: :math:`\alpha`, the share of the Lasso, in [0, 1].

    Raises:
        ValueError: ``l1_ratio`` outside [0, 1].

    Example:
        >>> import torch
        >>> ElasticNet(1.0, l1_ratio=0.5).prox(torch.tensor([3.5, -0.25]), step=1.0)
        tensor([2., 0.])

    References:
        Hui Zou, Trevor Hastie, "Regularization and Variable Selection via the Elastic Net", Journal of the Royal
        Statistical Society B, 2005.
    """

    is_uniform: ClassVar[bool] = True

    def value(self, w: Tensor) -> Tensor:
        return (self._lasso * f.l1_norm(w) + self._rest * f.half_square(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return f.scaled_sign(w, self._lasso).add_(w, alpha=self._rest)

    @property
    def _lasso_and_ridge(self) -> tuple[float, float]:
        return self._lasso, self._rest

    @property
    def _curvature(self) -> float:
        return self._rest

    @property
    def _ridge(self) -> float:
        return self._rest

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.shrink(f.soft_threshold(w, step * self._lasso), step * self._rest)

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.soft_threshold_(w, step * self._lasso).div_(1 + step * self._rest)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return f.distance_beyond_kink(gradient + self.gradient(w), w == 0, self._lasso)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return f.largest(gradient) / self.l1_ratio if self.l1_ratio else super().strength_max(gradient)


@final
@dataclass(frozen=True, repr=False, eq=False)
class Huber(Term, ProximalPenalty):
    r"""The Huber penalty: a ridge for small weights, linear for large ones.

    .. math:: R(w) = s \sum_i h(|w_i|), \qquad
              h(u) = \begin{cases} u^2 / 2 & u \le \delta \\ \delta (u - \delta / 2) & u > \delta \end{cases}

    .. math:: \operatorname{prox}_{tR}(w) = \operatorname{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u)
              = \begin{cases} w / (1 + ts) & |w| \le \delta (1 + ts) \\
                              w - ts \delta \operatorname{sign}(w) & |w| > \delta (1 + ts) \end{cases}

    It is the formula of :class:`torch.nn.HuberLoss` with target 0; ``Huber(s / beta, beta)`` is that of
    :class:`torch.nn.SmoothL1Loss`. It pulls large weights less than L2 does. No weight becomes exactly zero.

    Args:
        strength: ``s``, finite and not negative.
        delta: :math:`\delta`, the size from which the penalty is linear, positive and finite.

    Raises:
        ValueError: ``delta`` is not positive and finite.

    Example:
        >>> import torch
        >>> Huber(1.0, delta=0.5).gradient(torch.tensor([0.1, -3.0]))
        tensor([ 0.1000, -0.5000])

    References:
        Peter J. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics, 1964.
    """

    delta: float = 1.0

    is_uniform: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("delta", "positive and finite", lambda delta: 0 < delta < math.inf)

    def value(self, w: Tensor) -> Tensor:
        size = f.magnitude(w)
        inner = size.clamp(max=self.delta)
        return (self.strength * (inner * (size - inner / 2)).sum()).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return f.clip(w, self.delta).mul_(self.strength)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        # The step of the parabola, but no longer than that of the linear part.
        amount = step * self.strength
        return torch.where(
            w.abs() <= self.delta * (1 + amount), f.shrink(w, amount), w - f.clip(w, self.delta) * amount
        )
