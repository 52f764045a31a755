"""Which units of a model can go, and which can only go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchreg.diagnostics.examples import as_arguments
from torchreg.diagnostics.seen import Reader
from torchreg.diagnostics.tracing import Trace
from torchreg.selection.parameters import copied


@dataclass(frozen=True)
class CoupledUnits:
    """Units that are numbered alike in several layers, since their outputs meet: the channels of a residual stream.

    Unit ``k`` is everything in the model with the number ``k``. It can be removed only as a whole.

    Attributes:
        layers: the names of the weights that write the units.
        size: the number of units.
        written: what makes the units: by the name of a parameter or buffer and its dimension, the unit of each index
            there; -1 for another stream's.
        read: the same for the weights that read them.
        dead: the units that :func:`~torchreg.compress` removes now.
        reasons: by unit, why it must stay, for whatever weights.
    """

    layers: tuple[str, ...]
    size: int
    written: Mapping[tuple[str, int], Tensor] = field(repr=False)
    read: Mapping[tuple[str, int], Tensor] = field(repr=False)
    dead: Sequence[int]
    reasons: Mapping[int, str] = field(repr=False)

    def __str__(self) -> str:
        text = f"{', '.join(self.layers)}: {self.size} units, {len(self.dead)} dead"
        if self.reasons:
            text += f", {len(self.reasons)} must stay ({next(iter(self.reasons.values()))})"
        return text


def coupled_units(model: nn.Module, example: Any = None) -> list[CoupledUnits]:
    """The units of a model in streams, each with its members: what :func:`~torchreg.compress` removes together, and why
    it must keep the rest.

    Args:
        model: as for :func:`~torchreg.compress`.
        example: as for :func:`~torchreg.compress`.

    Returns:
        The streams in the order of their first layers; one stream for layers whose units are joined.

    Raises:
        TypeError: as for :func:`~torchreg.compress`.
        ValueError: as for :func:`~torchreg.compress`.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.one, self.two, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        ...
        ...     def forward(self, x):
        ...         x = self.one(x)
        ...         return self.out(x + self.two(x).relu())
        >>> for stream in coupled_units(Block(), torch.zeros(2, 4)):
        ...     print(stream)
        one.weight, two.weight: 8 units, 0 dead
        out.weight: 3 units, 0 dead, 3 must stay (it is an output of the model)
    """
    args = as_arguments("coupled_units", model, example)
    found = Analysis("coupled_units", copied(model), args)
    return list(found.streams())


class Analysis:
    """The units of a model after one run of it, and which of them are dead.

    Raises:
        ValueError: the run failed, or what the model computes depends on the values of its tensors.
    """

    def __init__(self, owner: str, model: nn.Module, args: tuple[Any, ...]) -> None:
        self.trace = Trace(model)
        training = [(module, module.training) for module in model.modules()]
        for module, _ in training:
            if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
                raise ValueError(
                    f"{owner}: the calls of a {type(module).__name__} cannot be followed: "
                    "give the model that it was compiled from"
                )
        model.eval()
        try:
            self.trace.follow(_zeros(args))
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{owner}: {type(model).__name__} could not be followed with this example: {first}: "
                "give a suitable example, or the part of the model that has no such step"
            ) from error
        finally:
            for module, mode in training:
                module.training = mode
        device = next(iter(self.trace.written)).device if self.trace.written else None
        self.roots = self.trace.roots(torch.arange(len(self.trace._parents), device=device))
        self.pinned: dict[int, str] = {}
        for unit, reason in self.trace.pinned.items():
            self.pinned.setdefault(int(self.roots[unit]), reason)
        self.axes = {key: self.roots[units] for key, units in self.trace.axes.items()}
        self.written = [self.roots[units] for units in self.trace.written.values()]
        self.dead = self._dead()

    def can_fold(self, reader: Reader) -> bool:
        """Whether a constant that the layer reads can be moved to its bias."""
        uses = self.trace.uses
        if uses[reader.weight] > 1:
            return False
        if reader.bias is None:
            kinds = nn.Linear | nn.modules.conv._ConvNd
            return isinstance(reader.layer, kinds) and reader.layer.bias is None
        return uses[reader.bias] == 1 and len(self.trace.places[reader.bias]) == 1

    def moved(self, reader: Reader) -> Tensor:
        """The amount that the dead units add to each row of the layer."""
        gone = self.dead[self.roots[reader.columns]] & reader.is_constant & (reader.values != 0)
        if not bool(gone.any()):
            return reader.values.new_zeros(reader.rows.numel())
        return (reader.matrix.sum(3) * reader.values[:, None]).where(gone[:, None], 0).sum(2).flatten()

    def _dead(self) -> Tensor:
        """By root, whether no live unit reads it, or each one that does reads a constant that its bias can hold.

        A layer whose units are all dead keeps the first one.
        """
        free = self.roots == torch.arange(len(self.roots), device=self.roots.device)
        free[0] = False
        free[list(self.pinned)] = False
        while True:
            dead = self._fixed_point(free.clone())
            whole = [rows for rows in self.written if len(rows) and bool(dead[rows].all())]
            if not whole:
                return dead
            free[whole[0].min()] = False

    def _fixed_point(self, dead: Tensor) -> Tensor:
        known = []
        for reader in self.trace.readers:
            steady = reader.is_constant & (reader.values == 0 if not self.can_fold(reader) else reader.is_constant)
            known.append((self.roots[reader.rows], self.roots[reader.columns], reader.matrix.any(3) & ~steady[:, None]))
        while True:
            before = dead.clone()
            for rows, columns, reads in known:
                dead[columns[(reads & ~dead[rows][..., None]).any(1)]] = False
            if torch.equal(before, dead):
                return dead

    def streams(self) -> Iterator[CoupledUnits]:
        """The units in streams."""
        names = self.trace.names
        groups: list[tuple[list[str], set[int]]] = []  # in the order of their first layers
        for weight, rows in zip(self.trace.written, self.written, strict=True):
            mine, layers = set(rows.tolist()), [names[weight]]
            joined = [group for group in groups if group[1] & mine]
            where = groups.index(joined[0]) if joined else len(groups)
            for group in reversed(joined):
                layers, mine = group[0] + layers, group[1] | mine
                groups.remove(group)
            groups.insert(where, (layers, mine))
        for layers, roots in groups:
            order = sorted(roots)
            number = torch.full_like(self.roots, -1)
            number[order] = torch.arange(len(order), device=number.device)
            held = {key: number[units] for key, units in self.axes.items()}
            held = {key: index for key, index in held.items() if bool((index >= 0).any())}
            yield CoupledUnits(
                tuple(layers),
                len(order),
                {(names[t], dim): index for (t, dim), index in held.items() if (t, dim) not in self.trace.read},
                {(names[t], dim): index for (t, dim), index in held.items() if (t, dim) in self.trace.read},
                [k for k, root in enumerate(order) if self.dead[root]],
                {k: self.pinned[root] for k, root in enumerate(order) if root in self.pinned},
            )


def _zeros(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of the same shapes; what is constant does not depend on their values."""
    return tuple(torch.zeros_like(a) if isinstance(a, Tensor) else a for a in args)
