"""Derivatives of an optimizer's step with respect to the strengths, in each mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.optim import DecoupledDecay, Proximal
from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.penalties.constraints import Constraint
from torchreg.regularizer import Mode, Regularizer
from torchreg.tuning.online.updates import DIFFERENTIATED, Update, update_fields


@dataclass(frozen=True, eq=False, kw_only=True)
class PenaltyUpdate(Update):
    """What a regularizer does to one weight in one step, with everything needed to differentiate it later."""

    regularizer: Regularizer
    penalty: Penalty
    scale: float | Tensor
    before: Tensor  # the old weight

    @property
    def mode(self) -> Mode:
        return self.regularizer.mode


def penalty_updates_of(regularizer: Regularizer, optimizer: Optimizer) -> list[PenaltyUpdate]:
    """What the regularizer will do to each weight that the step changes."""
    return [
        PenaltyUpdate(
            **update_fields(optimizer, group, param),
            regularizer=regularizer,
            penalty=penalty,
            scale=scale,
            before=param.detach().clone(),
        )
        for group, param, penalty, scale in regularizer._acting_in(optimizer)
    ]


def check_differentiable(regularizer: Regularizer, optimizer: Optimizer) -> None:
    """Raises ``ValueError`` unless the optimizer's step can be differentiated by the strength in the mode."""
    owner, name = "AutoStrength", type(optimizer).__name__
    bare = isinstance(optimizer, DecoupledDecay) and isinstance(optimizer, DIFFERENTIATED)  # except for its decay
    if regularizer.mode != "prox" and isinstance(optimizer, Proximal):
        raise ValueError(
            f"{owner}: mode {regularizer.mode!r} needs an optimizer without a penalty of its own, got {name}"
        )
    is_known = type(optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    decays = any(group.get("weight_decay", 0) != 0 for group in optimizer.param_groups)
    if regularizer.mode == "grad" and not is_known and not bare:
        raise ValueError(f"{owner}: mode 'grad' needs SGD, Adam or AdamW, got {name}: use mode 'decoupled' or 'prox'")
    if regularizer.mode != "prox" and decays and not is_known:
        raise ValueError(
            f"{owner}: mode {regularizer.mode!r} needs an optimizer without a weight_decay of its own, or SGD, Adam or "
            f"AdamW, got {name}: decay by another Regularizer"
        )
    if any(isinstance(term, Constraint) for a in regularizer.entries for term in a.terms):
        raise ValueError(f"{owner}: a constraint has no strength to tune: make a separate Regularizer for it")


@torch.no_grad()
def hypergradients(updates: Sequence[PenaltyUpdate], gradient: Tensor) -> list[Tensor]:
    r"""The derivatives of the loss after the step by the scales of the updates of one weight, in their order.

    With :math:`v = \nabla L_{\text{val}}(w')` at the weight :math:`w'` after the step they are

    .. math:: \frac{\partial L_{\text{val}}}{\partial c} = \Big\langle v, \frac{\partial w'}{\partial c} \Big\rangle,
              \qquad \frac{\partial w'}{\partial c} =
              \begin{cases}
                -J\, \partial R(w) & \text{mode "grad"} \\
                -\eta\, \partial R(w) & \text{mode "decoupled"} \\
                \partial_c \operatorname{prox}_{\eta c R}(u) & \text{mode "prox"}
              \end{cases}

    where :math:`J` is the derivative of the optimizer's update by the gradient. The updates that follow an update are
    differentiated through.

    Args:
        updates: the updates of one weight, in order.
        gradient: :math:`v`.

    Returns:
        A 0-d tensor for each update.

    References:
        Jelena Luketina, Mathias Berglund, Klaus Greff, Tapani Raiko, "Scalable Gradient-Based Tuning of Continuous
        Regularization Hyperparameters", ICML 2016.
    """
    found = []
    after, is_updated = updates[-1].param.detach(), False  # whether the optimizer's own update has been passed
    carried = gradient
    for number, update in reversed(list(enumerate(updates))):
        if update.mode == "prox":
            slope, gradient = _through_prox(update, after, gradient, further=number > 0)
            carried = gradient
        else:
            if not is_updated:
                carried, is_updated = _through_update(update, gradient), True
            slope, carried = _before_update(update, gradient, carried, further=number > 0)
        found.append(slope)
        after = update.before
    return found[::-1]


@torch.no_grad()
def effect(update: PenaltyUpdate) -> tuple[Tensor, Tensor]:
    """The squared norms of the weight before the step and of the change of its step by the scale.

    For a step that ends with a proximal operator this is its change at scale 0.
    """
    direction = update.penalty.gradient(update.before)
    if update.mode == "grad":
        return _square(update.before), _square(update.response(update.before, direction))
    return _square(update.before), _square(direction) * update.step**2


def _square(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)).real
    return norm.square()


def _through_update(update: PenaltyUpdate, gradient: Tensor) -> Tensor:
    """The derivative of ``<gradient, w'>`` by the weight before the optimizer's update, with its gradient fixed."""
    if not update.group.get("weight_decay", 0):
        return gradient
    moves = update.mode == "decoupled"
    weight = (
        update.before - update.step * update.scale * update.penalty.gradient(update.before) if moves else update.before
    )
    return gradient * update.through(weight)


def _before_update(update: PenaltyUpdate, gradient: Tensor, carried: Tensor, further: bool) -> tuple[Tensor, Tensor]:
    """The derivative by the scale of an update in mode "grad" or "decoupled", and by the weight before it.

    ``gradient`` is by the weight after the optimizer's update, ``carried`` by the weight after the penalty's.
    """
    direction = update.penalty.gradient(update.before)
    factor: float | Tensor
    if update.mode == "grad":  # each element depends on its own gradient alone
        factor, pulled = 1.0, update.response(update.before, gradient)
    else:
        factor, pulled = -update.step, carried
    if further:
        carried = carried + _curved(update.penalty, update.before, factor * update.scale * pulled)
    return factor * _inner(pulled, direction), carried


def _curved(penalty: Penalty, weight: Tensor, direction: Tensor) -> Tensor:
    """The penalty's second derivative times a direction."""
    with torch.enable_grad():
        w = weight.detach().clone().requires_grad_()
        slope = penalty.gradient(w)
        if not slope.requires_grad:
            return torch.zeros_like(weight)
        (found,) = torch.autograd.grad(slope, w, direction, allow_unused=True, materialize_grads=True)
    return found


def _through_prox(update: PenaltyUpdate, after: Tensor, gradient: Tensor, further: bool) -> tuple[Tensor, Tensor]:
    """The derivatives of ``<gradient, prox(u, step * scale)>`` by the scale and, if it goes further, by ``u``."""
    penalty = update.penalty
    assert isinstance(penalty, ProximalPenalty)
    if penalty._curvature is None or further:
        return _by_autograd(update, penalty, gradient, further)
    slope = _inner(gradient, penalty.gradient(after))
    return -update.step * slope / (1 + update.step * update.scale * penalty._curvature), gradient


def _by_autograd(
    update: PenaltyUpdate, penalty: ProximalPenalty, gradient: Tensor, further: bool
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        u = update.before.clone().requires_grad_(further)
        scale = torch.as_tensor(update.scale, dtype=torch.promote_types(u.dtype, torch.float32), device=u.device)
        scale = (scale.expand(u.shape) if penalty._takes_steps else scale).detach().clone().requires_grad_()
        moved = penalty.prox(u, update.step * scale)
        wanted = (scale, u) if further else (scale,)
        slopes, *through = torch.autograd.grad(moved, wanted, gradient, allow_unused=True, materialize_grads=True)
    at_zero = moved == 0  # some formulas, such as roots, have no derivative there; the weight stays zero
    if slopes.ndim:
        slopes = slopes.masked_fill(at_zero & slopes.isnan(), 0.0)
    return slopes.sum(), through[0].masked_fill(at_zero & through[0].isnan(), 0.0) if further else gradient


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The real part of the inner product, in one pass."""
    if a.is_complex():
        a, b = (torch.view_as_real(each.resolve_conj()) for each in (a, b))
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))
