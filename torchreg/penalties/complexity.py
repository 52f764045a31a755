"""The complexity of layers that learn what to drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, final

import torch
from torch import Tensor

from torchreg.nn.gated import Gated
from torchreg.penalties.base import Penalty, Term
from torchreg.selection.parameters import ParamInfo


@final
@dataclass(frozen=True, repr=False, eq=False)
class Complexity(Term):
    r"""The complexity of layers that learn what to drop, such as the divergence of their noise from a prior.

    .. math:: R = s \sum_{\text{layers } l} C_l

    Each layer defines its own :math:`C_l`, a function of several of its parameters: see
    :class:`~torchreg.nn.ConcreteDropout`, :class:`~torchreg.nn.VariationalDropout` and
    :class:`~torchreg.nn.HardConcrete`. ``Regularizer(model, Complexity(1 / N))`` finds these parameters itself; the
    argument ``select`` has no effect on it. :meth:`Regularizer.terms` lists it as ``"KL"`` or ``"L0"``. In mode
    "decoupled" the parameters of a layer move one after another, each by the gradient at the current values of the
    others.

    Args:
        strength: ``s``, finite and not negative. For a divergence use ``1 / N`` with ``N`` training examples, because
            the loss is the mean over the examples.

    Raises:
        ValueError: when the regularizer is created: a model without such layers, a sum with other penalties, or a
            pattern that matches only some parameters of a layer.

    Example:
        >>> from torchreg import Regularizer
        >>> from torchreg.nn import HardConcrete
        >>> import torch
        >>> model = torch.nn.Sequential(HardConcrete(torch.nn.Linear(8, 4), p=0.5), torch.nn.ReLU())
        >>> regularizer = Regularizer(model, Complexity(1e-3))
        >>> {kind: round(value.item(), 3) for kind, value in regularizer.terms().items()}
        {'L0': 0.027}

    References:
        See the layers.
    """

    _selects_itself: ClassVar[bool] = True

    def _exempts(self, place: ParamInfo) -> str | None:
        gated = _gated(place)
        return None if gated is not None and _name(gated, place) in gated.depends_on else "not learned to drop"

    def bind(self, place: ParamInfo) -> Penalty:
        gated = _gated(place)
        assert gated is not None, "exempt"
        return _Share(self.strength, gated, gated.depends_on.index(_name(gated, place)))

    def value(self, w: Tensor) -> Tensor:
        raise self._unbound()

    def gradient(self, w: Tensor) -> Tensor:
        raise self._unbound()

    def _unbound(self) -> TypeError:
        return TypeError("Complexity: it is a function of a layer, not of a tensor: give it to a Regularizer")


@final
@dataclass(frozen=True, eq=False)
class _Share(Penalty):
    """A layer's complexity, for one of its parameters: the first trained one has the value, each has its gradient."""

    strength: float
    layer: Gated
    index: int

    @property
    def label(self) -> str:
        return self.layer.cost

    def value(self, w: Tensor) -> Tensor:
        free = [param.requires_grad for param in self._params]
        is_whole = self.index == (free.index(True) if any(free) else 0)
        if not is_whole and not torch.is_grad_enabled():
            return w.new_zeros(())
        value = self.strength * self.layer.complexity_of(*self._inputs(w))
        return value if is_whole else value - value.detach()

    def gradient(self, w: Tensor) -> Tensor:
        return self.strength * self.layer._complexity_gradient(self.index, *self._inputs(w))

    def _inputs(self, w: Tensor) -> Sequence[Tensor]:
        inputs = [param.detach() for param in self._params]
        inputs[self.index] = w
        return inputs

    @property
    def _params(self) -> Sequence[Tensor]:
        return [attrgetter(name)(self.layer) for name in self.layer.depends_on]

    @property
    def _companions(self) -> tuple[Tensor, ...]:
        return tuple(param for i, param in enumerate(self._params) if i != self.index)


def _gated(place: ParamInfo) -> Gated | None:
    """The layer that learns to drop and that the parameter belongs to."""
    if isinstance(place.module, Gated):
        return place.module
    parent = place.parent
    return parent if isinstance(parent, Gated) and parent.layer is place.module else None


def _name(gated: Gated, place: ParamInfo) -> str:
    own = place.name.rpartition(".")[2]
    return own if place.module is gated else f"layer.{own}"
