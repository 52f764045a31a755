"""Two files of benches side by side: two versions, or two machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from . import files
from .timing import Row, Table

_Tables = Mapping[tuple[str, str], Table]  # by bench and title


def compare(given: Sequence[str]) -> str:
    """What two files have in common, row by row, and what only one of them has.

    Raises:
        UserError: there are not two files, or one of them is none of bench's.
    """
    if len(given) != 2:
        raise UserError(f"bench compare: takes two files that bench --json wrote, got {len(given)}")
    (one, ours), (two, theirs) = map(_read, map(Path, given))
    lines = [f"A: {given[0]}", f"B: {given[1]}", *_heads(one, two)]
    for key, table in ours.items():
        if key in theirs:
            lines += ["", *_side_by_side(key[0], table, theirs[key])]
    lines += ["", *_alone("A", ours, theirs), *_alone("B", theirs, ours), "* the quartiles do not overlap"]
    return "\n".join(lines)


def _read(file: Path) -> tuple[dict[str, str], _Tables]:
    if not file.is_file():
        raise UserError(f"bench compare: there is no file {file}")
    try:
        machine, found = files.load(file)
    except ValueError:
        raise UserError(f"bench compare: {file} is no file that bench --json wrote") from None
    return machine, {(name, table.title): table for name, tables in found.items() for table in tables}


def _heads(one: Mapping[str, str], two: Mapping[str, str]) -> Iterator[str]:
    """What differs between the machines, versions and dates."""
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    width = max(map(len, keys), default=0)
    for key in keys:
        yield f"{key:<{width}}  A {one.get(key, '-')}, B {two.get(key, '-')}"


def _side_by_side(bench: str, ours: Table, theirs: Table) -> Iterator[str]:
    others = {row.name: row for row in theirs.rows}
    width = max(len(row.name) for row in (*ours.rows, *theirs.rows))
    yield f"{bench}: {ours.title}"
    yield f"  {'':<{width}}{'A':>8}{'B':>8}{'B / A':>8}"
    for row in ours.rows:
        if row.name in others:
            yield _line(row, others[row.name], width)
    for which, these, those in (("A", ours, theirs), ("B", theirs, ours)):
        known = {row.name for row in those.rows}
        yield from (f"  {row.name:<{width}}  in {which} alone" for row in these.rows if row.name not in known)


def _line(one: Row, two: Row, width: int) -> str:
    times = f"{two.ratio / one.ratio:8.3f}" if one.ratio else f"{'-':>8}"
    apart = one.high < two.low or two.high < one.low
    return f"  {one.name:<{width}}{one.ratio:8.3f}{two.ratio:8.3f}{times}{'  *' if apart else ''}"


def _alone(which: str, these: _Tables, those: _Tables) -> Iterator[str]:
    for bench, title in these:
        if (bench, title) not in those:
            yield f"in {which} alone: {bench}: {title}"
