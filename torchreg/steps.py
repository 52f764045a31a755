"""What a penalty does in an optimizer's step, in each of the modes that act there."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Group, gradient_scale, step_size
from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.pieces import pieces
from torchreg.shards import on_plain_

Penalties = Mapping[nn.Parameter, Penalty]
Scales = Mapping[nn.Parameter, float | Tensor]


@torch.no_grad()
def add_gradients(optimizer: Optimizer, penalties: Penalties, scales: Scales) -> None:
    """Mode "grad", before the update: ``grad += dR(w)``.

    Raises:
        ValueError: a gradient is sparse, where a penalty's would not be.
    """
    unscaled = gradient_scale(optimizer)
    for param, grad, penalty, group in moving(optimizer, penalties):
        if grad.layout != torch.strided:
            raise ValueError(
                "Regularizer: mode 'grad' needs dense gradients, got a sparse one for the parameter of shape "
                f"{tuple(param.shape)}: use mode 'decoupled' or 'prox'"
            )
        times = scales[param] * (-unscaled if group.get("maximize") else unscaled)
        act_(penalty, partial(penalty.add_gradient_, scale=times), grad, param)


@torch.no_grad()
def descend(optimizer: Optimizer, penalties: Penalties, scales: Scales) -> None:
    """Mode "decoupled", before the update: ``w -= lr * dR(w)``."""
    for param, _, penalty, group in moving(optimizer, penalties):
        step = step_size(optimizer, group) * scales[param]
        act_(penalty, partial(penalty.descend_, step=step), param)


@torch.no_grad()
def take_proximal_points(optimizer: Optimizer, penalties: Penalties, scales: Scales) -> None:
    """Mode "prox", after the update: ``w = prox(w, lr)``."""
    for param, _, penalty, group in moving(optimizer, penalties):
        assert isinstance(penalty, ProximalPenalty)
        step = step_size(optimizer, group) * scales[param]
        act_(penalty, partial(penalty.prox_, step=step), param)


def act_(penalty: Penalty, act: Callable[..., object], *tensors: Tensor) -> None:
    """``act(*tensors)``, which changes the first of them, on as much of them at a time as the penalty needs to see."""
    on_plain_(partial(_piecewise, act) if penalty.is_uniform else act, penalty.is_separable, *tensors)


def _piecewise(act: Callable[..., object], *tensors: Tensor) -> None:
    for some in pieces(*tensors):
        act(*some)


def moving(optimizer: Optimizer, penalties: Penalties) -> Iterator[tuple[nn.Parameter, Tensor, Penalty, Group]]:
    """The penalized parameters that the coming (or just made) step moves."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            penalty = penalties.get(param)
            if penalty is not None and param.grad is not None and param.requires_grad:
                yield param, param.grad, penalty, group
