"""Penalties with a weight for each element, and tensors that belong to the parameters of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.functional.sharding import as_plain, is_sharded, sharded_like
from torchreg.penalties.base import ProximalPenalty, Term
from torchreg.selection.parameters import ParamInfo

Weights = Tensor | Mapping[str, Tensor] | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, repr=False, eq=False)
class Weighted(Term, ProximalPenalty):
    """A penalty that is a sum over elements, each with a weight of its own.

    Args:
        strength: ``s``, finite and not negative.
        weights: :math:`c_i`, finite and not negative: what multiplies the penalty of each element.

            - ``None``: 1.
            - a dict of names to tensors, as :func:`~torchreg.adaptive` and :func:`~torchreg.fisher` make it.
            - a tensor of the weight's shape, or a 0-d tensor.
            - a function of the weight that returns such a tensor. It is called when a :class:`~torchreg.Regularizer`
              is created, whose ``state_dict`` holds the result.

    Raises:
        ValueError: a weight is negative or not finite, of another shape, or there is none of the parameter's name.
        TypeError: ``weights`` is of another kind.
    """

    weights: Weights = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weights, Tensor):
            _check(type(self).__name__, "the parameter", self.weights)
        elif not (self.weights is None or isinstance(self.weights, Mapping) or callable(self.weights)):
            raise TypeError(
                f"{type(self).__name__}: weights must be None, a tensor, a dict of tensors or a function of the "
                f"weight, got {self.weights!r}"
            )

    @property
    def is_separable(self) -> bool:
        return True

    @property
    def _kind(self) -> object:
        return super()._kind if self.weights is None else (type(self), id(self.weights))

    @property
    def _taken(self) -> tuple[str, ...]:
        """The fields whose values :meth:`bind` takes from the model."""
        return ("weights",) if callable(self.weights) else ()

    def bind(self, place: ParamInfo) -> Self:
        given = self.weights
        if given is None:
            return self
        w = place.param.detach()
        found = bound_tensor(self, "weights", given(w) if callable(given) else given, place)
        _check(type(self).__name__, place.name, found)
        return replace(self, weights=like(found, w))

    def _strengths(self, w: Tensor) -> float | Tensor:
        """The strength of each element of ``w``: one number if there are no weights."""
        if self.weights is None:
            return self.strength
        if not isinstance(self.weights, Tensor):
            raise ValueError(
                f"{type(self).__name__}: weights must be a tensor, got {self.weights!r}: pass one, or use a "
                "Regularizer, which knows the names of parameters"
            )
        real = f.real_dtype(w)
        own = placed(self.weights, w, real)
        return self.strength * (own.clamp(max=torch.finfo(real).max) if real.itemsize < 4 else own)

    def _l1_norm(self, w: Tensor) -> Tensor:
        """``sum(strengths * |w|)``."""
        return self.strength * f.l1_norm(w) if self.weights is None else f.l1_norm(self._strengths(f.wide(w)) * w)

    def _half_square(self, w: Tensor) -> Tensor:
        """``1/2 * sum(strengths * |w|**2)``."""
        if self.weights is None:
            return self.strength * f.half_square(w)
        strengths = self._strengths(f.wide(w))
        assert isinstance(strengths, Tensor)
        return f.half_square(strengths.sqrt() * w)

    def _largest(self, gradient: Tensor) -> Tensor:
        """The smallest strength for which no element of the gradient is above strength times weight."""
        if self.weights is None:
            return f.largest(gradient)
        size = f.magnitude(gradient)
        held = size / replace(self, strength=1.0)._strengths(size)
        return f.largest(held.masked_fill(size == 0, 0.0)).to(f.real_dtype(gradient))


def bound_tensor(owner: Term, field: str, given: object, place: ParamInfo) -> Tensor:
    """The tensor for one parameter, out of a tensor or a dict of them.

    Raises:
        ValueError: there is none of the parameter's name, or it has another shape.
        TypeError: it is no tensor.
    """
    name, shape = type(owner).__name__, place.param.shape
    if isinstance(given, Mapping):
        if place.name not in given:
            raise ValueError(
                f"{name}: {field} must hold {place.name}, got {len(given)} names: "
                f"{', '.join(list(given)[:8]) or 'none'}; exempt new parameters with a dict of patterns"
            )
        given = given[place.name]
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: {field} must be None, a tensor or a dict of tensors, got {given!r}")
    if given.ndim and given.shape != shape:
        raise ValueError(
            f"{name}: {field} must have the shape of {place.name}, {tuple(shape)}, got {tuple(given.shape)}"
        )
    return given.detach()


def like(tensor: Tensor, w: Tensor) -> Tensor:
    """The tensor, sharded as ``w`` is."""
    if not tensor.ndim or _placements(tensor) == _placements(w):
        return tensor
    return sharded_like(as_plain(tensor, local=False), w, local=False)


def placed(tensor: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor on ``w``'s device, in the dtype; if ``w`` is a shard, this process's shard."""
    own = tensor if is_sharded(w) else as_plain(tensor, local=True)
    # One number on the CPU goes into a kernel as it is. To copy it, the CPU would wait for the device in each step.
    device = w.device if own.ndim or not own.is_cpu else own.device
    return own.to(device, dtype)


def _placements(w: Tensor) -> Sequence[object] | None:
    return w.placements if is_sharded(w) else None


def _check(owner: str, name: str, weights: Tensor) -> None:
    plain = as_plain(weights, local=True)
    if plain.is_complex() or not bool(((plain >= 0) & plain.isfinite()).all()):
        bad = plain[~((plain >= 0) & plain.isfinite())] if not plain.is_complex() else plain
        raise ValueError(
            f"{owner}: weights must be finite and >= 0, got {bad.flatten()[0].item()!r} for {name}: clamp them first"
        )
