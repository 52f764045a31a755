"""Penalties on stacks of models, in which one tensor holds the weights of all members."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from torchreg.penalties.base import Penalty, ProximalPenalty, Sum
from torchreg.penalties.joint import whole_of
from torchreg.penalties.weighted import Weighted
from torchreg.selection.parameters import ParamInfo

_SMALL = 1 << 15  # elements of one member's weight, above which calls for each member cost less than tensors of steps


class ByMember(Penalty):
    """The penalties of the members of a stack on a weight ``(members, ...)``.

    Values have the shape ``(members,)``. Scales and steps may have it too: a strength for each member.

    Args:
        each: the members' penalties, in order.
    """

    def __init__(self, each: Sequence[Penalty]) -> None:
        self.each = tuple(each)

    @property
    def is_shared(self) -> bool:
        """Whether all members have the same penalty, a sum of one function over the elements."""
        return self.each[0].is_uniform and all(penalty is self.each[0] for penalty in self.each)

    @property
    def terms(self) -> tuple[Penalty, ...]:
        if len(self.each[0].terms) == 1:
            return (self,)
        return tuple(map(by_member, zip(*(penalty.terms for penalty in self.each), strict=True)))

    @property
    def label(self) -> str:
        return self.each[0].label

    def value(self, w: Tensor) -> Tensor:
        if self.is_shared:
            return vmap(self.each[0].value)(w)
        return torch.stack([penalty.value(part) for penalty, part in zip(self.each, w.unbind(), strict=True)])

    def gradient(self, w: Tensor) -> Tensor:
        if self.is_shared:
            return self.each[0].gradient(w)
        return torch.stack([penalty.gradient(part) for penalty, part in zip(self.each, w.unbind(), strict=True)])

    def _gradient_times(self, w: Tensor, scale: float | Tensor) -> Tensor:
        return broadcast_scale(scale, w) * self.gradient(w)

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        if self._is_at_once(w):
            return self.each[0]._add_gradient_(grad, w, broadcast_scale(scale, w))
        self._on_each(lambda penalty, g, part, own: penalty._add_gradient_(g, part, own), scale, grad, w)
        return grad

    def _descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        if self._is_at_once(w):
            return self.each[0]._descend_(w, broadcast_scale(step, w))
        self._on_each(lambda penalty, part, own: penalty._descend_(part, own), step, w)
        return w

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        pairs = zip(self.each, w.unbind(), gradient.unbind(), strict=True)
        return torch.stack([penalty.optimality(part, g) for penalty, part, g in pairs])

    def scaled_optimality(self, w: Tensor, gradient: Tensor, scale: float | Tensor) -> Tensor:
        """:meth:`optimality` of the penalty times a scale for each member."""
        rows = zip(self.each, w.unbind(), gradient.unbind(), own_scales(scale, len(self.each)), strict=True)
        return torch.stack([(float(own) * penalty).optimality(part, g) for penalty, part, g, own in rows])

    def _is_at_once(self, w: Tensor) -> bool:
        return self.is_shared and (w[0].numel() <= _SMALL or w.device.type != "cpu")

    def _on_each(self, act: Callable[..., object], scale: float | Tensor, *stacks: Tensor) -> None:
        """``act(penalty, *parts, scale)`` for each member, with its own scale."""
        rows = zip(*(stack.unbind() for stack in stacks), strict=True)
        for penalty, parts, own in zip(self.each, rows, own_scales(scale, len(self.each)), strict=True):
            act(penalty, *parts, own)

    def __repr__(self) -> str:
        return repr(self.each[0])


class ProximalByMember(ByMember, ProximalPenalty):
    """The same for penalties with proximal operators."""

    @property
    def _takes_steps(self) -> bool:
        return False

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return self._prox_(w.clone(), step)

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        if self._is_at_once(w):
            return self._proximal(0)._prox_(w, broadcast_scale(step, w))
        for member, (part, own) in enumerate(zip(w.unbind(), own_scales(step, len(self.each)), strict=True)):
            self._proximal(member)._prox_(part, own)
        return w

    def _proximal(self, member: int) -> ProximalPenalty:
        penalty = self.each[member]
        assert isinstance(penalty, ProximalPenalty)
        return penalty


def by_member(each: Sequence[Penalty]) -> ByMember:
    """One penalty on the stacked weights, made of the members' penalties."""
    proximal = all(isinstance(penalty, ProximalPenalty) for penalty in each)
    return (ProximalByMember if proximal else ByMember)(each)


def bound_by_member(penalty: Penalty, place: ParamInfo, members: int) -> ByMember:
    """The penalty, bound to each member's part of the parameter.

    Raises:
        ValueError: the penalty depends on several parameters.
    """
    each = [_at_member(penalty, place, member).bind(member_of(place, member)) for member in range(members)]
    if penalty._selects_itself or any(b._companions or b._selects_itself or whole_of(b) for b in each):
        raise ValueError(f"Regularizer: {penalty!r} cannot act on a stack of models: use it on each of its members()")
    return by_member(each)


def member_of(place: ParamInfo, member: int) -> ParamInfo:
    """The parameter as it is in that member's model."""
    own = place.param.detach()[member]
    param = torch.nn.Parameter(own, requires_grad=place.param.requires_grad)
    return ParamInfo(place.name, param, place.module, place.parent, place.exemption)


def broadcast_scale(scale: float | Tensor, w: Tensor) -> float | Tensor:
    """The members' scales, in a shape that broadcasts to their weights ``(members, ...)``."""
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return scale
    real = w.dtype.to_real() if w.is_complex() else w.dtype
    return scale.to(w.device, real).view(-1, *[1] * (w.ndim - 1))


def own_scales(scale: float | Tensor, members: int) -> Sequence[float | Tensor]:
    """The scale of each member; as a number if reading it does not wait for a device."""
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return [scale] * members
    scales: Sequence[float | Tensor] = scale.tolist() if scale.device.type == "cpu" else scale.unbind()
    return scales


def _at_member(penalty: Penalty, place: ParamInfo, member: int) -> Penalty:
    """The penalty with the member's part of references and weights that are stacked."""
    if isinstance(penalty, Sum):
        terms = tuple(_at_member(term, place, member) for term in penalty.terms)
        return penalty if all(map(operator.is_, terms, penalty.terms)) else replace(penalty, _terms=terms)
    if isinstance(penalty, Weighted):
        given = {name: getattr(penalty, name, None) for name in ("weights", "reference")}
        own: dict[str, Any] = {
            name: {place.name: tensors[place.name][member]}
            for name, tensors in given.items()
            if isinstance(tensors, Mapping) and place.name in tensors and tensors[place.name].shape == place.param.shape
        }
        return replace(penalty, **own) if own else penalty
    return penalty
