"""Weights that are sharded over processes, as ``fully_shard`` does it: DTensors.

A function of single elements works on each process's own shard. Everything else gets the whole weight, gathered one
parameter at a time, and each process keeps its shard of the result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

Layout: TypeAlias = "tuple[DeviceMesh, tuple[Placement, ...]] | None"


def is_sharded(w: Tensor) -> TypeGuard[DTensor]:
    """Whether ``w`` is a DTensor. A DTensor exists only if its module was imported, which some builds of torch lack."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(w, module.DTensor)


def as_plain(w: Tensor, local: bool) -> Tensor:
    """``w`` as an ordinary tensor: if ``local`` this process's shard, in the same memory, else the whole weight.

    It is differentiable.
    """
    if not is_sharded(w):
        return w
    tensor: Tensor = w.to_local() if local else w.full_tensor()
    return tensor


def sharded_like(tensor: Tensor, like: Tensor, local: bool) -> Tensor:
    """An ordinary tensor that was computed from ``as_plain(like, local)``, sharded as ``like`` is; differentiable."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh, shape, stride = like.device_mesh, like.shape, like.stride()
    if local:  # shards may be uneven, so the shape does not follow from theirs
        return DTensor.from_local(tensor, mesh, like.placements, run_check=False, shape=shape, stride=stride)
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=like.placements)


def layout_of_sum(w: Tensor, local: bool) -> Layout:
    """How a sum over ``as_plain(w, local)`` is distributed over the processes; None if each process has all of it."""
    if not is_sharded(w) or not local:
        return None
    from torch.distributed.tensor import Partial

    return w.device_mesh, tuple(p if p.is_replicate() else Partial() for p in w.placements)


def reduced(part: Tensor, layout: Layout) -> Tensor:
    """The sum of the processes' parts, the same in each process; differentiable."""
    if layout is None:
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = layout
    total: Tensor = DTensor.from_local(part, mesh, placements, run_check=False).full_tensor()
    return total


def largest(w: Tensor) -> Tensor:
    """The largest element, which must not be negative, the same in each process; shards may be empty."""
    if not is_sharded(w):
        return w.amax()
    from torch.distributed.tensor import DTensor, Partial

    shard = as_plain(w, local=True)
    part = shard.amax() if shard.numel() else shard.new_zeros(())
    placements = [p if p.is_replicate() else Partial("max") for p in w.placements]
    found: Tensor = DTensor.from_local(part, w.device_mesh, placements, run_check=False).full_tensor()
    return found


def on_plain_(act: Callable[..., object], local: bool, *tensors: Tensor) -> None:
    """``act(*tensors)`` on ordinary tensors; what it writes into them is written into ``tensors``. No gradients."""
    if not any(map(is_sharded, tensors)):
        act(*tensors)
        return
    local = local and len({tensor.placements for tensor in tensors if is_sharded(tensor)}) == 1
    seen = [as_plain(tensor, local) for tensor in tensors]
    act(*seen)
    if not local:
        for tensor, result in zip(tensors, seen, strict=True):
            tensor.copy_(sharded_like(result, tensor, local))
