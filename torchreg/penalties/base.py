"""The base classes of penalties: a function R(w) with a value, a gradient and, if known, a proximal operator."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import ClassVar, Self

from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.described import Described
from torchreg.selection.parameters import ParamInfo


class Penalty(ABC):
    r"""A function :math:`R(w) \ge 0` of one tensor, which is added to the mean loss.

    .. math:: \min_w L(w) + \sum_j R(w_j)

    for weights :math:`w_j`. Penalties are immutable, compare by value, can be pickled, and form sums and multiples:
    ``L1(1e-5) + 0.5 * L2(1e-4)``. A penalty times a number ``c`` (from a schedule, for example) has the value
    ``c * R(w)``, the gradient ``c * dR(w)`` and the proximal operator ``prox(w, c * step)``.

    A penalty of your own defines :meth:`value` and :meth:`gradient`. If it has a proximal operator, it derives from
    :class:`ProximalPenalty` instead and defines :meth:`~ProximalPenalty.prox` too. If it is a sum of the same function
    over all elements, it sets ``is_uniform = True``: large weights are then processed in chunks and many small weights
    in one call. If it depends on the module of a parameter (for example on the dimension of its outputs), its
    :meth:`bind` returns a penalty for that parameter.

    A weight that is not finite stays visible. At a NaN the value is NaN, and so are the gradient and the proximal
    operator of all elements that R combines with it: the element, its group, or the matrix. At an infinite weight the
    value is infinite or NaN, the proximal operator likewise, and the gradient its limit or NaN. Only a projection onto
    a constraint may be finite there, where the nearest point is clear, as for a bound on each element.

    Attributes:
        is_uniform: whether R(w) is a sum of one function over the elements of ``w``.

    Example:
        >>> import torch
        >>> class Cauchy(Penalty):
        ...     is_uniform = True
        ...     def value(self, w):
        ...         return w.square().log1p().sum()
        ...     def gradient(self, w):
        ...         return 2 * w / (1 + w.square())
        >>> penalty = 0.5 * Cauchy()
        >>> penalty.gradient(torch.tensor([1.0, -3.0]))
        tensor([ 0.5000, -0.3000])
    """

    is_uniform: ClassVar[bool] = False
    _selects_itself: ClassVar[bool] = False  # whether _exempts decides which parameters are penalized, not a selector

    @property
    def is_separable(self) -> bool:
        """Whether R(w) is a sum over the elements of ``w``, so that each process can treat its shard on its own."""
        return self.is_uniform

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """``R(w)``: a differentiable 0-d tensor with ``w``'s real dtype and device."""

    @abstractmethod
    def gradient(self, w: Tensor) -> Tensor:
        """``dR(w)``, of ``w``'s shape. Where R has a kink at 0, it is the subgradient 0."""

    def _gradient_times(self, w: Tensor, scale: float | Tensor) -> Tensor:
        """``scale * dR(w)``, in new memory."""
        return scale * self.gradient(w)

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """``grad += scale * dR(w)``, in place."""
        return f.axpy_(grad, self.gradient(w), scale)

    def _descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        """``w -= step * dR(w)``, in place."""
        slope, factor = self._slope_and_factor(w)
        return f.axpy_(w, slope, -(factor * step))

    def _slope_and_factor(self, w: Tensor) -> tuple[Tensor, float]:
        """A tensor and a number with ``dR(w)`` as their product, in few passes."""
        return self.gradient(w), 1.0

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        """The distance of minus the loss's ``gradient`` to R's subdifferential; where it is 0, ``w`` is stationary."""
        return f.l2_norm(gradient + self.gradient(w)).to(f.real_dtype(w))

    @property
    def _lasso_and_ridge(self) -> tuple[float, float] | None:
        """``(a, b)`` if R(w) is ``a * |w|_1 + b/2 * |w|_2**2``, else None."""
        return None

    def bind(self, place: ParamInfo) -> Penalty:
        """The penalty for one parameter of a model; most penalties return themselves."""
        return self

    @property
    def _companions(self) -> tuple[Tensor, ...]:
        """The other parameters that a bound penalty depends on."""
        return ()

    def _exempts(self, place: ParamInfo) -> str | None:
        """Why the penalty does not act on that parameter, in a few words; used if it ``_selects_itself``."""
        return None

    @property
    def terms(self) -> tuple[Penalty, ...]:
        """The terms of a sum; of any other penalty, the penalty itself."""
        return (self,)

    @property
    def label(self) -> str:
        """The name under which :meth:`Regularizer.terms` lists the penalty: that of its class."""
        return type(self).__name__

    def __add__(self, other: object) -> Penalty:
        """The sum. Terms that differ only in strength become one term: ``L1(a) + L1(b) == L1(a + b)``."""
        return _sum(self.terms + other.terms) if isinstance(other, Penalty) else NotImplemented

    def __radd__(self, other: object) -> Penalty:
        """So that ``sum([L1(a), L2(b)])`` is ``L1(a) + L2(b)``."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: object) -> Penalty:
        """``factor`` times this penalty."""
        if isinstance(factor, bool) or not isinstance(factor, Real):
            return NotImplemented
        if not 0 <= float(factor) < math.inf:
            raise ValueError(f"{type(self).__name__}: a factor must be finite and >= 0, got {factor!r}")
        return self._times(float(factor))

    __rmul__ = __mul__

    def _times(self, factor: float) -> Penalty:
        return Scaled(factor, self)


class ProximalPenalty(Penalty):
    r"""A penalty whose proximal operator can be computed.

    .. math:: \operatorname{prox}_{tR}(w) = \operatorname{argmin}_u \tfrac12 \|u - w\|_2^2 + t R(u)

    It can be used in mode "prox" and by proximal optimizers. A subclass defines :meth:`prox`, beside
    :meth:`~Penalty.value` and :meth:`~Penalty.gradient`.

    References:
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in Optimization, 2014.
    """

    @property
    def _takes_steps(self) -> bool:
        """Whether ``step`` may have ``w``'s shape: ``argmin_u sum((u - w)**2 / (2 * step)) + R(u)``, Adam's metric."""
        return self.is_separable

    @property
    def _curvature(self) -> float | None:
        r"""R's second derivative along its own gradient if that is the same number everywhere, else None.

        If it is known, the derivative of :math:`u = \operatorname{prox}_{tR}(w)` with respect to :math:`t` is
        :math:`-\partial R(u) / (1 + t \cdot \text{curvature})`.
        """
        return None

    @abstractmethod
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """``argmin_u 1/2 * |u - w|**2 + step * R(u)``, of ``w``'s shape; ``step >= 0`` is a number or a 0-d tensor."""

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        """``w = prox(w, step)``, in place."""
        return w.copy_(self.prox(w, step))

    def _times(self, factor: float) -> Penalty:
        return ProximalScaled(factor, self)


@dataclass(frozen=True, repr=False, eq=False)
class Term(Described, Penalty):
    """A penalty with a strength. Its parameters are the fields of a frozen dataclass.

    Args:
        strength: a finite number, not negative. It multiplies a penalty that is added to the *mean* loss.

    Attributes:
        is_linear: whether R is the strength times a function that does not depend on the strength.

    Raises:
        TypeError: ``strength`` is not a real number.
        ValueError: ``strength`` is negative, infinite or NaN.
    """

    strength: float

    _is_ridge: ClassVar[bool] = False  # whether R(w) is strength/2 * |w|**2: its prox combines with that of any penalty
    is_linear: ClassVar[bool] = True

    @property
    def _ridge(self) -> float:
        """The strength of the part that pulls like weight decay: ``strength/2 * |w|**2``."""
        return self.strength if self._is_ridge else 0.0

    def __post_init__(self) -> None:
        self._require("strength", "finite and >= 0", lambda strength: 0 <= strength < math.inf)

    def strength_max(self, gradient: Tensor) -> Tensor:
        """The smallest strength at which 0 is stationary, given the loss's ``gradient`` at 0; for a ridge infinite."""
        return (f.largest(gradient) * 0).masked_fill(gradient.any(), math.inf)

    @property
    def _kind(self) -> object:
        """Terms of equal kind add up to one term. A term that is not linear in its strength is never merged."""
        return replace(self, strength=0.0) if self.is_linear else object()

    def _times(self, factor: float) -> Penalty:
        return replace(self, strength=factor * self.strength) if self.is_linear else super()._times(factor)


@dataclass(frozen=True)
class Scaled(Penalty):
    """A number times a penalty; ``*`` makes it for penalties without a strength that could be multiplied."""

    factor: float
    penalty: Penalty

    @property
    def is_uniform(self) -> bool:  # type: ignore[override]
        return self.penalty.is_uniform

    @property
    def is_separable(self) -> bool:
        return self.penalty.is_separable

    @property
    def label(self) -> str:
        return self.penalty.label

    def value(self, w: Tensor) -> Tensor:
        return self.factor * self.penalty.value(w)

    def gradient(self, w: Tensor) -> Tensor:
        return self.factor * self.penalty.gradient(w)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        if self.factor == 0:
            return f.l2_norm(gradient)
        return self.factor * self.penalty.optimality(w, gradient / self.factor)

    def bind(self, place: ParamInfo) -> Penalty:
        bound = self.penalty.bind(place)
        return self if bound is self.penalty else replace(self, penalty=bound)

    def _times(self, factor: float) -> Penalty:
        return replace(self, factor=factor * self.factor)

    def __repr__(self) -> str:
        return f"{self.factor!r} * {self.penalty!r}"


class ProximalScaled(Scaled, ProximalPenalty):
    """A number times a proximal penalty."""

    @property
    def _takes_steps(self) -> bool:
        assert isinstance(self.penalty, ProximalPenalty)
        return self.penalty._takes_steps

    @property
    def _curvature(self) -> float | None:
        assert isinstance(self.penalty, ProximalPenalty)
        own = self.penalty._curvature
        return None if own is None else self.factor * own

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        assert isinstance(self.penalty, ProximalPenalty)
        return self.penalty.prox(w, self.factor * step)

    def _times(self, factor: float) -> Penalty:
        return Scaled._times(self, factor)


@dataclass(frozen=True, repr=False)
class Sum(Penalty):
    """The sum of several penalties; ``+`` makes it."""

    _terms: tuple[Penalty, ...]
    _ridges: tuple[Term, ...] = field(init=False, compare=False)
    _rest: tuple[Penalty, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:  # once, because each step needs them
        object.__setattr__(self, "_ridges", tuple(filter(_is_ridge, self._terms)))
        object.__setattr__(self, "_rest", tuple(term for term in self._terms if not _is_ridge(term)))

    @property
    def is_uniform(self) -> bool:  # type: ignore[override]
        return all(term.is_uniform for term in self._terms)

    @property
    def is_separable(self) -> bool:
        return all(term.is_separable for term in self._terms)

    @property
    def terms(self) -> tuple[Penalty, ...]:
        return self._terms

    @property
    def _lasso_and_ridge(self) -> tuple[float, float] | None:
        parts = [term._lasso_and_ridge for term in self._terms]
        known = [part for part in parts if part is not None]
        return (sum(a for a, _ in known), sum(b for _, b in known)) if len(known) == len(parts) else None

    def value(self, w: Tensor) -> Tensor:
        first, *others = self._terms
        total = first.value(w)
        for term in others:
            total = total + term.value(w)
        return total

    def gradient(self, w: Tensor) -> Tensor:
        return self._gradient_times(w, 1.0)

    def _gradient_times(self, w: Tensor, scale: float | Tensor) -> Tensor:
        first, *others = self._terms
        total = first._gradient_times(w, scale)
        for term in others:
            term._add_gradient_(total, w, scale)
        return total

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        for term in self._terms:
            term._add_gradient_(grad, w, scale)
        return grad

    def _descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        found = [term._slope_and_factor(w) for term in self._rest]  # before w moves
        for ridge in self._ridges:
            ridge._descend_(w, step)
        for slope, factor in found:
            f.axpy_(w, slope, -(factor * step))
        return w

    def bind(self, place: ParamInfo) -> Self:
        bound = tuple(term.bind(place) for term in self._terms)
        return self if all(map(operator.is_, bound, self._terms)) else replace(self, _terms=bound)

    def _times(self, factor: float) -> Penalty:
        return replace(self, _terms=tuple(term._times(factor) for term in self._terms))

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._terms))


class ProximalSum(Sum, ProximalPenalty):
    r"""A sum in which at most one term is not a ridge. Its proximal operator is that of this term after shrinkage.

    .. math:: \operatorname{prox}_{t(R + \frac{s}{2}\|\cdot\|^2)}(w)
              = \operatorname{prox}_{\frac{t}{1 + ts} R}\!\left(\frac{w}{1 + ts}\right)

    For L1 + L2 it is the proximal operator of the elastic net.

    References:
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in Optimization, 2014, section 2.2.
    """

    _ridge: float
    _curved: ProximalPenalty | None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_ridge", sum(term.strength for term in self._ridges))
        object.__setattr__(self, "_curved", next(iter(self._rest), None))

    @property
    def _takes_steps(self) -> bool:
        return self._curved is None or self._curved._takes_steps

    @property
    def _curvature(self) -> float | None:
        curved = 0.0 if self._curved is None else self._curved._curvature
        return None if curved is None else self._ridge + curved

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        curvature = step * self._ridge
        shrunk = f.shrink(w, curvature)
        return shrunk if self._curved is None else self._curved.prox(shrunk, step / (1 + curvature))

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        curvature = step * self._ridge
        w.div_(1 + curvature)
        return w if self._curved is None else self._curved._prox_(w, step / (1 + curvature))

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        smooth = gradient + self._ridge * w
        return f.l2_norm(smooth) if self._curved is None else self._curved.optimality(w, smooth)

    def _times(self, factor: float) -> Penalty:
        return Sum._times(self, factor)


def _is_ridge(term: Penalty) -> bool:
    return isinstance(term, Term) and term._is_ridge


def _sum(terms: tuple[Penalty, ...]) -> Penalty:
    merged: dict[object, Penalty] = {}
    for term in terms:
        key = term._kind if isinstance(term, Term) else object()
        before = merged.get(key)
        if isinstance(term, Term) and isinstance(before, Term):
            term = replace(before, strength=before.strength + term.strength)
        merged[key] = term
    kept = tuple(merged.values())
    if len(kept) == 1:
        return kept[0]
    curved = [t for t in kept if not _is_ridge(t)]
    proximal = len(curved) <= 1 and all(isinstance(t, ProximalPenalty) for t in curved)
    return ProximalSum(kept) if proximal else Sum(kept)
