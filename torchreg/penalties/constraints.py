"""Constraints: sets onto which the weights are projected after every step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Never, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty
from torchreg.penalties.described import Described
from torchreg.penalties.groups import ByGroup
from torchreg.penalties.partition import Groups, Part

_ULPS = 4  # a weight counts as inside up to so many units of the largest weight's rounding


@dataclass(frozen=True, repr=False, eq=False)
class Constraint(Described, ProximalPenalty):
    r"""A closed set of weights. As a penalty it is the indicator function: 0 inside the set, infinite outside.

    .. math:: R(w) = \begin{cases} 0 & w \in C \\ \infty & w \notin C \end{cases}, \qquad
              \operatorname{prox}_{tR}(w) = P_C(w) = \operatorname{argmin}_{u \in C} \|u - w\|_2

    A constraint acts in mode ``"prox"`` only: ``Regularizer(model, MaxNorm(3.0), mode="prox").attach(optimizer)``
    projects the weights after every step, whatever the learning rate and the regularizer's scale are. The projection is
    Euclidean under every optimizer. The optimizer's momenta do not change. Weights inside the set do not move; weights
    that start outside are inside after the first step.

    A constraint has no strength, so it cannot be multiplied by a number. ``L2(s) + MaxNorm(c)`` has a proximal
    operator. ``L1(s) + MaxNorm(c)`` and the sum of two constraints have none: make one regularizer for each, and attach
    last the constraint that must hold exactly.

    A constraint of your own defines :meth:`project`.

    Example:
        >>> import torch
        >>> from torchreg import Constraint
        >>> class Binary(Constraint):
        ...     def project(self, w):
        ...         return torch.where(w < 0, -1.0, 1.0)
        >>> Binary().project(torch.tensor([0.3, -2.0]))
        tensor([ 1., -1.])
    """

    _is_exact: ClassVar[bool] = False  # whether no rounding excuses a weight that is outside
    _no_bounds: ClassVar[Sequence[str]] = ("groups",)  # fields that are no positive number

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name not in self._no_bounds:
                self._require(field.name, "positive and finite", lambda bound: 0 < bound < math.inf)

    @abstractmethod
    def project(self, w: Tensor) -> Tensor:
        """The point of the set that is nearest to ``w``, of ``w``'s shape."""

    def value(self, w: Tensor) -> Tensor:
        """0 if ``w`` is in the set up to rounding, else infinite; NaN for NaN. It has no gradient."""
        w = w.detach()
        nearest = self.project(w)
        tolerance = 0.0 if self._is_exact else _ULPS * torch.finfo(w.dtype).eps * f.largest(nearest)
        outside = ~(f.largest(w - nearest) <= tolerance)  # also where an infinite weight has no nearest point
        return f.nan_of(f.largest(w)).masked_fill(outside & ~w.isnan().any(), math.inf)

    def gradient(self, w: Tensor) -> Tensor:
        return f.nan_of(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The projection; the step does not matter."""
        return self.project(w)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        """The length of the projected gradient step, ``|w - P(w - gradient)|``; 0 certifies a stationary point."""
        return f.l2_norm(w - self.project(w - gradient))

    def _times(self, factor: float) -> Never:
        raise TypeError(
            f"{type(self).__name__}: a constraint has no strength to multiply, got {factor!r} * {self!r}: "
            "change its bound instead"
        )

    def _check_real(self, w: Tensor) -> None:
        if w.is_complex():
            raise TypeError(
                f"{type(self).__name__}: weights must be real, because complex ones have no order, got {w.dtype}: "
                "narrow select"
            )


class GroupConstraint(ByGroup, Constraint):
    """A constraint on each group of a weight's elements.

    Args:
        groups: how the elements are grouped; see :class:`~torchreg.penalties.groups.ByGroup`.

    Raises:
        ValueError: ``groups`` is none of these, or does not fit the weight.
    """

    @abstractmethod
    def _projected(self, part: Part) -> Tensor:
        """The part's rows, each projected."""

    def project(self, w: Tensor) -> Tensor:
        return self._split(w).map(self._projected)


class _Euclidean(GroupConstraint):
    """A bound on the Euclidean norm of each group."""

    @property
    @abstractmethod
    def _bound(self) -> float:
        """The largest norm."""

    def _projected(self, part: Part) -> Tensor:
        return f.project_l2_ball(part.rows, self._bound)

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        parts = self._in_place(0.0, w)  # the step does not matter
        if parts is None:
            return super()._prox_(w, step)
        (own,) = parts
        lengths = f.row_lengths(own.rows)
        if lengths.is_cpu and not torch.compiler.is_compiling() and lengths.isinf().any():  # others would wait for it
            return super()._prox_(w, step)
        own.rows.mul_(torch.where(lengths > self._bound, self._bound / lengths, 1.0))
        return w


@final
@dataclass(frozen=True, repr=False, eq=False)
class MaxNorm(_Euclidean):
    r"""The max-norm constraint: a bound on the length of each unit's vector of incoming weights.

    .. math:: \|w_g\|_2 \le c \text{ for every group } g, \qquad
              P(w)_g = \operatorname{argmin}_{\|u\|_2 \le c} \|u - w_g\|_2 = w_g \min(1, c / \|w_g\|_2)

    Longer vectors are scaled to the bound. Shorter ones do not change, to the bit. It is :class:`L2Ball` with another
    default for the groups, and often used with dropout and large learning rates.

    Args:
        max_norm: ``c``, positive and finite.
        groups: what is bounded. ``"output"``: the weights into each output unit, which are a row of
            :class:`torch.nn.Linear` and a filter of a convolution. ``"input"``: the weights out of each input, which
            are a row of :class:`torch.nn.Embedding`, as with its own ``max_norm``. For others see
            :class:`~torchreg.penalties.groups.ByGroup`. A 1-D weight has one element for each unit.

    Raises:
        TypeError: ``max_norm`` is not a real number.
        ValueError: ``max_norm`` is not positive and finite, or the groups do not fit a weight.

    Example:
        >>> MaxNorm(1.0).project(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])

    References:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting", Journal of Machine Learning Research 15, 2014, section 5.1.
    """

    max_norm: float
    groups: Groups = "output"

    @property
    def _bound(self) -> float:
        return self.max_norm


@final
@dataclass(frozen=True, repr=False, eq=False)
class NonNegative(Constraint):
    r"""The constraint that no weight is negative.

    .. math:: w \ge 0, \qquad P(w) = \operatorname{argmin}_{u \ge 0} \|u - w\|_2 = \max(w, 0)

    Negative weights become exactly zero. The others do not change, to the bit.

    Raises:
        TypeError: a complex weight.

    Example:
        >>> NonNegative().project(torch.tensor([0.5, -0.5]))
        tensor([0.5000, 0.0000])

    References:
        Jan Chorowski, Jacek M. Zurada, "Learning Understandable Neural Networks With Nonnegative Weight Constraints",
        IEEE Transactions on Neural Networks and Learning Systems, 2015.
    """

    is_uniform: ClassVar[bool] = True

    def project(self, w: Tensor) -> Tensor:
        self._check_real(w)
        return w.masked_fill(w < 0, 0.0)


@final
@dataclass(frozen=True, repr=False, eq=False)
class UnitNorm(GroupConstraint):
    r"""The constraint that each unit's vector of incoming weights has length 1.

    .. math:: \|w_g\|_2 = 1 \text{ for every group } g, \qquad
              P(w)_g = \operatorname{argmin}_{\|u\|_2 = 1} \|u - w_g\|_2 = w_g / \|w_g\|_2

    The set is a product of spheres, so it is not convex. A zero vector has no direction: all points of the sphere are
    equally near. It stays zero and counts as inside, so a dead unit stays dead.

    Args:
        groups: what has length 1; as for :class:`MaxNorm`.

    Raises:
        ValueError: the groups do not fit a weight.

    Example:
        >>> UnitNorm().project(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])

    References:
        P.-A. Absil, R. Mahony, R. Sepulchre, "Optimization Algorithms on Matrix Manifolds", Princeton University Press,
        2008.
    """

    groups: Groups = "output"

    def _projected(self, part: Part) -> Tensor:
        return f.normalize(part.rows)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        """The length of the projected step along the gradient's tangential part; 0 certifies a stationary point.

        A step along the whole gradient could pass the center of the sphere, where the projection changes its sign.
        """
        slopes = iter(self._split(gradient).parts)

        def tangential(part: Part) -> Tensor:
            unit, rows = f.normalize(part.rows), next(slopes).rows
            return rows - (unit.conj() * rows).real.sum(-1, keepdim=True) * unit

        return super().optimality(w, self._split(w).map(tangential))


@final
@dataclass(frozen=True, repr=False, eq=False)
class L1Ball(GroupConstraint):
    r"""A bound on the sum of magnitudes: the Lasso in its original form.

    .. math:: \sum_{i \in g} |w_i| \le r \text{ for every group } g, \qquad
              P(w)_g = \operatorname{argmin}_{\|u\|_1 \le r} \|u - w_g\|_2
              = \operatorname{sign}(w_g) \max(|w_g| - \tau_g, 0)

    The threshold :math:`\tau_g` is 0 inside the ball; outside it is the one for which the sum is :math:`r`. Weights
    become exactly zero, as with :class:`~torchreg.L1`, but a bound is given instead of a strength.

    Args:
        radius: ``r``, positive and finite.
        groups: what is bounded; by default each weight tensor as a whole, otherwise as for :class:`MaxNorm`.

    Raises:
        TypeError: ``radius`` is not a real number.
        ValueError: ``radius`` is not positive and finite, or the groups do not fit a weight.

    Example:
        >>> L1Ball(1.0).project(torch.tensor([1.0, -0.5, 0.1]))
        tensor([ 0.7500, -0.2500,  0.0000])

    References:
        Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of the Royal Statistical Society
        B, 1996.
    """

    radius: float
    groups: Groups = "tensor"

    def _projected(self, part: Part) -> Tensor:
        return f.project_l1_ball(part.rows, self.radius)


@final
@dataclass(frozen=True, repr=False, eq=False)
class L2Ball(_Euclidean):
    r"""A bound on the Euclidean norm: a Ridge with a given bound instead of a strength.

    .. math:: \|w_g\|_2 \le r \text{ for every group } g, \qquad
              P(w)_g = \operatorname{argmin}_{\|u\|_2 \le r} \|u - w_g\|_2 = w_g \min(1, r / \|w_g\|_2)

    Args:
        radius, groups: as for :class:`L1Ball`.

    Raises:
        ValueError: ``radius`` is not positive and finite, or the groups do not fit a weight.

    Example:
        >>> L2Ball(1.0).project(torch.tensor([[3.0], [4.0]]))
        tensor([[0.6000],
                [0.8000]])

    References:
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in Optimization, 2014, section 6.5.1.
    """

    radius: float
    groups: Groups = "tensor"

    @property
    def _bound(self) -> float:
        return self.radius


@final
@dataclass(frozen=True, repr=False, eq=False)
class LinfBall(Constraint):
    r"""A bound on the magnitude of each weight: weight clipping.

    .. math:: |w_i| \le r, \qquad
              P(w)_i = \operatorname{argmin}_{|u| \le r} |u - w_i| = \operatorname{sign}(w_i) \min(|w_i|, r)

    Args:
        radius: ``r``, positive and finite.

    Raises:
        TypeError: ``radius`` is not a real number.
        ValueError: ``radius`` is not positive and finite.

    Example:
        >>> LinfBall(0.5).project(torch.tensor([2.0, -0.25]))
        tensor([ 0.5000, -0.2500])

    References:
        Martin Arjovsky, Soumith Chintala, Leon Bottou, "Wasserstein Generative Adversarial Networks", ICML 2017.
    """

    radius: float

    is_uniform: ClassVar[bool] = True

    def project(self, w: Tensor) -> Tensor:
        return f.clip(w, self.radius)


@final
@dataclass(frozen=True, repr=False, eq=False)
class Box(Constraint):
    r"""Bounds on each weight, which need not be symmetric.

    .. math:: l \le w_i \le h, \qquad P(w)_i = \operatorname{argmin}_{l \le u \le h} |u - w_i| = \min(\max(w_i, l), h)

    ``Box(0.0)`` is :class:`NonNegative`, ``Box(-r, r)`` is :class:`LinfBall`. A weight that is 0 leaves 0 if 0 is not
    between the bounds.

    Args:
        low: ``l``, finite. ``None``: no bound.
        high: ``h``, finite and not below ``low``. ``None``: no bound.

    Raises:
        TypeError: a bound is not a real number, or a complex weight.
        ValueError: a bound is not finite, both are None, or ``low`` is above ``high``.

    Example:
        >>> Box(-0.5, 1.0).project(torch.tensor([2.0, -2.0, 0.25]))
        tensor([ 1.0000, -0.5000,  0.2500])

    References:
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in Optimization, 2014, section 6.2.4.
    """

    low: float | None = None
    high: float | None = None

    is_uniform: ClassVar[bool] = True
    _no_bounds: ClassVar[Sequence[str]] = ("low", "high")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                self._require(name, "finite, or None for no bound", math.isfinite)
        if self.low is None and self.high is None:
            raise ValueError("Box: low or high must be a number, got None for both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"Box: low must not be above high, got {self.low!r} and {self.high!r}")

    def project(self, w: Tensor) -> Tensor:
        self._check_real(w)
        low, high = (None if bound is None else f.within(bound, w.dtype) for bound in (self.low, self.high))
        return w.clamp(low, high)


@final
@dataclass(frozen=True, repr=False, eq=False)
class Simplex(GroupConstraint):
    r"""The constraint that each unit's incoming weights are proportions: not negative, with a given sum.

    .. math:: w_i \ge 0, \quad \sum_{i \in g} w_i = c \text{ for every group } g, \qquad
              P(w)_g = \operatorname{argmin}_{u \ge 0,\ \sum_i u_i = c} \|u - w_g\|_2 = \max(w_g - \tau_g, 0)

    where the threshold :math:`\tau_g` gives the sum :math:`c`. Many weights become exactly zero. With ``"output"`` each
    unit of a :class:`torch.nn.Linear` averages its inputs. With ``"input"`` the columns sum to :math:`c` instead.

    Args:
        total: ``c``, positive and finite.
        groups: what has the sum ``c``; as for :class:`MaxNorm`.

    Raises:
        TypeError: ``total`` is not a real number, or a complex weight.
        ValueError: ``total`` is not positive and finite, or the groups do not fit a weight.

    Example:
        >>> Simplex().project(torch.tensor([[0.5, 0.5], [2.0, 0.0], [0.5, 0.0]]))
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000],
                [0.7500, 0.2500]])

    References:
        John Duchi, Shai Shalev-Shwartz, Yoram Singer, Tushar Chandra, "Efficient Projections onto the l1-Ball for
        Learning in High Dimensions", ICML 2008.
    """

    total: float = 1.0
    groups: Groups = "output"

    def project(self, w: Tensor) -> Tensor:
        self._check_real(w)
        return super().project(w)

    def _projected(self, part: Part) -> Tensor:
        rows, sizes = part
        if isinstance(sizes, Tensor):  # the elements that fill a short row get no share
            rows = rows.masked_fill(torch.arange(rows.shape[1], device=rows.device) >= sizes, -math.inf)
        return f.project_simplex(rows, self.total)
