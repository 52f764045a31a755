"""One of two processes, which run all cases: ``torchrun --nproc-per-node 2 -m tests.distributed.worker FILE``.

A case is a line of JSON in the file: its name, and how far two processes are from one, or the error.
"""

import faulthandler
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.table import EQUAL, REFUSED

LIMIT = 240  # seconds until a process ends itself, whoever has forgotten it


def main(path: Path) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    for name, case in {**EQUAL, **{name: case for name, (case, _) in REFUSED.items()}}.items():
        results: list[float | str] = [0.0] * dist.get_world_size()
        dist.all_gather_object(results, outcome(case))
        if dist.get_rank() == 0:
            with path.open("a") as file:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
