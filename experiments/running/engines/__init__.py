"""Engines: where tasks are performed. Each does the same, and so their records are the same."""

from __future__ import annotations

from ...errors import UserError, did_you_mean
from .engine import Engine, Pool, outcomes
from .local import Local
from .processes import Processes

__all__ = ["NAMES", "Engine", "Local", "Pool", "Processes", "choose", "outcomes"]

NAMES = ("local", "processes")


def choose(name: str | None, jobs: int | None) -> Engine:
    """The engine of that name; several jobs are several processes where none is named."""
    name = name or ("processes" if jobs and jobs > 1 else "local")
    if name not in NAMES:
        raise UserError(f"--engine: unknown name {name!r}, {did_you_mean(name, NAMES)}")
    if name == "local":
        if jobs and jobs > 1:
            raise UserError(f"--jobs: must be 1 with --engine local, got {jobs}: --engine processes has several")
        return Local()
    return Processes(jobs or 2)
