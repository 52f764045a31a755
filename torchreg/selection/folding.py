"""Tables of parameters, in which rows that differ in one part of the name become one row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

_SHORT = 16  # tables of up to so many rows are not folded


def printed(lines: list[Line], status: str) -> list[str]:
    """A line of text for each line, folded: name, shape, number of values and status, which is the last heading."""
    cells = [("parameter", "shape", "values", status)]
    cells += [(line.name, line.shape, f"{line.values:,}", line.status) for line in folded(lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {values:>{widths[2]}}  {status}"
        for name, shape, values, status in cells
    ]


@dataclass(frozen=True)
class Line:
    """Parameters with the same shape and status. Each part of their names has one or more variants."""

    parts: tuple[tuple[str, ...], ...]
    seams: tuple[str, ...]  # between the parts: dots, and underscores before a number, as in encoder_layer_0
    shape: str
    values: int  # of all of them
    status: str

    @classmethod
    def of(cls, name: str, param: Tensor, status: str) -> Line:
        return cls.named(name, " x ".join(map(str, param.shape)), param.numel(), status)

    @classmethod
    def named(cls, name: str, shape: str, values: int, status: str) -> Line:
        first, *others = re.split(r"(\.|_(?=\d+(?:\.|$)))", name)
        return cls(tuple((part,) for part in (first, *others[1::2])), tuple(others[::2]), shape, values, status)

    @property
    def name(self) -> str:
        shown = [part[0] if len(part) == 1 else f"{{{_listed(part)}}}" for part in self.parts]
        return shown[0] + "".join(seam + part for seam, part in zip(self.seams, shown[1:], strict=True))


def folded(lines: list[Line]) -> list[Line]:
    """The lines, merged where they differ in one part of the name; numbers first, as layers repeat by number."""
    if len(lines) <= _SHORT:
        return lines
    for numbers in (True, False):
        for position in range(max(len(line.parts) for line in lines)):
            lines = _fold(lines, position, numbers)
    return lines


def _fold(lines: list[Line], position: int, numbers: bool) -> list[Line]:
    merged: dict[object, Line] = {}
    for index, line in enumerate(lines):
        foldable = position < len(line.parts) and all(part.isdecimal() == numbers for part in line.parts[position])
        before, after = line.parts[:position], line.parts[position + 1 :]
        key = (before, after, line.seams, line.shape, line.status) if foldable else index
        if (first := merged.get(key)) is not None:
            parts = (*before, first.parts[position] + line.parts[position], *after)
            line = replace(line, parts=parts, values=first.values + line.values)
        merged[key] = line
    return list(merged.values())


def _listed(parts: Sequence[str]) -> str:
    """``0-11`` for consecutive numbers, else the parts with commas."""
    if len(parts) > 2 and all(part.isdecimal() for part in parts):
        numbers = [int(part) for part in parts]
        if list(parts) == [str(number) for number in range(numbers[0], numbers[-1] + 1)]:
            return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(parts)
