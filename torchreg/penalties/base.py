"""What a penalty is: a function R(w) that knows its value, its gradient and, where it has one, its prox."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar

from torch import Tensor

from torchreg.functional import axpy_, shrink


class Penalty(ABC):
    """A function ``R(w) >= 0`` of one tensor, added to the mean loss.

    Subclasses give :meth:`value` and :meth:`gradient`; the in-place forms follow from them. Penalties are immutable,
    compare by value, pickle, and add up: ``L1(1e-5) + L2(1e-4)``. Scaled by a number ``c`` (a schedule, say) a penalty
    has value ``c * R``, gradient ``c * dR`` and proximal operator ``prox(w, c * step)``.
    """

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """``R(w)``: 0-d, with ``w``'s dtype and device, differentiable."""

    @abstractmethod
    def gradient(self, w: Tensor) -> Tensor:
        """``dR(w)``, shaped like ``w``: a subgradient, which is 0 where R has a kink at 0."""

    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """``grad += scale * dR(w)``, in place."""
        return axpy_(grad, self.gradient(w), scale)

    def descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        """``w -= step * dR(w)``, in place."""
        return axpy_(w, self.gradient(w), -step)

    @property
    def terms(self) -> tuple[Penalty, ...]:
        """The penalties this one is a sum of: itself, if it is none."""
        return (self,)

    def __add__(self, other: object) -> Penalty:
        """The sum; terms of one class become one term, so ``L1(a) + L1(b) == L1(a + b)``."""
        return _sum(self.terms + other.terms) if isinstance(other, Penalty) else NotImplemented


class ProximalPenalty(Penalty):
    """A penalty whose proximal operator is known in closed form."""

    @abstractmethod
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """``argmin_u 1/2 * |u - w|**2 + step * R(u)``, shaped like ``w``; ``step >= 0``, a number or a tensor."""


@dataclass(frozen=True, repr=False)
class Term(Penalty):
    """A penalty that is ``strength`` times a function without parameters of its own.

    Args:
        strength: a finite number, not negative. It multiplies a penalty that is added to the *mean* loss.

    Raises:
        TypeError: ``strength`` is not a real number.
        ValueError: ``strength`` is negative, infinite or NaN.
    """

    strength: float

    is_ridge: ClassVar[bool] = False  # whether R(w) is strength/2 * |w|**2, which any other prox can absorb

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if isinstance(self.strength, bool) or not isinstance(self.strength, Real):
            raise TypeError(f"{owner}: strength must be a number, got {self.strength!r}")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"{owner}: strength must be finite and >= 0, got {self.strength!r}")
        object.__setattr__(self, "strength", float(self.strength))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.strength!r})"


@dataclass(frozen=True, repr=False)
class Sum(Penalty):
    """The sum of several penalties; made by ``+``."""

    _terms: tuple[Penalty, ...]

    @property
    def terms(self) -> tuple[Penalty, ...]:
        return self._terms

    def value(self, w: Tensor) -> Tensor:
        first, *others = self._terms
        total = first.value(w)
        for term in others:
            total = total + term.value(w)
        return total

    def gradient(self, w: Tensor) -> Tensor:
        first, *others = self._terms
        total = first.gradient(w)
        for term in others:
            total = total + term.gradient(w)  # not in place: a gradient may be w itself
        return total

    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        for term in self._terms:
            term.add_gradient_(grad, w, scale)
        return grad

    def descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        gradients = [term.gradient(w) for term in self._terms if not _is_ridge(term)]  # before w moves
        for term in self._terms:
            if _is_ridge(term):
                term.descend_(w, step)
        for gradient in gradients:
            axpy_(w, gradient, -step)
        return w

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._terms))


class ProximalSum(Sum, ProximalPenalty):
    r"""A sum of which at most one term is not a ridge: its proximal operator is that term's, shrunk.

    .. math:: \operatorname{prox}_{t(R + \frac{s}{2}\|\cdot\|^2)}(w)
              = \operatorname{prox}_{\frac{t}{1 + ts} R}\!\left(\frac{w}{1 + ts}\right)

    For L1 + L2 this is the elastic net's.

    References:
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in Optimization, 2014, section 2.2.
    """

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        curvature = step * sum(t.strength for t in self._terms if isinstance(t, Term) and t.is_ridge)
        shrunk = shrink(w, curvature)
        for term in self._terms:
            if isinstance(term, ProximalPenalty) and not _is_ridge(term):
                return term.prox(shrunk, step / (1 + curvature))
        return shrunk


def _is_ridge(term: Penalty) -> bool:
    return isinstance(term, Term) and term.is_ridge


def _sum(terms: tuple[Penalty, ...]) -> Penalty:
    merged: dict[object, Penalty] = {}
    for term in terms:
        key = type(term) if isinstance(term, Term) else object()  # others are never merged, not even equal ones
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
