"""What torchreg costs, and what it saves: benches that anyone can run, side by side, in one process."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from experiments.benches.choosing import auto_strength, stack
from experiments.benches.dropout import dropout
from experiments.benches.epoch import epoch
from experiments.benches.memory import memory
from experiments.benches.optimizer import optimizer
from experiments.benches.overhead import overhead
from experiments.benches.profile import where_time_goes
from experiments.benches.timing import Table
from experiments.record import write

BENCHES: Mapping[str, Callable[[], Iterable[Table]]] = {
    "overhead": overhead,
    "optimizer": optimizer,
    "dropout": dropout,
    "epoch": epoch,
    "stack": stack,
    "auto-strength": auto_strength,
    "memory": memory,
    "profile": where_time_goes,
}


def run(names: Sequence[str], into: Path | None = None) -> None:
    """Prints the tables of the benches named, and writes them as JSON if there is a file for it."""
    found: dict[str, Any] = {"machine": machine(), "benches": {}}
    print("\n".join(f"{key}: {value}" for key, value in found["machine"].items()))
    for name in names:
        tables = found["benches"].setdefault(name, [])
        for table in BENCHES[name]():
            print(f"\n{table}", flush=True)
            tables.append(table.as_json())
            if into is not None:
                write(into, json.dumps(found, indent=1) + "\n")  # after each, so that nothing is lost


def machine() -> dict[str, str]:
    """What the figures depend on."""
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
