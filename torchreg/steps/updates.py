"""The updates that a penalty makes in an optimizer's step, in each mode."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchreg.functional.chunks import chunks_of
from torchreg.functional.sharding import on_plain_
from torchreg.hooks import Group, gradient_scale, step_size
from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.penalties.joint import Joint
from torchreg.steps.half import in_single, make_room
from torchreg.steps.kernels import Form, Kernel, fits, kernel_on
from torchreg.steps.plan import Batch, Gradients, Plan, ScaleOf


def add_gradients(plan: Plan, gradients: Gradients, scale_of: ScaleOf, compile: bool = False) -> None:
    """Mode "grad", before the update: ``grad += dR(w)``.

    Raises:
        ValueError: a gradient is sparse, but the penalty's gradient is dense.
    """
    for i, _, param, _ in plan.changed:
        if gradients[i].layout != torch.strided:
            raise ValueError(
                "Regularizer: mode 'grad' needs dense gradients, got a sparse one for the parameter of shape "
                f"{tuple(param.shape)}: use mode 'decoupled' or 'prox'"
            )
    unscaled = gradient_scale(plan.optimizer)
    if isinstance(unscaled, Tensor):
        unscaled = make_room(plan, gradients, scale_of)
    with torch.no_grad():
        for batch in plan.batches:
            times = scale_of(batch.first) * (-unscaled if batch.group.get("maximize") else unscaled)
            _update(plan.params, batch, batch.penalty._add_gradient_, times, "add_gradient", compile, gradients)


def descend(plan: Plan, scale_of: ScaleOf, compile: bool = False, times: int = 1) -> None:
    """Mode "decoupled", before the update: ``w -= lr * dR(w)``, ``times`` as far."""
    with torch.no_grad():
        for batch in plan.batches:
            step = step_size(plan.optimizer, batch.group) * scale_of(batch.first) * times
            _update(plan.params, batch, batch.penalty._descend_, step, "descend", compile)


def take_proximal_steps(plan: Plan, scale_of: ScaleOf, compile: bool = False, times: int = 1) -> None:
    """Mode "prox", after the update: ``w = prox(w, lr)``, ``times`` as far."""
    with torch.no_grad():
        for batch in plan.batches:
            step = step_size(plan.optimizer, batch.group) * scale_of(batch.first) * times
            assert isinstance(batch.penalty, ProximalPenalty)
            _update(plan.params, batch, batch.penalty._prox_, step, "prox", compile)
        for whole, parts in plan.joint.items():
            own = [step_size(plan.optimizer, group) * scale_of(param) * times for _, (group, param, _) in parts]
            _move_together(whole, parts, own)


def _move_together(
    whole: Joint, parts: Sequence[tuple[Joint, tuple[Group, nn.Parameter, bool]]], steps: Sequence[float | Tensor]
) -> None:
    """The proximal step of a penalty on several weights; it moves those of which the step has a gradient."""
    each = [part for part, _ in parts]
    _, params, are_moved = zip(*(row for _, row in parts), strict=True)
    on_plain_(lambda *weights: whole._prox_together_(each, weights, steps, are_moved), False, *params)


def _update(
    params: Sequence[nn.Parameter],
    batch: Batch,
    act: Callable[..., object],
    number: float | Tensor,
    form: Form,
    compile: bool,
    gradients: Gradients = (),
) -> None:
    """Calls ``act`` with each weight of a batch and a number, or with gradient, weight and number.

    Args:
        params: all parameters of the plan.
        batch: which of them.
        act: an update of the penalty; it changes its first argument.
        number: the scale or step.
        form: what it does.
        compile: whether kernels do the same to large weights, in one pass.
        gradients: those of all parameters, if they are changed.
    """
    if isinstance(number, Tensor):
        act = partial(in_single, act)
    for bundle in batch.bundles:
        bundle.update(act, number, gradients)
    if gradients:
        for i in batch.whole:
            act(gradients[i], params[i], number)
    else:
        for i in batch.whole:
            act(params[i], number)
    if batch.others:
        others = [(gradients[i], params[i]) if gradients else (params[i],) for i in batch.others]
        _update_large(batch.penalty, act, number, form, compile, others)


def _update_large(
    penalty: Penalty,
    act: Callable[..., object],
    number: float | Tensor,
    form: Form,
    compile: bool,
    others: Sequence[Any],
) -> None:
    is_in_place = not isinstance(number, Tensor) and _is_in_place(penalty, form)
    kernels: dict[torch.device, Kernel | None] = {}
    for tensors in others:
        device, kernel = tensors[0].device, None
        if compile and penalty.is_uniform and fits(*tensors):
            if device not in kernels:
                kernels[device] = kernel_on(device, penalty, form, number)
            kernel = kernels[device]
        if kernel is not None:
            kernel(*tensors)
        elif is_in_place:
            on_plain_(lambda *some: act(*some, number), True, *tensors)
        else:
            update_(penalty, lambda *some: act(*some, number), *tensors)


def _is_in_place(penalty: Penalty, form: Form) -> bool:
    """Whether torch's calls need no memory: then chunks would only add calls, and threads that meet after each."""
    parts = penalty._lasso_and_ridge
    return parts is not None and (form == "prox" or parts[0] == 0)


def update_(penalty: Penalty, act: Callable[..., object], *tensors: Tensor) -> None:
    """``act(*tensors)``, which changes the first tensor: in chunks or on shards if the penalty allows that."""
    on_plain_(partial(_chunk_by_chunk, act) if penalty.is_uniform else act, penalty.is_separable, *tensors)


def _chunk_by_chunk(act: Callable[..., object], *tensors: Tensor) -> None:
    for some in chunks_of(*tensors):
        act(*some)
