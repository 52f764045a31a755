"""The command `bench`: runs benches by name, and writes their tables."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..errors import UserError, did_you_mean
from . import (
    choosing,
    compress,
    cuda,
    denormals,
    dropout,
    epoch,
    files,
    memory,
    optimizer,
    overhead,
    profile,
    ridge,
    scale,
    studies,
)
from .timing import Clock, Table

BENCHES: Mapping[str, Callable[[Clock], Iterable[Table]]] = {
    "overhead": overhead.tables,
    "optimizer": optimizer.tables,
    "dropout": dropout.tables,
    "epoch": epoch.tables,
    "studies": studies.tables,
    "stack": choosing.stack,
    "auto-strength": choosing.auto_strength,
    "ridge": ridge.tables,
    "memory": memory.tables,
    "profile": profile.tables,
    "scale": scale.tables,
    "compress": compress.tables,
    "denormals": denormals.tables,
}
ON_CUDA: Mapping[str, Callable[[Clock], Iterable[Table]]] = {
    "overhead": overhead.tables,
    "optimizer": optimizer.tables,
    "dropout": dropout.tables,
    "memory": cuda.memory,
    "networks": cuda.networks,
    "graphs": cuda.graphs,
    "stack": cuda.stack,
    "studies": cuda.study,
}
QUICK = ("overhead", "optimizer", "dropout", "epoch", "memory")


def chosen(names: Sequence[str], clock: Clock) -> dict[str, Callable[[Clock], Iterable[Table]]]:
    """The benches of these names, or without names all that there are for such a clock.

    Raises:
        UserError: there is none of that name.
    """
    known = ON_CUDA if clock.is_cuda else BENCHES
    those = {name: bench for name, bench in known.items() if name in QUICK or not clock.is_quick}
    how = "".join([", --device cuda" * clock.is_cuda, ", --quick" * clock.is_quick])
    for name in names:
        if name in those:
            continue
        if name in {*BENCHES, *ON_CUDA}:
            raise UserError(f"bench{how}: {name} is not among these benches, valid: {', '.join(those)}")
        raise UserError(f"bench{how}: unknown name {name!r}, {did_you_mean(name, those)}")
    return {name: those[name] for name in names or those}


def run(names: Sequence[str], into: Path | None = None, clock: Clock = Clock()) -> None:  # noqa: B008
    """Prints the tables of the benches named, row by row; writes them into the file, if any, and beside it as Markdown.

    What the file holds of other benches stays, if it was measured on such a machine, with such versions, on that day.
    """
    benches, on = chosen(names, clock), machine(clock)
    found = {} if into is None else files.earlier(into, on)
    print("\n".join(f"{key}: {value}" for key, value in on.items()), flush=True)
    for name, bench in benches.items():
        print(f"measuring {name}", file=sys.stderr, flush=True)
        tables: list[Table] = []
        shown = _Shown()
        try:
            for table in bench(clock):
                shown.show(table)
                if not table.rows:
                    continue
                if tables and tables[-1].title == table.title:  # with another row
                    tables.pop()
                tables.append(table)
                found[name] = tables
                if into is not None:  # after each row or table, so that nothing is lost
                    files.save(into, on, {known: found[known] for known in {**BENCHES, **ON_CUDA} if known in found})
        finally:  # also if it is stopped
            shown.end()


class _Shown:
    """Tables in a terminal, each line as soon as it is known, and once."""

    def __init__(self) -> None:
        self.table: Table | None = None

    def show(self, table: Table) -> None:
        """Prints what is new in a table: its head, or further rows."""
        count = 0
        if self.table is not None and self.table.title == table.title:
            count = len(self.table.rows)
        else:
            self.end()
            print("", *table.head, sep="\n", flush=True)
        for line in table.lines[count:]:
            print(line, flush=True)
        self.table = table

    def end(self) -> None:
        """Prints the note of the last table, which may change with each row."""
        for line in self.table.foot if self.table is not None else []:
            print(line, flush=True)
        self.table = None


def machine(clock: Clock) -> dict[str, str]:
    """The machine and the versions that the figures depend on, and what else tells them from others."""
    return {
        **({"quick": "yes"} if clock.is_quick else {}),
        "date": date.today().isoformat(),
        **({"device": torch.cuda.get_device_name()} if clock.is_cuda else {}),
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
