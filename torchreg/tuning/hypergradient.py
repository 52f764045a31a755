"""What one optimizer step's weights owe to the strengths: derivatives of the step, in each of the modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.regularizer import Mode, Regularizer
from torchreg.tuning.updates import DIFFERENTIATED, Update, what_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Act(Update):
    """A regularizer's act on one weight, in one step: what it saw, so that it can be differentiated afterwards."""

    regularizer: Regularizer
    penalty: Penalty
    scale: float | Tensor
    before: Tensor  # the weight as it was

    @property
    def mode(self) -> Mode:
        return self.regularizer.mode


def acts_of(regularizer: Regularizer, optimizer: Optimizer) -> list[Act]:
    """What the regularizer is about to do to each weight that the step moves."""
    return [
        Act(
            **what_of(optimizer, group, param),
            regularizer=regularizer,
            penalty=penalty,
            scale=scale,
            before=param.detach().clone(),
        )
        for group, param, penalty, scale in regularizer.acting_in(optimizer)
    ]


def check_differentiable(regularizer: Regularizer, optimizer: Optimizer) -> None:
    """Raises ``ValueError`` unless a step of the optimizer can be differentiated by the strength, in the mode."""
    owner, name = "AutoStrength", type(optimizer).__name__
    if regularizer.mode == "grad" and not isinstance(optimizer, DIFFERENTIATED):
        raise ValueError(f"{owner}: mode 'grad' needs SGD, Adam or AdamW, got {name}: use mode 'decoupled' or 'prox'")


def hypergradients(acts: Sequence[Act], gradient: Tensor) -> list[Tensor]:
    r"""The derivatives of a loss after the step by the scales of the acts on one weight, in the order they acted.

    With :math:`v = \nabla L_{\text{val}}(w')` at the weight :math:`w'` that the step led to, they are

    .. math:: \frac{\partial L_{\text{val}}}{\partial c} = \Big\langle v, \frac{\partial w'}{\partial c} \Big\rangle,
              \qquad \frac{\partial w'}{\partial c} =
              \begin{cases}
                -J\, \partial R(w) & \text{mode "grad"} \\
                -\eta\, \partial R(w) & \text{mode "decoupled"} \\
                \partial_c \operatorname{prox}_{\eta c R}(u) & \text{mode "prox"}
              \end{cases}

    with :math:`J` the derivative of the optimizer's update by the gradient; what acts later is differentiated through.

    Args:
        acts: those on one weight, in order.
        gradient: ``v``.

    Returns:
        A 0-d tensor for each act.

    References:
        Jelena Luketina, Mathias Berglund, Klaus Greff, Tapani Raiko, "Scalable Gradient-Based Tuning of Continuous
        Regularization Hyperparameters", ICML 2016.
    """
    found = []
    after = acts[
        -1
    ].param.detach()  # the weight as the act left it; the optimizer's update lies before the proximal ones
    for number, act in reversed(list(enumerate(acts))):
        if act.mode == "prox":
            slope, gradient = _through_prox(act, after, gradient, further=number > 0)
        else:
            slope = _before_update(act, gradient)
        found.append(slope)
        after = act.before
    return found[::-1]


@torch.no_grad()
def _before_update(act: Act, gradient: Tensor) -> Tensor:
    """The derivative of ``<gradient, w'>`` by the scale of an act in mode "grad" or "decoupled"."""
    direction = act.penalty.gradient(act.before)
    if act.mode == "grad":
        return _inner(gradient, act.response(act.before, direction))
    if act.group.get("weight_decay", 0):
        gradient = gradient * act.through(act.before - act.step * act.scale * direction)
    return -act.step * _inner(gradient, direction)


def _through_prox(act: Act, after: Tensor, gradient: Tensor, further: bool) -> tuple[Tensor, Tensor]:
    """The derivatives of ``<gradient, prox(u, step * scale)>`` by the scale and, if it goes further, by ``u``."""
    penalty = act.penalty
    assert isinstance(penalty, ProximalPenalty)
    if penalty.curvature is None or further:
        return _by_autograd(act, penalty, gradient, further)
    with torch.no_grad():
        slope = _inner(gradient, penalty.gradient(after))
        return -act.step * slope / (1 + act.step * act.scale * penalty.curvature), gradient


def _by_autograd(act: Act, penalty: ProximalPenalty, gradient: Tensor, further: bool) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        u = act.before.clone().requires_grad_(further)
        scale = torch.as_tensor(act.scale, dtype=torch.promote_types(u.dtype, torch.float32), device=u.device)
        scale = (scale.expand(u.shape) if penalty.takes_steps else scale).detach().clone().requires_grad_()
        moved = penalty.prox(u, act.step * scale)
        wanted = (scale, u) if further else (scale,)
        slopes, *through = torch.autograd.grad(moved, wanted, gradient, allow_unused=True, materialize_grads=True)
    at_zero = moved == 0  # where some formulas, such as roots, have no derivative, and the weight stays zero
    if slopes.ndim:
        slopes = slopes.masked_fill(at_zero & slopes.isnan(), 0.0)
    return slopes.sum(), through[0].masked_fill(at_zero & through[0].isnan(), 0.0) if further else gradient


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product in one pass; of complex tensors its real part."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))
