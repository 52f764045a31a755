"""Groups of a weight's elements, for penalties and constraints that act on groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from torchreg.selection.parameters import ParamInfo

Side = Literal["output", "input"]
Name = Literal["tensor", "output", "input", "filter"]


@dataclass(frozen=True)
class Heads:
    """Groups for attention heads: equal blocks of rows (``side="output"``) or columns (``"input"``) of a weight.

    The projections to queries, keys and values have their heads at the output; the projection after the attention has
    them at the input. In the packed ``in_proj_weight`` of :class:`torch.nn.MultiheadAttention` the group of a head
    holds its rows of all three projections.

    Args:
        number: the number of heads, at least 1.
        side: ``"output"`` or ``"input"``.

    Raises:
        ValueError: ``number`` is not a whole number of at least 1, or ``side`` is another word.

    Example:
        >>> from torchreg import GroupLasso
        >>> penalty = GroupLasso(1.0, groups=Heads(2))
        >>> penalty.prox(torch.tensor([[3.0, 4.0], [0.1, 0.1]]), step=1.0).count_nonzero(dim=1)
        tensor([2, 0])
    """

    number: int
    side: Side = "output"

    def __post_init__(self) -> None:
        if isinstance(self.number, bool) or not isinstance(self.number, int) or self.number < 1:
            raise ValueError(f"Heads: number must be a whole number >= 1, got {self.number!r}")
        if self.side not in get_args(Side):
            raise ValueError(f"Heads: side must be 'output' or 'input', got {self.side!r}")


class Table(NamedTuple):
    """Groups of similar size, one in each row."""

    gather: Tensor  # positions of the elements in the flattened weight; short rows are filled with ``numel``
    sizes: Tensor | int  # of each group, (groups, 1); a number if it is the same for all

    def to(self, device: torch.device) -> Table:
        sizes = self.sizes.to(device) if isinstance(self.sizes, Tensor) else self.sizes
        return Table(self.gather.to(device), sizes)


class Index:
    """Groups by number: all elements (or, of a 1-D index, all output units) with one number form a group."""

    def __init__(self, owner: str, index: Tensor) -> None:
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ValueError(f"{owner}: groups must be an index of whole numbers, got one of {index.dtype}")
        self.tensor = index.detach().to("cpu", torch.int64, copy=True)
        if (self.tensor < 0).any():
            raise ValueError(f"{owner}: groups must be whole numbers >= 0, got {int(self.tensor.min())}")

    @cached_property
    def tables(self) -> Sequence[Table]:
        """The groups in as few tables as are at most half empty: one, unless their sizes differ much."""
        flat = self.tensor.flatten()
        _, group, sizes = flat.unique(return_inverse=True, return_counts=True)
        order = group.argsort(stable=True)
        within = torch.arange(len(flat), device=flat.device) - (sizes.cumsum(0) - sizes)[group[order]]
        widest = int(sizes.max()) if len(sizes) else 0
        if len(sizes) * widest <= 2 * len(flat):
            kinds = [torch.ones_like(sizes, dtype=torch.bool)]
        else:  # sizes that differ by less than a factor of two share a table
            magnitude = sizes.double().log2().floor()
            kinds = [magnitude == each for each in magnitude.unique()]
        tables = []
        for kind in kinds:
            own, number = sizes[kind], kind.cumsum(0) - 1
            gather = flat.new_full((len(own), int(own.max()) if len(own) else 0), len(flat))
            chosen = kind[group[order]]
            gather[number[group[order][chosen]], within[chosen]] = order[chosen]
            equal = gather.shape[1] if bool((own == gather.shape[1]).all()) else own[:, None]
            tables.append(Table(gather, max(equal, 1) if isinstance(equal, int) else equal))
        return tables

    def tables_on(self, device: torch.device) -> Sequence[Table]:
        """:attr:`tables` on a device; they are cached."""
        if device not in self._copies:
            self._copies[device] = [table.to(device) for table in self.tables]
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, Sequence[Table]]:
        return {}

    def over(self, w: Tensor, owner: str) -> Index:
        """This index, element by element of ``w``."""
        if self.tensor.shape == w.shape:
            return self
        if self.tensor.ndim == 1 and w.ndim > 1 and len(self.tensor) == w.shape[0]:
            return Index(owner, self.tensor.view(-1, *[1] * (w.ndim - 1)).expand(w.shape))
        raise ValueError(
            f"{owner}: groups must be an index of the weight's shape {tuple(w.shape)} or of its output units, "
            f"got one of shape {tuple(self.tensor.shape)}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and torch.equal(self.tensor, other.tensor)

    def __hash__(self) -> int:
        return hash(self.tensor.shape)

    def __repr__(self) -> str:
        few = self.tensor.numel() <= 16
        return f"tensor({self.tensor.tolist()!r})" if few else f"<index of shape {tuple(self.tensor.shape)}>"


Spec: TypeAlias = Name | int | Heads | Index
Groups: TypeAlias = Spec | Tensor


class Part(NamedTuple):
    """Groups of a weight's elements, one in each row. The rows of smaller groups are filled with zeros."""

    rows: Tensor  # (groups, size)
    sizes: Tensor | int  # of each group, (groups, 1); a number if it is the same for all


@dataclass(frozen=True)
class Partition:
    """All groups of a weight: in one part, unless their sizes differ so much that one would be mostly zeros."""

    parts: Sequence[Part]
    join: Callable[[Sequence[Tensor]], Tensor]  # the parts' rows back to the weight's shape
    is_view: bool = False  # whether the rows surely lie in the weight's own memory

    def map(self, act: Callable[[Part], Tensor]) -> Tensor:
        """The weight with each part's rows replaced by ``act(part)``."""
        return self.join([act(part) for part in self.parts])


def check_groups(owner: str, groups: Any) -> Spec:
    """The ``groups`` that a user gave, checked as far as possible without a weight.

    Raises:
        ValueError: they are of another kind, or an index that does not hold whole numbers.
    """
    if isinstance(groups, Tensor):
        return Index(owner, groups)
    named = isinstance(groups, str) and groups in get_args(Name)
    if named or (isinstance(groups, int | Heads | Index) and not isinstance(groups, bool)):
        spec: Spec = groups
        return spec
    raise ValueError(
        f"{owner}: groups must be 'output', 'input', 'filter', 'tensor', a dimension, Heads(n) or an index tensor, "
        f"got {groups!r}"
    )


def resolve(spec: Spec, place: ParamInfo, owner: str) -> Spec:
    """The groups of one parameter. Its module says on which dimensions the outputs and inputs are.

    Raises:
        ValueError: the groups do not fit the parameter, or are ``"filter"`` in a module that is no convolution.
    """
    found = _in_module(spec, place, owner)
    split(torch.empty(place.param.shape, device="meta"), found, owner)
    return found


def output_dim(module: nn.Module) -> int:
    """The dimension of the output units in a module's weight: 0, in transposed convolutions and embeddings 1."""
    return int(isinstance(module, nn.modules.conv._ConvTransposeNd | nn.Embedding | nn.EmbeddingBag))


def _in_module(spec: Spec, place: ParamInfo, owner: str) -> Spec:
    module, w = place.module, place.param
    blocks = 1  # of a grouped convolution; its second dimension counts within a block
    if isinstance(module, nn.modules.conv._ConvNd):
        blocks = module.groups
    elif spec == "filter":
        raise ValueError(f"{owner}: groups 'filter' needs a convolution, {place.name} is in {type(module).__name__}")
    if spec == "tensor" or isinstance(spec, int) or (isinstance(spec, Index) and spec.tensor.shape == w.shape):
        return spec
    side = spec.side if isinstance(spec, Heads) else spec
    if w.ndim < 2:
        if side == "input":
            raise ValueError(f"{owner}: groups {spec!r} needs a weight with inputs, {place.name} has none")
        dim, blocks = 0, 1
    else:
        dim = output_dim(module) if side != "input" else 1 - output_dim(module)
        blocks = blocks if dim == 1 else 1
    # The query, key and value projections of a head are one group.
    packed = isinstance(module, nn.MultiheadAttention) and "in_proj" in place.name and side == "output"
    count = w.shape[dim] * blocks if w.ndim else 0
    if isinstance(spec, Heads):
        each = _whole(count // (3 if packed else 1), spec.number, owner, w)
        if not packed and blocks == 1:
            return Heads(spec.number, "input" if dim else "output")
        return Index(owner, _units(w, dim, blocks) // each % spec.number)
    if isinstance(spec, Index):
        if spec.tensor.shape != (count,):
            raise ValueError(
                f"{owner}: groups must be an index of the {count} output units of {place.name} or of its shape "
                f"{tuple(w.shape)}, got one of shape {tuple(spec.tensor.shape)}"
            )
        return Index(owner, spec.tensor[_units(w, dim, blocks)])
    return dim if blocks == 1 else Index(owner, _units(w, dim, blocks))


def _units(w: Tensor, dim: int, blocks: int) -> Tensor:
    """The number of the unit that each element belongs to."""
    unit = torch.arange(w.shape[dim], device="cpu").view(-1, *[1] * (w.ndim - 1 - dim))
    if blocks > 1:
        block = torch.arange(w.shape[0], device="cpu") // (w.shape[0] // blocks)
        unit = unit + block.view(-1, *[1] * (w.ndim - 1)) * w.shape[1]
    return unit.expand(w.shape)


def split(w: Tensor, spec: Spec, owner: str) -> Partition:
    """The weight with one row for each group.

    Raises:
        ValueError: the groups do not fit the weight's shape.
    """
    if isinstance(spec, Index):
        return _by_index(w, spec.over(w, owner))
    if spec == "tensor":
        return Partition(
            [Part(w.reshape(1, -1), max(w.numel(), 1))], lambda rows: rows[0].reshape(w.shape), w.is_contiguous()
        )
    number, side = (spec.number, spec.side) if isinstance(spec, Heads) else (0, spec)
    dim = side if isinstance(side, int) else int(side == "input")
    if not -max(w.ndim, 1) <= dim < max(w.ndim, 1):
        raise ValueError(f"{owner}: {spec!r} must be a dimension of the weight, got one of shape {tuple(w.shape)}")
    moved = w.movedim(dim, 0) if w.ndim else w.view(1)
    if number > 0:
        _whole(moved.shape[0], number, owner, w)
    count = number if number > 0 else moved.shape[0]
    rows = moved.reshape(count, moved.shape[1:].numel() * (moved.shape[0] // number if number > 0 else 1))
    shape = moved.shape
    return Partition(
        [Part(rows, max(rows.shape[1], 1))],
        lambda rows: rows[0].reshape(shape).movedim(0, dim).reshape(w.shape),
        moved.is_contiguous() or rows.shape == shape,
    )


def _by_index(w: Tensor, index: Index) -> Partition:
    tables = index.tables_on(w.device)
    flat = torch.cat([w.flatten(), w.new_zeros(1)])

    def join(rows: Sequence[Tensor]) -> Tensor:
        joined = rows[0].new_zeros(w.numel() + 1)
        for (gather, _), own in zip(tables, rows, strict=True):
            joined = joined.index_put((gather,), own)
        return joined[:-1].view(w.shape)

    return Partition([Part(flat[table.gather], table.sizes) for table in tables], join)


def _whole(length: int, parts: int, owner: str, w: Tensor) -> int:
    if length % parts:
        raise ValueError(f"{owner}: {length} units must divide into {parts} equal heads, got shape {tuple(w.shape)}")
    return length // parts
