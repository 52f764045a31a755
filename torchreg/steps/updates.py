"""The updates that a penalty makes in an optimizer's step, in each mode."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg import functional as f
from torchreg.functional.chunks import CHUNK, chunks_of
from torchreg.functional.sharding import on_plain_
from torchreg.hooks import gradient_scale, step_size
from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.steps.batches import Penalties, Scales, param_batches
from torchreg.steps.half import in_single, make_room
from torchreg.steps.kernels import Form, Kernel, fits, kernel_on

_PLAIN = (nn.Parameter, Tensor)


@torch.no_grad()
def add_gradients(optimizer: Optimizer, penalties: Penalties, scales: Scales, compile: bool = False) -> None:
    """Mode "grad", before the update: ``grad += dR(w)``.

    Raises:
        ValueError: a gradient is sparse, but the penalty's gradient is dense.
    """
    batches = param_batches(optimizer, penalties, scales)
    for batch in batches:
        for param, grad in zip(batch.params, batch.grads, strict=True):
            if grad.layout != torch.strided:
                raise ValueError(
                    "Regularizer: mode 'grad' needs dense gradients, got a sparse one for the parameter of shape "
                    f"{tuple(param.shape)}: use mode 'decoupled' or 'prox'"
                )
    make_room(optimizer, batches)
    unscaled = gradient_scale(optimizer)
    for batch in batches:
        penalty = batch.penalty
        times = batch.scale * (-unscaled if batch.group.get("maximize") else unscaled)
        one, many = partial(penalty._add_gradient_, scale=times), partial(penalty._foreach_add_gradient_, scale=times)
        _update_all(penalty, one, many, (batch.grads, batch.params), times, "add_gradient" if compile else None)


@torch.no_grad()
def descend(optimizer: Optimizer, penalties: Penalties, scales: Scales, compile: bool = False, times: int = 1) -> None:
    """Mode "decoupled", before the update: ``w -= lr * dR(w)``, ``times`` as far."""
    for batch in param_batches(optimizer, penalties, scales):
        penalty, step = batch.penalty, step_size(optimizer, batch.group) * batch.scale * times
        one, many = partial(penalty._descend_, step=step), partial(penalty._foreach_descend_, step=step)
        _update_all(penalty, one, many, (batch.params,), step, "descend" if compile else None)


@torch.no_grad()
def take_proximal_steps(
    optimizer: Optimizer, penalties: Penalties, scales: Scales, compile: bool = False, times: int = 1
) -> None:
    """Mode "prox", after the update: ``w = prox(w, lr)``, ``times`` as far."""
    for batch in param_batches(optimizer, penalties, scales):
        penalty, step = batch.penalty, step_size(optimizer, batch.group) * batch.scale * times
        assert isinstance(penalty, ProximalPenalty)
        one, many = partial(penalty._prox_, step=step), partial(penalty._foreach_prox_, step=step)
        _update_all(penalty, one, many, (batch.params,), step, "prox" if compile else None)


def _update_all(
    penalty: Penalty,
    one: Callable[..., object],
    many: Callable[..., object],
    lists: tuple[list[Tensor], ...],
    number: float | Tensor,
    in_one_pass: Form | None,
) -> None:
    """Calls ``one(*tensors)`` for each large weight, and ``many(*lists)`` for small weights together.

    Both take the number; ``in_one_pass`` is the form of kernels that do the same.
    """
    is_uniform = penalty.is_uniform
    kernels: dict[torch.device, Kernel | None] = {}
    small: tuple[list[Tensor], ...] = tuple([] for _ in lists)
    left = CHUNK
    for tensors in zip(*lists, strict=True):
        w = tensors[0]
        kernel = None
        if in_one_pass is not None and is_uniform and fits(*tensors):
            if w.device not in kernels:
                kernels[w.device] = kernel_on(w.device, penalty, in_one_pass, number)
            kernel = kernels[w.device]
        if kernel is not None:
            kernel(*tensors)
        elif isinstance(number, Tensor) and any(map(f.is_half, tensors)):
            update_(penalty, partial(in_single, one), *tensors)
        elif is_uniform and type(w) in _PLAIN and w.numel() < CHUNK:
            if w.numel() > left:
                many(*small)
                small, left = tuple([] for _ in lists), CHUNK
            left -= w.numel()
            for some, tensor in zip(small, tensors, strict=True):
                some.append(tensor)
        else:
            update_(penalty, one, *tensors)
    if small[0]:
        many(*small)


def update_(penalty: Penalty, act: Callable[..., object], *tensors: Tensor) -> None:
    """``act(*tensors)``, which changes the first tensor: in chunks or on shards if the penalty allows that."""
    on_plain_(partial(_chunk_by_chunk, act) if penalty.is_uniform else act, penalty.is_separable, *tensors)


def _chunk_by_chunk(act: Callable[..., object], *tensors: Tensor) -> None:
    for some in chunks_of(*tensors):
        act(*some)
