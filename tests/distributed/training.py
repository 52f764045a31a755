"""The same small training in one process, and in two under DDP, FSDP2 or tensor parallelism."""

import contextlib
import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import EXAMPLES, FEATURES, OUTPUTS, make_data, make_model
from tests.optimizers import OPTIMIZERS
from torchreg import Penalty, Regularizer

PROCESSES = 2
STEPS = 4
UNEVEN = (FEATURES, 5, 1, OUTPUTS)  # over two processes the weights divide into 3 + 2 rows, 1 + 0 and 2 + 1
EVEN = (FEATURES, 4, OUTPUTS)

Wrap = Callable[[nn.Module], nn.Module]
Weights = dict[str, Tensor]
sgd: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = OPTIMIZERS["SGD-momentum"]


def network(widths: tuple[int, ...] = UNEVEN) -> nn.Sequential:
    """Weights large enough to be outside of what constraints allow."""
    model = make_model(widths=widths)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(3.0)
    return model


@cache
def mesh_of(**shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(shape.values()), mesh_dim_names=tuple(shape))


def fsdp(model: nn.Module, replicas: int = 1) -> nn.Module:
    """Each layer is sharded on its own, and its whole weights are freed between its forward and backward pass."""
    shards = PROCESSES // replicas
    mesh = mesh_of(shards=shards) if replicas == 1 else mesh_of(replicas=replicas, shards=shards)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Module) -> nn.Module:
    """The rows of the first weight are spread and the columns of the second; its bias is a copy in each process."""
    return parallelize_module(model, mesh_of(shards=PROCESSES), {"0": ColwiseParallel(), "2": RowwiseParallel()})


ddp: Wrap = DistributedDataParallel
replicated: Wrap = partial(fsdp, replicas=PROCESSES)
WRAPS = {"DDP": ddp, "FSDP2": fsdp}


def regularized(
    penalty: Penalty,
    mode: str,
    wrap: Wrap = lambda model: model,
    *,
    examples: slice = slice(None),
    before: bool = False,
    widths: tuple[int, ...] = UNEVEN,
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = sgd,
    micro_batches: int = 1,
    scaler: bool = False,
    **options: Any,
) -> Weights:
    """Weights and value after a regularized training; ``before``: the regularizer is older than the wrapping."""
    model = network(widths)
    if before:
        regularizer = Regularizer(model, penalty, mode=mode, **options)
        wrapped = wrap(model)
    else:
        wrapped = wrap(model)
        regularizer = Regularizer(model, penalty, mode=mode, **options)
    optimizer = make_optimizer(wrapped.parameters())
    if mode != "loss" or options.get("schedule"):
        regularizer.attach(optimizer)
    loss = regularizer.penalize(F.mse_loss) if mode == "loss" else F.mse_loss
    train(wrapped, optimizer, loss, examples, micro_batches, torch.amp.GradScaler("cpu", 8.0, enabled=scaler))
    value = regularizer.value()
    assert type(value) is Tensor, f"value() must be an ordinary tensor, got {type(value).__name__}"
    return {**weights_of(model), "value": value.detach()}


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    examples: slice,
    micro_batches: int,
    scaler: torch.amp.GradScaler,
) -> None:
    """A user's loop. Between micro-batches nothing is communicated."""
    x, y = (tensor[examples].chunk(micro_batches) for tensor in make_data())
    for _ in range(STEPS):
        optimizer.zero_grad()
        for i in range(micro_batches):
            with communicating(model, i == micro_batches - 1):
                scaler.scale(criterion(model(x[i]), y[i]) / micro_batches).backward()
        scaler.step(optimizer)
        scaler.update()


def communicating(model: nn.Module, enabled: bool) -> contextlib.AbstractContextManager:
    if isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(enabled)
    return contextlib.nullcontext()


def own_examples() -> slice:
    """This process's part of the batch."""
    count = EXAMPLES // PROCESSES
    return slice(dist.get_rank() * count, (dist.get_rank() + 1) * count)


def weights_of(model: nn.Module) -> Weights:
    return {name: whole(param.detach()) for name, param in model.named_parameters()}


def whole(w: Tensor) -> Tensor:
    return w.full_tensor() if isinstance(w, DTensor) else w


def difference(actual: Weights, expected: Weights) -> float:
    """The largest difference, NaN if there is one; infinite if the two are not exactly zero in the same places."""
    assert actual.keys() == expected.keys()
    if any(not torch.equal(actual[name] == 0, w == 0) for name, w in expected.items()):
        return math.inf
    return torch.stack([(actual[name] - w).abs().max() for name, w in expected.items()]).max().item()
