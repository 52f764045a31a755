"""One of two processes, which run the same cases.

A case that was run is a line of JSON in ``results.jsonl``: its name, and how far two processes are from one, or the
error.
"""

import faulthandler
import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.table import CASES
from tests.distributed.training import PROCESSES
from tests.integration.studies import speak_into

LIMIT = 240  # seconds until a process ends itself, whoever has forgotten it


def main(folder: Path, rank: int, names: list[str]) -> None:
    """Runs the cases; whatever the process says goes into its log."""
    speak_into(folder / f"{rank}.log")
    warnings.simplefilter("error")
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{(folder / 'store').resolve()}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=30),
    )
    for name in names:
        results: list[float | str] = [0.0] * PROCESSES
        dist.all_gather_object(results, outcome(CASES[name]))
        if rank == 0:
            with (folder / "results.jsonl").open("a") as file:
                file.write(json.dumps({"case": name, "result": worst(results)}) + "\n")
    dist.destroy_process_group()


def outcome(case: Callable[[], float | None]) -> float | str:
    """What the case returns, or its error."""
    try:
        return case() or 0.0
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def worst(results: list[float | str]) -> float | str:
    """The first error, or the largest difference; NaN if there is one."""
    errors = [result for result in results if isinstance(result, str)]
    return errors[0] if errors else max(results, key=lambda result: (result != result, result))
