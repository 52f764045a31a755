"""Weights that are spread over processes, as ``fully_shard`` spreads them: DTensors.

What looks at one element at a time works on each process's own shard, alone. Everything else sees the whole weight,
gathered one parameter at a time, and each process keeps its part of the result: no shard is ever taken for the weight.
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


def is_spread(w: Tensor) -> TypeGuard[DTensor]:
    """Whether ``w`` is a DTensor. Whoever has one has imported its module, which not every build of torch has."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(w, module.DTensor)


def plain(w: Tensor, alone: bool) -> Tensor:
    """``w`` as an ordinary tensor: this process's shard, in the same memory, or else the whole; differentiable."""
    if not is_spread(w):
        return w
    tensor: Tensor = w.to_local() if alone else w.full_tensor()
    return tensor


def placed(tensor: Tensor, like: Tensor, alone: bool) -> Tensor:
    """An ordinary tensor, made from ``plain(like, alone)``, spread as ``like`` is; differentiable."""
    if not is_spread(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh, shape, stride = like.device_mesh, like.shape, like.stride()
    if alone:  # shards may be uneven, so the shape does not follow from theirs
        return DTensor.from_local(tensor, mesh, like.placements, run_check=False, shape=shape, stride=stride)
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=like.placements)


def layout_of_sum(w: Tensor, alone: bool) -> Layout:
    """How a sum over ``plain(w, alone)`` is spread over the processes; None if each of them has all of it."""
    if not is_spread(w) or not alone:
        return None
    from torch.distributed.tensor import Partial

    return w.device_mesh, tuple(p if p.is_replicate() else Partial() for p in w.placements)


def joined(part: Tensor, layout: Layout) -> Tensor:
    """The sum that the processes' parts make up, the same in all of them; differentiable."""
    if layout is None:
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = layout
    total: Tensor = DTensor.from_local(part, mesh, placements, run_check=False).full_tensor()
    return total


def on_plain_(act: Callable[..., object], alone: bool, *tensors: Tensor) -> None:
    """``act(*tensors)`` on ordinary tensors; what it writes into them reaches the tensors. Without gradients."""
    if not any(map(is_spread, tensors)):
        act(*tensors)
        return
    alone = alone and len({tensor.placements for tensor in tensors if is_spread(tensor)}) == 1
    seen = [plain(tensor, alone) for tensor in tensors]
    act(*seen)
    if not alone:
        for tensor, result in zip(tensors, seen, strict=True):
            tensor.copy_(placed(result, tensor, alone))
