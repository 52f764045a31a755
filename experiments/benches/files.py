"""The files of benches: their figures as JSON, and the same as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..training.files import write
from .timing import Table

Found = dict[str, list[Table]]  # by bench

_READING = (
    "Each round times all contenders of a table, one after another; a ratio is the median over the rounds of a "
    "contender's time to that of the one with ratio 1, with its quartiles."
)


def save(file: Path, machine: Mapping[str, str], found: Mapping[str, Sequence[Table]]) -> None:
    """Writes the figures, and beside them the Markdown."""
    figures = {name: [each.as_json() for each in some] for name, some in found.items()}
    write(file, json.dumps({"machine": machine, "benches": figures}, indent=1) + "\n")
    write(file.with_suffix(".md"), markdown(machine, found))


def load(file: Path) -> tuple[dict[str, str], Found]:
    """The machine and the tables in a file.

    Raises:
        ValueError: it is another kind of file.
    """
    try:
        held = json.loads(file.read_text())
        tables = {name: [Table.from_json(table) for table in some] for name, some in held["benches"].items()}
        return dict(held["machine"]), tables
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no file of bench's") from error


def earlier(file: Path, machine: Mapping[str, str]) -> Found:
    """The file's results of this machine; raises UserError before the first timing if it cannot be written."""
    if not file.parent.is_dir():
        raise UserError(f"bench: --json must name a file in a folder that exists, got {file}")
    if not file.exists():
        return {}
    try:
        held, found = load(file)
    except ValueError:
        raise UserError(f"bench: --json must name a new file, or one that bench wrote, got {file}") from None
    for kind, usual in (("quick", "no"), ("device", "cpu")):
        had, has = held.get(kind, usual), machine.get(kind, usual)
        if had != has:
            raise UserError(
                f"bench: {file} holds figures with {kind} {had}, these have {kind} {has}: name another file"
            )
    return found if held == machine else {}


def markdown(machine: Mapping[str, str], found: Mapping[str, Sequence[Table]]) -> str:
    lines = ["# Benchmarks", "", "Written by `python -m experiments bench --json FILE`.", _READING, ""]
    lines.append(", ".join(f"{key} {value}" for key, value in machine.items()) + ".")
    for name, tables in found.items():
        lines += ["", f"## {name}", "", "```text", "\n\n".join(map(str, tables)), "```"]
    return "\n".join(lines) + "\n"
