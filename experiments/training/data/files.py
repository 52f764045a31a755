"""The user's own files: a CSV table, arrays of NumPy."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import config
from ...errors import UserError, did_you_mean, oneline
from .examples import Source, Target, inputs_of


@dataclass(frozen=True)
class _Table:
    """The cells of a CSV file, and the line at which each row stands."""

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]

    def numbers(self, names: Sequence[str], hint: str) -> Tensor:
        """The columns as numbers; the first cell that is none is named."""
        places = [self.names.index(name) for name in names]
        values = [[_number(row[place]) for place in places] for row in self.rows]
        faults = [(i, j) for i, row in enumerate(values) for j, value in enumerate(row) if value is None]
        if faults:
            i, j = faults[0]
            cell = self.rows[i][places[j]].strip()
            what = f"must be a number, got {cell!r:.60}" if cell else "is missing"
            column = [self.rows[row][places[j]].strip() for row, k in faults if k == j]
            alike = sum(bool(other) == bool(cell) for other in column)
            count = f" ({alike:,} such cells in the column)" if alike > 1 else ""
            raise UserError(f"data.path: {self.place(i)}, column {names[j]!r}: {what}{count}: {hint}")
        return torch.tensor(values, dtype=torch.float64)

    def place(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.path}, line {self.lines[row]}"


def csv_table(settings: config.Data) -> Source:
    """A CSV file with a line of column names. All columns but the target are inputs, unless the study names them."""
    assert settings.path is not None
    assert settings.target is not None
    tables = [_table(Path(path), key) for path, key in paths_of(settings)]
    for table in tables:
        for key, wanted in (("target", (settings.target,)), ("inputs", settings.inputs or ())):
            for name in wanted:
                if name not in table.names:
                    raise UserError(
                        f"data.{key}: {table.path} has no column {name!r}, {did_you_mean(name, table.names)}"
                    )
    inputs = settings.inputs or [name for name in tables[0].names if name != settings.target]
    if not inputs or settings.target in inputs:
        raise UserError(f"data.inputs: must be columns other than the target {settings.target!r}, got {list(inputs)}")
    for table in tables[1:]:
        if missing := [name for name in inputs if name not in table.names]:
            raise UserError(f"data.test_path: {table.path} has no column {missing[0]!r}, which {settings.path} has")
    hint = "correct or remove the line, or choose the columns by data.inputs"
    parts = list(zip((table.numbers(inputs, hint) for table in tables), _labels(tables, settings), strict=True))
    first = tables[0]

    def place(row: int) -> str:
        table, at = (first, row) if row < len(first.rows) else (tables[1], row - len(first.rows))
        return f"{table.place(at)}, column {settings.target!r}"

    return Source(*parts[0], parts[1] if len(parts) > 1 else None, place=place)


def _labels(tables: Sequence[_Table], settings: config.Data) -> list[Target]:
    """The target's column in each table: whole numbers, other numbers, or text."""
    assert settings.target is not None
    columns = [[row[table.names.index(settings.target)].strip() for row in table.rows] for table in tables]
    for table, column in zip(tables, columns, strict=True):
        if "" in column:
            where = f"{table.place(column.index(''))}, column {settings.target!r}"
            raise UserError(f"data.path: {where}: is missing: correct or remove the line")
    cells = [cell for column in columns for cell in column]
    if all(_is_whole(cell) for cell in cells):
        return [torch.tensor([int(cell) for cell in column]) for column in columns]
    is_text = sum(_number(cell) is None for cell in cells)
    if settings.task != "regression" and is_text > 0.5 * len(cells):
        return list(columns)
    hint = "correct or remove the line" + ("" if settings.task else ", or set task = 'classes'")
    if is_text and settings.task == "classes":
        return list(columns)
    return [table.numbers([settings.target], hint).flatten() for table in tables]


def _table(path: Path, key: str) -> _Table:
    try:
        text = _file(path, key).read_text(encoding="utf-8-sig")
        lines = text.splitlines()
        delimiter = max(",;\t", key=lines[0].count) if lines else ","
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        read = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key}: {path} cannot be read as CSV: {oneline(error)}") from None
    if len(read) < 3:
        raise UserError(f"{key}: {path} must hold a line of column names and two rows or more, got {len(read)} lines")
    names = [name.strip() for name in read[0][1]]
    if all(_number(name) is not None for name in names):
        raise UserError(f"{key}: {path} must begin with a line of column names, got {', '.join(names):.60}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{key}: {path} must have a name of its own for each column, got {twice[0]!r} twice")
    for line, row in read[1:]:
        if len(row) != len(names):
            raise UserError(
                f"{key}: {path}, line {line}: must have {len(names)} cells, as the first line, got {len(row)}"
            )
    return _Table(path, names, [row for _, row in read[1:]], [line for line, _ in read[1:]])


def npz(settings: config.Data) -> Source:
    """Arrays of a file that ``numpy.savez`` has written: ``x`` and ``y``, or those that the study names."""
    names = (*(settings.inputs or ("x",)), settings.target or "y")
    if len(names) > 2:
        raise UserError(f"data.inputs: must be one array of an npz file, got {list(names[:-1])}")
    parts = [_arrays(Path(path), key, names, settings) for path, key in paths_of(settings)]
    return Source(*parts[0], parts[1] if len(parts) > 1 else None)


def _arrays(path: Path, key: str, names: Sequence[str], settings: config.Data) -> tuple[Tensor, Target]:
    _file(path, key)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:  # a pickle could run anything
            held = list(getattr(file, "files", []))
            found = [np.asarray(file[name]) if name in held else None for name in names]
    except Exception as error:  # NumPy and zipfile raise what they like on a damaged file
        raise UserError(f"{key}: {path} cannot be read as npz: {oneline(error)}") from None
    for setting, name, array in zip(("inputs", "target"), names, found, strict=True):
        if array is None:
            raise UserError(f"data.{setting}: {path} has no array {name!r}, {did_you_mean(name, held)}")
    return pair(found[0], found[1], str(path), settings)


def pair(x: Any, y: Any, where: str, settings: config.Data) -> tuple[Tensor, Target]:
    """Arrays or tensors of inputs and targets, checked against each other."""
    x, y = (part.detach().cpu() if isinstance(part, Tensor) else np.asarray(part) for part in (x, y))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) < 2:
        raise UserError(
            f"data: {where} must hold a target for each of two inputs or more, got inputs of shape {tuple(x.shape)} "
            f"and targets of shape {tuple(y.shape)}"
        )
    text = _as_text(y)
    target: Target = _finite(_tensor(y, "targets", where), "targets", where) if text is None else text
    inputs = _finite(_tensor(x, "inputs", where), "inputs", where)
    return inputs_of(inputs, keep_whole=not settings.standardize), target


def _as_text(y: Any) -> list[str] | None:
    """The targets as text, if they are."""
    is_text = not isinstance(y, Tensor) and y.ndim == 1 and (y.dtype.kind in "US" or all(isinstance(v, str) for v in y))
    return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in y] if is_text else None


def _tensor(values: Any, what: str, where: str) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_complex():
            raise UserError(f"data: the {what} of {where} must be real numbers, got {values.dtype}")
        return values
    if values.dtype.kind not in "biuf":
        raise UserError(f"data: the {what} of {where} must be numbers, got an array of {values.dtype}")
    small = values.astype(np.int64) if values.dtype.kind in "iu" and values.dtype != np.uint8 else values
    return torch.from_numpy(np.ascontiguousarray(small))


def _finite(values: Tensor, what: str, where: str) -> Tensor:
    if values.is_floating_point() and not (is_finite := values.isfinite()).all():
        place = tuple((~is_finite).nonzero()[0].tolist())
        raise UserError(
            f"data: the {what} of {where} must be finite numbers, got {values[place].item()} at {list(place)}"
        )
    return values


def paths_of(settings: config.Data) -> list[tuple[str, str]]:
    """The path of the examples, that of the test if there is one, and the keys of both."""
    both = ((settings.path, "data.path"), (settings.test_path, "data.test_path"))
    return [(path, key) for path, key in both if path is not None]


def _file(path: Path, key: str) -> Path:
    if not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{key}: {path} {'is not a file' if path.exists() else 'does not exist'}: name a file")
    return path


def _number(cell: str) -> float | None:
    """The cell as a finite number, if it is one."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None  # Python takes 1_000 for a number


def _is_whole(cell: str) -> bool:
    return cell.lstrip("+-").isdecimal() and len(cell) < 18
