"""Penalties on the distance from a reference: the pretrained weights, the initial weights, or an average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from torchreg import functional as f
from torchreg.functional.sharding import as_plain, is_sharded, sharded_like
from torchreg.penalties.base import ProximalPenalty, Term
from torchreg.selection.parameters import ParamInfo

Reference = Tensor | Mapping[str, Tensor] | None


@dataclass(frozen=True, repr=False, eq=False)
class Anchored(Term, ProximalPenalty):
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

    Raises:
        ValueError: the reference holds no tensor of the parameter's name, or one of another shape.
    """

    reference: Reference = None

    @property
    def is_separable(self) -> bool:
        return True

    @property
    def _kind(self) -> object:
        return type(self), id(self.reference)  # not its values: it may change in place

    def bind(self, place: ParamInfo) -> Self:
        owner, w, reference = type(self).__name__, place.param.detach(), self.reference
        if isinstance(reference, Mapping):
            if place.name not in reference:
                raise ValueError(
                    f"{owner}: reference must hold {place.name}, got {len(reference)} names: "
                    f"{', '.join(list(reference)[:8]) or 'none'}; exempt new parameters with a dict of patterns"
                )
            reference = reference[place.name]
        if reference is not None and not isinstance(reference, Tensor):
            raise TypeError(f"{owner}: reference must be None, a tensor or a dict of tensors, got {reference!r}")
        if reference is not None and reference.ndim and reference.shape != w.shape:
            raise ValueError(
                f"{owner}: reference must have the shape of {place.name}, {tuple(w.shape)}, "
                f"got {tuple(reference.shape)}"
            )
        if reference is None or _is_same_memory(reference, w):  # model.state_dict() is the weights themselves
            reference = w.clone()
        if reference.ndim and _placements(reference) != _placements(w):
            reference = sharded_like(as_plain(reference, local=False), w, local=False)
        return replace(self, reference=reference.detach())

    def _away(self, w: Tensor) -> Tensor:
        """``w - reference``."""
        return w - self._reference(w)

    def _reference(self, w: Tensor) -> Tensor:
        if not isinstance(self.reference, Tensor):
            raise ValueError(
                f"{type(self).__name__}: reference must be a tensor, got {self.reference!r}: pass one, or use a "
                "Regularizer, which takes it from the model"
            )
        reference = self.reference if is_sharded(w) else as_plain(self.reference, local=True)
        # One number on the CPU goes into a kernel as it is. To copy it, the CPU would wait for the device in each step.
        device = w.device if reference.ndim or not reference.is_cpu else reference.device
        return reference.to(device, w.dtype)


@final
@dataclass(frozen=True, repr=False, eq=False)
class L2SP(Anchored):
    r"""A ridge towards a reference: fine-tuning stays near the pretrained weights.

    .. math:: R(w) = \frac{s}{2} \|w - w^0\|_2^2, \qquad
              \operatorname{prox}_{tR}(w)
              = \operatorname{argmin}_u \tfrac12 \|u - w\|_2^2 + \tfrac{ts}{2} \|u - w^0\|_2^2
              = \frac{w + ts\, w^0}{1 + ts}

    Args:
        strength: ``s``, finite and not negative.
        reference: :math:`w^0`: a tensor, a ``state_dict``, or None for the weights at the start; see
            :class:`~torchreg.penalties.reference.Anchored`.

    Raises:
        ValueError: the reference holds no tensor of a parameter's name, or one of another shape.

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
    """

    def value(self, w: Tensor) -> Tensor:
        return (self.strength * f.half_square(self._away(w))).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return self._away(w).mul_(self.strength)

    @property
    def _curvature(self) -> float:
        return self.strength

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        amount = step * self.strength
        return w - self._away(w) * (amount / (1 + amount))


@final
@dataclass(frozen=True, repr=False, eq=False)
class L1SP(Anchored):
    r"""A lasso towards a reference: fine-tuning changes only a few weights.

    .. math:: R(w) = s \|w - w^0\|_1, \qquad
              \operatorname{prox}_{tR}(w) = \operatorname{argmin}_u \tfrac12 \|u - w\|_2^2 + ts \|u - w^0\|_1
              = w^0 + \operatorname{sign}(w - w^0) \max(|w - w^0| - ts, 0)

    In mode ``"prox"`` the other weights keep their reference values to the bit.

    Args:
        strength: ``s``, finite and not negative.
        reference: :math:`w^0`; as for :class:`L2SP`.

    Raises:
        ValueError: the reference holds no tensor of a parameter's name, or one of another shape.

    Example:
        >>> import torch
        >>> L1SP(1.0, reference=torch.tensor(2.0)).prox(torch.tensor([2.5, 7.0]), step=1.0)
        tensor([2., 6.])

    References:
        Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks", ICML 2018.
    """

    def value(self, w: Tensor) -> Tensor:
        return (self.strength * f.l1_norm(self._away(w))).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        away = self._away(w)
        return f.scaled_sign(away, self.strength).add_(f.nan_of(away))

    @property
    def _curvature(self) -> float:
        return 0.0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.soft_threshold_towards(w, self._reference(w), step * self.strength)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return f.distance_beyond_kink(gradient + self.gradient(w), self._away(w) == 0, self.strength)

    def strength_max(self, gradient: Tensor) -> Tensor:
        """The smallest strength at which the reference is a stationary point, given the loss's gradient there."""
        return f.largest(gradient)


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    a, b = as_plain(a, local=True), as_plain(b, local=True)
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0


def _placements(w: Tensor) -> Sequence[object] | None:
    return w.placements if is_sharded(w) else None
