"""The command `bench`: runs benches by name, and writes their tables."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..errors import UserError
from ..training.files import write
from . import choosing, dropout, epoch, memory, optimizer, overhead, profile, scale, studies
from .timing import Table

BENCHES: Mapping[str, Callable[[], Iterable[Table]]] = {
    "overhead": overhead.tables,
    "optimizer": optimizer.tables,
    "dropout": dropout.tables,
    "epoch": epoch.tables,
    "studies": studies.tables,
    "stack": choosing.stack,
    "auto-strength": choosing.auto_strength,
    "memory": memory.tables,
    "profile": profile.tables,
    "scale": scale.tables,
}

_READING = (
    "Each round times all contenders of a table, one after another; a ratio is the median over the rounds of a "
    "contender's time to that of the one with ratio 1, with its quartiles."
)


def run(names: Sequence[str], into: Path | None = None) -> None:
    """Prints the tables of the benches named; writes them into the file, if any, and beside it as Markdown.

    What the file holds of other benches stays, if it was measured on such a machine, with such versions, on that day.
    """
    on = machine()
    found = {} if into is None else _found_before(into, on)
    print("\n".join(f"{key}: {value}" for key, value in on.items()), flush=True)
    for name in names:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        tables: list[Table] = []
        try:
            for table in BENCHES[name]():
                if tables and tables[-1].title == table.title:  # with another row
                    tables.pop()
                elif tables:
                    print(f"\n{tables[-1]}", flush=True)
                tables.append(table)
                found[name] = tables
                if into is not None:  # after each row or table, so that nothing is lost
                    _write(into, on, found)
        finally:  # also if it is stopped
            if tables:
                print(f"\n{tables[-1]}", flush=True)


def _write(into: Path, on: Mapping[str, str], found: Mapping[str, Sequence[Table]]) -> None:
    ordered = {known: found[known] for known in BENCHES if known in found}
    figures = {known: [each.as_json() for each in some] for known, some in ordered.items()}
    write(into, json.dumps({"machine": on, "benches": figures}, indent=1) + "\n")
    write(into.with_suffix(".md"), _markdown(on, ordered))


def _found_before(file: Path, on: Mapping[str, str]) -> dict[str, list[Table]]:
    """The file's results of this machine; raises UserError before the first timing if it cannot be written."""
    if not file.parent.is_dir():
        raise UserError(f"bench: --json must name a file in a folder that exists, got {file}")
    if not file.exists():
        return {}
    try:
        held = json.loads(file.read_text())
        tables = {name: [Table.from_json(table) for table in some] for name, some in held["benches"].items()}
        return tables if held["machine"] == on else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"bench: --json must name a new file, or one that bench wrote, got {file}") from None


def _markdown(on: Mapping[str, str], found: Mapping[str, Sequence[Table]]) -> str:
    lines = ["# Benchmarks", "", "Written by `python -m experiments bench --json FILE`.", _READING, ""]
    lines.append(", ".join(f"{key} {value}" for key, value in on.items()) + ".")
    for name, tables in found.items():
        lines += ["", f"## {name}", "", "```text", "\n\n".join(map(str, tables)), "```"]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """The machine and the versions that the figures depend on."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "lightning", "keras", "jax")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
