"""Engines: where tasks are performed. Each does the same, and so their records are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from ...errors import UserError, did_you_mean
from .cluster import Needs, Ray
from .engine import Engine, Pool, outcomes
from .local import Local
from .processes import Processes

__all__ = ["NAMES", "Engine", "ForRay", "Local", "Needs", "Pool", "Processes", "Ray", "choose", "outcomes"]

NAMES = ("local", "processes", "ray")


class ForRay(NamedTuple):
    """The options of the engine ``ray`` as they are given on the command line."""

    address: str | None = None
    cpus: int | None = None
    gpus: float | None = None
    memory: str | None = None


@contextmanager
def choose(name: str | None, jobs: int | None, device: torch.device, for_ray: ForRay | None = None) -> Iterator[Engine]:
    """The engine of that name, ready; several jobs are several processes where none is named.

    Raises:
        UserError: there is no such engine, it has no such option, or its cluster lacks something.
    """
    for_ray = for_ray or ForRay()
    name = name or ("processes" if jobs and jobs > 1 else "local")
    if name not in NAMES:
        raise UserError(f"--engine: unknown name {name!r}, {did_you_mean(name, NAMES)}")
    if name == "ray":
        with Ray(_needs(for_ray, device), jobs, for_ray.address).connected() as engine:
            yield engine
        return
    if given := [key for key, value in for_ray._asdict().items() if value is not None]:
        raise UserError(f"--{given[0]}: is for --engine ray, not for --engine {name}: leave it out")
    if name == "local":
        if jobs and jobs > 1:
            raise UserError(f"--jobs: must be 1 with --engine local, got {jobs}: --engine processes has several")
        yield Local()
        return
    with Processes(jobs or 2).begun() as engine:
        yield engine


def _needs(given: ForRay, device: torch.device) -> Needs:
    gpus = float(device.type == "cuda") if given.gpus is None else given.gpus
    if gpus < 0 or (gpus > 1 and gpus % 1):
        raise UserError(f"--gpus: must be a whole number, or a part of one GPU such as 0.25, got {gpus:g}")
    try:
        memory = int(TypeAdapter(ByteSize).validate_python(given.memory or 0))
    except ValidationError:
        raise UserError(f"--memory: must be a size such as 2GB, got {given.memory!r}") from None
    return Needs(given.cpus or 1, gpus, memory)
