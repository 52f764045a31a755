"""Penalties on the distance from a reference: the pretrained weights, the initial weights, or an average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from torchreg import functional as f
from torchreg.functional.sharding import as_plain
from torchreg.penalties.weighted import Weighted, bound_tensor, like, placed
from torchreg.selection.parameters import ParamInfo

Reference = Tensor | Mapping[str, Tensor] | None


@dataclass(frozen=True, repr=False, eq=False)
class Anchored(Weighted):
    """A penalty on ``w - reference``.

    Args:
        strength: ``s``, finite and not negative.
        reference: :math:`w^0`.

            - ``None``: the weights of the model when its :class:`~torchreg.Regularizer` is created. The regularizer's
              ``state_dict`` holds them.
            - a dict of names to tensors, such as the ``state_dict`` of a pretrained or an averaged model. The tensors
              are not copied. If they are updated in place, as :class:`torch.optim.swa_utils.AveragedModel` does, the
              penalty uses the new values. Keep them on the weights' device: others are copied in each step.
            - a tensor of the weight's shape, or a 0-d tensor for every weight.
        weights: :math:`c_i`, what multiplies the penalty of each element; see
            :class:`~torchreg.penalties.weighted.Weighted`.

    Raises:
        ValueError: the reference holds no tensor of the parameter's name, or one of another shape.
    """

    reference: Reference = None

    @property
    def _kind(self) -> object:
        return type(self), id(self.reference), id(self.weights)  # not the values: they may change in place

    @property
    def _taken(self) -> tuple[str, ...]:
        return (*super()._taken, *(("reference",) if self.reference is None else ()))

    def bind(self, place: ParamInfo) -> Self:
        bound, w = super().bind(place), place.param.detach()
        reference = None if self.reference is None else bound_tensor(self, "reference", self.reference, place)
        if reference is None or _is_same_memory(reference, w):  # model.state_dict() is the weights themselves
            reference = w.clone()
        return replace(bound, reference=like(reference, w).detach())

    def _away(self, w: Tensor) -> Tensor:
        """``w - reference``."""
        return w - self._reference(w)

    def _reference(self, w: Tensor) -> Tensor:
        if not isinstance(self.reference, Tensor):
            raise ValueError(
                f"{type(self).__name__}: reference must be a tensor, got {self.reference!r}: pass one, or use a "
                "Regularizer, which takes it from the model"
            )
        return placed(self.reference, w, w.dtype)


@final
@dataclass(frozen=True, repr=False, eq=False)
class L2SP(Anchored):
    r"""A ridge towards a reference: fine-tuning stays near the pretrained weights.

    .. math:: R(w) = \frac{s}{2} \sum_i c_i (w_i - w^0_i)^2, \qquad
              \operatorname{prox}_{tR}(w)_i
              = \operatorname{argmin}_u \tfrac12 (u - w_i)^2 + \tfrac{ts c_i}{2} (u - w^0_i)^2
              = \frac{w_i + ts c_i w^0_i}{1 + ts c_i}

    With ``weights=fisher(model, batches)`` it is elastic weight consolidation (EWC): what an earlier task needs stays.

    Args:
        strength: ``s``, finite and not negative.
        reference: :math:`w^0`: a tensor, a ``state_dict``, or None for the weights at the start; see
            :class:`~torchreg.penalties.reference.Anchored`.
        weights: :math:`c_i`, by default 1: a tensor, a dict of them, or a function of the weight; see
            :class:`~torchreg.penalties.weighted.Weighted`.

    Raises:
        ValueError: the reference or the weights hold no tensor of a parameter's name, or one of another shape; a weight
            is negative or not finite.

    Example:
        >>> import torch
        >>> from torchreg import L2SP, Regularizer
        >>> model = torch.nn.Linear(2, 1)
        >>> regularizer = Regularizer(model, L2SP(1.0))
        >>> _ = model.weight.data.add_(1.0)
        >>> round(regularizer.value().item(), 4)
        1.0

    References:
        Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks", ICML 2018.
        James Kirkpatrick, Razvan Pascanu, Neil Rabinowitz and others, "Overcoming Catastrophic Forgetting in Neural
        Networks", Proceedings of the National Academy of Sciences, 2017.
    """

    def value(self, w: Tensor) -> Tensor:
        return self._half_square(self._away(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return self._away(w).mul_(self._strengths(w))

    @property
    def _curvature(self) -> float | None:
        return self.strength if self.weights is None else None

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        amount = step * self._strengths(w)
        return w - self._away(w) * (amount / (1 + amount))


@final
@dataclass(frozen=True, repr=False, eq=False)
class L1SP(Anchored):
    r"""A lasso towards a reference: fine-tuning changes only a few weights.

    .. math:: R(w) = s \sum_i c_i |w_i - w^0_i|, \qquad
              \operatorname{prox}_{tR}(w)_i = \operatorname{argmin}_u \tfrac12 (u - w_i)^2 + ts c_i |u - w^0_i|
              = w^0_i + \operatorname{sign}(w_i - w^0_i) \max(|w_i - w^0_i| - ts c_i, 0)

    In mode ``"prox"`` the other weights keep their reference values to the bit.

    Args:
        strength: ``s``, finite and not negative.
        reference: :math:`w^0`; as for :class:`L2SP`.
        weights: :math:`c_i`, by default 1; as for :class:`L2SP`.

    Raises:
        ValueError: as for :class:`L2SP`.

    Example:
        >>> import torch
        >>> L1SP(1.0, reference=torch.tensor(2.0)).prox(torch.tensor([2.5, 7.0]), step=1.0)
        tensor([2., 6.])

    References:
        Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks", ICML 2018.
    """

    def value(self, w: Tensor) -> Tensor:
        return self._l1_norm(self._away(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        away = self._away(w)
        return f.scaled_sign(away, self._strengths(w)).add_(f.nan_of(away))

    @property
    def _curvature(self) -> float:
        return 0.0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.soft_threshold_towards(w, self._reference(w), step * self._strengths(w))

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return f.distance_beyond_kink(gradient + self.gradient(w), self._away(w) == 0, self._strengths(w))

    def strength_max(self, gradient: Tensor) -> Tensor:
        """The smallest strength at which the reference is a stationary point, given the loss's gradient there."""
        return self._largest(gradient)


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    a, b = as_plain(a, local=True), as_plain(b, local=True)
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0
