"""What is known of tensors while a model is followed: to which unit each element belongs, and what is constant."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Seen(NamedTuple):
    """What is known of a tensor's elements, in two tensors of its shape."""

    units: Tensor  # the number of the unit that each element belongs to; 0 for what has none
    constant: Tensor  # whether it is the same for all inputs, and at all places of its unit
    varies: bool = True  # whether the tensor depends on the input at all


class Columns(NamedTuple):
    """What is known of a tensor along one dimension, if it is the same along the others."""

    units: Tensor
    constant: Tensor
    values: Tensor


class Reader(NamedTuple):
    """A layer's weight as a matrix from units to units, one for each group of a grouped convolution."""

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None
    matrix: Tensor  # (groups, rows, columns, elements of a filter): the weight
    rows: Tensor  # (groups, rows): the units that it writes
    columns: Tensor  # (groups, columns): the units that it reads
    values: Tensor  # of what it reads, where ``is_constant``
    is_constant: Tensor


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def alias(t: Tensor) -> Tensor:
    return t.view(t.shape) if t.is_contiguous() else t.expand(t.shape)


def thin_of(t: Tensor) -> Tensor:
    """The tensor with one element along each dimension along which it was expanded."""
    return t[tuple(slice(1) if stride == 0 else slice(None) for stride in t.stride())] if t.ndim else t


def at_places_of(t: Tensor, thin: Tensor) -> Tensor:
    """The elements of a tensor at the places that are left of another one."""
    return t[tuple(slice(1) if size == 1 else slice(None) for size in thin.shape)]


def spread(values: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """The values along a dimension, expanded along the others."""
    return values.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)


def varying_dims(units: Tensor) -> list[int]:
    """The dimensions along which the units differ."""
    thin = thin_of(units)
    return [d for d in range(thin.ndim) if thin.shape[d] > 1 and bool((thin != thin.narrow(d, 0, 1)).any())]


def along(units: Tensor, dim: int) -> Tensor | None:
    """The units along a dimension; None if they differ along another one."""
    rows = thin_of(units).movedim(dim, 0).flatten(1)
    if rows.shape[1] == 0 or not bool((rows == rows[:, :1]).all()):
        return None
    return rows[:, 0].expand(units.shape[dim])
