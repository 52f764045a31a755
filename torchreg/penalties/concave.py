"""Penalties that pull large weights less than small ones: bridge, log-sum, MCP, SCAD, Hoyer-Square."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty, Term


class Magnitudes(Term, ProximalPenalty):
    r"""A penalty ``R(w) = sum r(|w_i|)``, defined by its function of magnitudes. Complex weights keep their phase."""

    is_uniform: ClassVar[bool] = True

    @abstractmethod
    def _cost(self, u: Tensor) -> Tensor:
        """``r(u)`` for magnitudes ``u >= 0``."""

    @abstractmethod
    def _slope(self, u: Tensor) -> Tensor:
        """``r'(u)``; at 0, from the right."""

    @abstractmethod
    def _shrunk(self, u: Tensor, step: Tensor) -> Tensor:
        """``argmin_v 1/2 * (v - u)**2 + step * r(v)`` over ``v >= 0``."""

    def value(self, w: Tensor) -> Tensor:
        size = f.magnitude(w)
        largest = f.largest(size.detach())
        lost = largest.masked_fill(largest.isfinite(), 0.0)  # the formulas can be finite where a weight is not
        return (self._cost(size).sum() + lost).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        kink = w == 0
        slope = self._slope(f.magnitude(w).masked_fill(kink, 1.0)).to(f.real_dtype(w))
        return w.sgn() * slope.masked_fill(kink, 0.0) + f.nan_of(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        size = f.magnitude(w)
        step = f.as_tensor(step, size)
        shrunk = w.sgn() * self._shrunk(size, step).to(f.real_dtype(w))
        return torch.where(step * self.strength == 0, w, shrunk)  # objectives of tiny weights underflow, and are equal

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        slope = self._slope(f.magnitude(w).new_zeros(()))
        return f.distance_beyond_kink(gradient + self.gradient(w), w == 0, slope)

    def _least(self, candidates: Sequence[Tensor], u: Tensor, step: Tensor) -> Tensor:
        """For each element the candidate with the lowest proximal objective; the first one of equals.

        The last candidate is one that is as large as ``u`` where ``u`` is not finite, and so no objective is a number.
        """
        best = candidates[0]
        lowest = (best - u).square() / 2 + step * self._cost(best)
        for candidate in candidates[1:]:
            objective = (candidate - u).square() / 2 + step * self._cost(candidate)
            best = torch.where(objective >= lowest, best, candidate)
            lowest = torch.minimum(objective, lowest)
        return best


@final
@dataclass(frozen=True, repr=False, eq=False)
class Lp(Magnitudes):
    r"""The bridge penalty: powers of the weights.

    .. math:: R(w) = s \sum_i |w_i|^p, \quad p > 0, \qquad
              \operatorname{prox}_{tR}(w)_i = \operatorname{argmin}_u \tfrac12 (u - w_i)^2 + ts |u|^p

    For ``p < 1`` it is not convex: it makes sparser weights than L1 and pulls large weights less. ``Lp(s, 1)`` is
    ``L1(s)``, and ``Lp(s, 2)`` is ``L2(2 * s)``. The proximal operator is the root of a scalar equation, which Newton's
    method finds to rounding. For ``p < 1`` it sets weights below a threshold to exactly zero. The slope at 0 is then
    infinite and gradient steps overshoot, so use mode ``"prox"``.

    Args:
        strength: ``s``, finite and not negative.
        p: the power, positive and finite.

    Raises:
        ValueError: ``p`` is not positive and finite.

    Example:
        >>> import torch
        >>> Lp(1.0, p=0.5).prox(torch.tensor([1.4, 4.0]), step=1.0)
        tensor([0.0000, 3.7415])

    References:
        Ildiko E. Frank, Jerome H. Friedman, "A Statistical View of Some Chemometrics Regression Tools", Technometrics,
        1993. Zongben Xu, Xiangyu Chang, Fengmin Xu, Hai Zhang, "L1/2 Regularization: A Thresholding Representation
        Theory and a Fast Solver", IEEE Transactions on Neural Networks and Learning Systems, 2012.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("p", "positive and finite", lambda p: 0 < p < math.inf)

    def _cost(self, u: Tensor) -> Tensor:
        # Not u**p at 0: its slope may be infinite there, and autograd would turn that into NaN.
        positive = u > 0
        return self.strength * torch.where(positive, torch.where(positive, u, 1.0) ** self.p, 0.0)

    def _slope(self, u: Tensor) -> Tensor:
        return self.strength * self.p * u ** (self.p - 1) if self.strength else torch.zeros_like(u)

    def _shrunk(self, u: Tensor, step: Tensor) -> Tensor:
        if self.p == 1:
            return torch.relu(u - step * self.strength)
        root = _bridge_root(u, step * self.strength, self.p)
        return root if self.p > 1 else self._least([torch.zeros_like(u), root], u, step)

    def strength_max(self, gradient: Tensor) -> Tensor:
        if self.p > 1:
            return super().strength_max(gradient)
        # For p < 1 the slope at 0 is infinite, so that 0 is always stationary.
        return f.largest(gradient) if self.p == 1 else f.largest(gradient) * 0


@final
@dataclass(frozen=True, repr=False, eq=False)
class LogSum(Magnitudes):
    r"""The log-sum penalty: like L1 near zero, with a slope that vanishes for large weights.

    .. math:: R(w) = s \sum_i \log\left(1 + \frac{|w_i|}{\epsilon}\right), \qquad
              \operatorname{prox}_{tR}(w)_i
              = \operatorname{argmin}_u \tfrac12 (u - w_i)^2 + ts \log\left(1 + \frac{|u|}{\epsilon}\right)

    The proximal operator is the root of a quadratic equation, or 0. The penalty is not convex.

    Args:
        strength: ``s``, finite and not negative. Near 0 the penalty acts like ``L1(s / epsilon)``.
        epsilon: :math:`\epsilon`, the size at which the slope is half of that at 0, positive and finite.

    Raises:
        ValueError: ``epsilon`` is not positive and finite.

    Example:
        >>> import torch
        >>> LogSum(1.0, epsilon=0.1).gradient(torch.tensor([0.1, 9.9]))
        tensor([5.0000, 0.1000])

    References:
        Emmanuel J. Candès, Michael B. Wakin, Stephen P. Boyd, "Enhancing Sparsity by Reweighted l1 Minimization",
        Journal of Fourier Analysis and Applications, 2008.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("epsilon", "positive and finite", lambda epsilon: 0 < epsilon < math.inf)

    def _cost(self, u: Tensor) -> Tensor:
        return self.strength * torch.log1p(u / self.epsilon)

    def _slope(self, u: Tensor) -> Tensor:
        return self.strength / (u + self.epsilon)

    def _shrunk(self, u: Tensor, step: Tensor) -> Tensor:
        amount = step * self.strength
        root = ((u + self.epsilon).square() - 4 * amount).clamp(min=0).sqrt()
        stationary = torch.relu(u - 2 * amount / (u + self.epsilon + root))  # the larger root, where there is one
        return self._least([torch.zeros_like(u), stationary], u, step)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return self.epsilon * f.largest(gradient)


@final
@dataclass(frozen=True, repr=False, eq=False)
class MCP(Magnitudes):
    r"""The minimax concave penalty: L1 near zero, with a slope that falls linearly to 0 at :math:`\gamma s`.

    .. math:: R(w) = \sum_i r(|w_i|), \qquad
              r(u) = \begin{cases} s u - u^2 / (2 \gamma) & u \le \gamma s \\ \gamma s^2 / 2 & u > \gamma s \end{cases}

    Weights larger than :math:`\gamma s` are not pulled at all. The penalty is not convex. Its proximal operator is
    :math:`\operatorname{argmin}_u \tfrac12 (u - w_i)^2 + t\, r(|u|)` for each weight. The strength is not a factor of
    the penalty: ``2 * MCP(s)`` is not ``MCP(2 * s)``.

    Args:
        strength: ``s``, finite and not negative.
        gamma: :math:`\gamma > 0`, how slowly the slope falls. With a step of size ``t`` the proximal operator is
            continuous if ``gamma > t``, else it is hard thresholding.

    Raises:
        ValueError: ``gamma`` is not positive and finite.

    Example:
        >>> import torch
        >>> MCP(1.0, gamma=3.0).prox(torch.tensor([0.5, 2.0, 5.0]), step=1.0)
        tensor([0.0000, 1.5000, 5.0000])

    References:
        Cun-Hui Zhang, "Nearly Unbiased Variable Selection under Minimax Concave Penalty", Annals of Statistics, 2010.
    """

    gamma: float = 3.0

    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("gamma", "positive and finite", lambda gamma: 0 < gamma < math.inf)

    def _cost(self, u: Tensor) -> Tensor:
        inner = u.clamp(max=self.gamma * self.strength)
        return inner * (self.strength - inner / (2 * self.gamma))

    def _slope(self, u: Tensor) -> Tensor:
        return torch.relu(self.strength - u / self.gamma)

    def _shrunk(self, u: Tensor, step: Tensor) -> Tensor:
        bend = 1 - step / self.gamma
        inner = torch.where(bend > 0, torch.relu(u - step * self.strength) / bend, 0.0)
        knee = self.gamma * self.strength
        return self._least([inner.clamp(max=knee), torch.zeros_like(u), u.clamp(min=knee)], u, step)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return f.largest(gradient)


@final
@dataclass(frozen=True, repr=False, eq=False)
class SCAD(Magnitudes):
    r"""Smoothly clipped absolute deviation: L1 up to ``s``, with a slope that then falls linearly to 0 at ``a * s``.

    .. math:: R(w) = \sum_i r(|w_i|), \qquad r(0) = 0, \qquad
              r'(u) = \begin{cases} s & u \le s \\ (as - u) / (a - 1) & s < u \le as \\ 0 & u > as \end{cases}

    Weights larger than ``a * s`` are not pulled at all. The penalty is not convex. Its proximal operator is
    :math:`\operatorname{argmin}_u \tfrac12 (u - w_i)^2 + t\, r(|u|)` for each weight. The strength is not a factor of
    the penalty: ``2 * SCAD(s)`` is not ``SCAD(2 * s)``.

    Args:
        strength: ``s``, finite and not negative.
        a: the size, in units of ``s``, from which the slope is 0; above 2, by default the authors' 3.7.

    Raises:
        ValueError: ``a`` is not above 2 and finite.

    Example:
        >>> import torch
        >>> SCAD(1.0).prox(torch.tensor([0.5, 1.5, 5.0]), step=1.0)
        tensor([0.0000, 0.5000, 5.0000])

    References:
        Jianqing Fan, Runze Li, "Variable Selection via Nonconcave Penalized Likelihood and its Oracle Properties",
        Journal of the American Statistical Association, 2001.
    """

    a: float = 3.7

    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("a", "above 2 and finite", lambda a: 2 < a < math.inf)

    def _cost(self, u: Tensor) -> Tensor:
        s, a = self.strength, self.a
        fading = torch.where(u > s, u.clamp(max=a * s) - s, 0.0)  # how far beyond s
        return s * torch.where(u > s, s, u) + fading * (s - fading / (2 * (a - 1)))

    def _slope(self, u: Tensor) -> Tensor:
        return ((self.a * self.strength - u) / (self.a - 1)).clamp(0, self.strength)

    def _shrunk(self, u: Tensor, step: Tensor) -> Tensor:
        s, a = self.strength, self.a
        bend = a - 1 - step
        fading = torch.where(bend > 0, ((a - 1) * u - step * a * s) / bend, 0.0)
        candidates = [torch.relu(u - step * s).clamp(max=s), fading.clamp(s, a * s), torch.zeros_like(u)]
        return self._least([*candidates, u.clamp(min=a * s)], u, step)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return f.largest(gradient)


@final
@dataclass(frozen=True, repr=False, eq=False)
class HoyerSquare(Term):
    r"""The squared Hoyer measure: a differentiable count of nonzero weights that does not depend on their scale.

    .. math:: R(w) = s \frac{\left(\sum_i |w_i|\right)^2}{\sum_i w_i^2}, \qquad R(0) = 0

    It lies between ``s`` (one weight is not zero) and ``s * n`` (all ``n`` weights are equally large). It is neither
    convex nor separable, and has no proximal operator in closed form, so it cannot be used in mode "prox".

    Args:
        strength: ``s``, finite and not negative.

    Raises:
        ValueError: ``strength`` is negative, infinite or NaN.

    Example:
        >>> import torch
        >>> HoyerSquare(1.0).value(torch.tensor([0.0, 5.0, -5.0, 0.0]))
        tensor(2.)

    References:
        Huanrui Yang, Wei Wen, Hai Li, "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant
        Sparsity Measures", ICLR 2020.
    """

    def value(self, w: Tensor) -> Tensor:
        size, _ = _normalized(w)
        return (self.strength * size.sum() * _density(size)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        size, unit = _normalized(w)
        density = _density(size)
        return w.sgn() * (2 * self.strength * density / unit * (1 - density * size)).to(f.real_dtype(w))

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        size, unit = _normalized(w)
        density = _density(size)
        # At 0, where R jumps, every subgradient is allowed.
        slope = 2 * self.strength * torch.where(density > 0, density / unit, math.inf)
        return f.distance_beyond_kink(gradient + self.gradient(w), w == 0, slope if self.strength else 0.0)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return f.largest(gradient) * 0  # R jumps at 0, so that 0 is stationary at any strength


def _normalized(w: Tensor) -> tuple[Tensor, Tensor]:
    """The magnitudes divided by the largest one, so that squares neither overflow nor vanish, and that divisor."""
    size = f.magnitude(w)
    unit = f.largest(size.detach())
    unit = torch.where(unit > 0, unit, 1.0)
    return size / unit, unit


def _density(size: Tensor) -> Tensor:
    """``sum |w| / sum |w|**2``; 0 if all weights are 0."""
    square = size.square().sum()
    return size.sum() / torch.where(square > 0, square, 1.0)


def _bridge_root(u: Tensor, weight: Tensor, p: float) -> Tensor:
    """The largest root ``v`` of ``v + weight * p * v**(p - 1) = u``; 0 if there is none.

    Newton's method starts to the right of the root. As a function of ``x = v`` (for 1 < p < 2 of ``x = v**(p - 1)``)
    the left side is convex and increasing, so the iterates decrease to the root and never pass it.
    """
    cost, power = weight * p, p - 1
    if 1 < p < 2:
        power = 1 / power  # x**power + cost * x = u
    positive = (u > 0) & (u < math.inf) & (cost > 0)
    u_, cost_ = torch.where(positive, u, 1.0), torch.where(positive, cost, 1.0)
    if p > 2:
        x = torch.minimum(u_, (u_ / cost_) ** (1 / power))
    else:
        x = torch.minimum(u_ ** (1 / power), u_ / cost_) if p > 1 else u_
    has_root = torch.ones_like(positive)
    if p < 1:  # the function falls up to `lowest`, and rises from there
        lowest = (cost_ * (1 - p)) ** (1 / (2 - p))
        has_root = (lowest + cost_ * lowest**power <= u_) & (lowest < u_)
        x = torch.where(has_root, x, 1.0)
    for _ in range(60):
        if 1 < p < 2:
            x = x - (x**power + cost_ * x - u_) / (power * x ** (power - 1) + cost_)
        else:
            x = x - (x + cost_ * x**power - u_) / (1 + power * cost_ * x ** (power - 1))
    root = x**power if 1 < p < 2 else x
    return torch.where(positive, torch.where(has_root, torch.minimum(root, u), 0.0), u)
