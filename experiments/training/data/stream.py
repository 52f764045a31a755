"""Inputs that do not fit in memory: they are read where they lie, batch by batch, by a ``DataLoader``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import UserError

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_WORKERS = min(8, _CORES)  # processes that read ahead
_CPU = torch.device("cpu")
_READ_AT_ONCE = 256  # examples, where nothing else says how many


class Items(Protocol):
    """Inputs that are read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Tensor:
        """An input as floats; all have one shape."""
        ...

    @property
    def identity(self) -> str:
        """What tells these inputs from others without reading them."""
        ...


@dataclass(frozen=True, eq=False)
class Stream:
    """Inputs (n, ...), as a tensor has them, but read each time. A part of it is a stream; ``clone`` reads it.

    Args:
        items: the inputs.
        positions: which of them.
        inner: the shape of one input.
        moments: what is subtracted from what is read, and what divides the rest.
        device: where the inputs go.
        dtype: what floats become there.
    """

    items: Items
    positions: Tensor
    inner: tuple[int, ...]
    moments: tuple[Tensor, Tensor] | None = None
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, items: Items) -> Stream:
        """All of the items."""
        return cls(items, torch.arange(len(items)), tuple(items[0].shape))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.inner)

    def dim(self) -> int:
        return 1 + len(self.inner)

    def __getitem__(self, where: Tensor | slice) -> Stream:
        return replace(self, positions=self.positions[where])

    def split(self, size: int) -> list[Stream]:
        return [self[start : start + size] for start in range(0, len(self), size)]

    def clone(self) -> Tensor:
        """What is read, as a tensor."""
        read = _Read(self.items)
        return self._prepared(_raised(_together([read[position] for position in self.positions.tolist()])))

    def in_order(self, size: int) -> Iterator[Tensor]:
        """All inputs, so many at once; nothing that draws at random is told of it."""
        return self.read(torch.arange(len(self)).split(size), torch.Generator())

    def read(self, batches: Iterable[Tensor], draw: torch.Generator | None = None) -> Iterator[Tensor]:
        """The inputs at those positions, batch after batch; while one is used, the workers read the next."""
        order = [self.positions[batch.cpu()].tolist() for batch in batches]
        loader = DataLoader(
            _Read(self.items),
            batch_sampler=order,
            num_workers=min(_WORKERS, len(order) - 1),  # one batch is as soon read here
            collate_fn=_together,
            pin_memory=self.device.type == "cuda",
            generator=draw,
        )
        for values in loader:
            yield self._prepared(_raised(values))

    def measured(self) -> tuple[Tensor, Tensor]:
        """The means and standard deviations of all inputs: of each column of vectors, of all pixels of images.

        Batch by batch, as in Tony F. Chan, Gene H. Golub, Randall J. LeVeque, "Updating Formulae and a Pairwise
        Algorithm for Computing Sample Variances", 1979.
        """
        count, means, squares = 0, torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double)
        for values in self.in_order(_READ_AT_ONCE):
            rows = values.cpu().double() if values.dim() == 2 else values.cpu().double().reshape(-1, 1)
            own, new = rows.mean(0), len(rows)
            away = own - means
            squares = squares + (rows - own).square().sum(0) + away.square() * (count * new / (count + new))
            count += new
            means = means + away * (new / count)
        return means, (squares / (count - 1)).sqrt()

    def _prepared(self, values: Tensor) -> Tensor:
        values = values.to(self.device, non_blocking=True)
        if self.moments is not None:
            mean, std = (moment.to(self.device) for moment in self.moments)
            values = (values - mean) / std
        return values.to(self.dtype) if values.is_floating_point() else values


class _Read(Dataset[Tensor | UserError]):
    """The items; one that cannot be read is given as the error, which a process would change to a traceback."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def __getitem__(self, position: int) -> Tensor | UserError:
        try:
            return self._items[position]
        except UserError as error:
            return error


def _together(items: Sequence[Tensor | UserError]) -> Tensor | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    tensors = [item for item in items if isinstance(item, Tensor)]
    shapes = {tuple(item.shape): None for item in tensors}
    if len(shapes) > 1:
        one, other, *_ = shapes
        return UserError(
            f"data: all inputs must have one shape, got {one} and {other}: of images set data.size, as in [28, 28]"
        )
    return torch.stack(tensors)


def _raised(values: Tensor | UserError) -> Tensor:
    if isinstance(values, UserError):
        raise values
    return values


def is_streamed(items: Items, wanted: bool | Literal["auto"]) -> bool:
    """Whether to stream the inputs: as it is wanted, else where they take more than half of the memory that is free."""
    if wanted != "auto" or not len(items):
        return wanted is True
    return 2 * 4 * len(items) * items[0].numel() > _free_memory()


def _free_memory() -> float:
    """The bytes that a process can have without others being swapped out; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    except (OSError, ValueError, StopIteration):
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
            return float("inf")
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
