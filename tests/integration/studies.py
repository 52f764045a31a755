"""A study small enough to run in a second, as its TOML tree; and a process that runs one and is killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.config import Study, resolve
from experiments.running.study import run_study
from experiments.training.progress import Progress
from experiments.training.record import Record, Row

CPU = torch.device("cpu")

TREE: dict[str, Any] = {
    "name": "small",
    "seeds": [0],
    "data": {"name": "digits", "train_size": 100, "valid_size": 100, "label_noise": 0.2},
    "model": {"name": "mlp", "hidden": [16]},
    "optimizer": {"name": "AdamW", "lr": 1e-2},
    "train": {"epochs": 4, "batch_size": 30, "stack": False},  # so that no time decides over the last bits
    "arms": [{"name": "none"}],
}


def small(**changes: Any) -> Study:
    """The small study with some of its tables replaced; each run alone."""
    train = {"stack": False, **changes.pop("train", TREE["train"])}
    return resolve({**TREE, "train": train, **changes})


def arm(name: str = "arm", **changes: Any) -> Study:
    """The small study with one arm that differs in ``changes``."""
    return small(arms=[{"name": name, **changes}])


def outcome(study: Study, folder: Path, **options: Any) -> Row:
    """The result of a study's only run, without how long it took."""
    run_study(study, folder, CPU, **options)
    result = Record(folder / "runs" / study.runs[0].folder).result
    return {key: value for key, value in result.items() if key != "seconds"}


def history(study: Study, folder: Path) -> list[Row]:
    """The history of a study's only run."""
    run_study(study, folder, CPU)
    return Record(folder / "runs" / study.runs[0].folder).history


class Fragile(nn.Sequential):
    """Dies, or raises, as soon as it is trained in earnest."""

    def __init__(self, fate: str) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.fate, self.calls = fate, 0

    def forward(self, x):
        self.calls += 1
        if self.fate.startswith("dies") and parent_process() is not None:
            os._exit(3)
        if self.fate == "raises" and self.calls > 2:
            raise ValueError("no more")
        return super().forward(x)


# Processes start as forks of one that has imported everything already.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def kill(run: Callable[..., object], study: Study, folder: Path, moment: Callable[[], bool], **options: Any) -> None:
    """Runs the study in another process, which is killed at a moment before its end."""
    process = _FORKS.Process(target=_alone, args=(partial(run, study, folder, CPU, resume=True, **options),))
    process.start()
    while process.is_alive() and not moment():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def children_of(pid: int) -> list[int]:
    """The worker processes of a process."""
    numbers = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [number for number in numbers if "spawn_main" in Path(f"/proc/{number}/cmdline").read_text()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def stopped_after(epoch: int) -> Iterator[None]:
    """The study that runs within is stopped after that epoch, as by Ctrl-C, and its checkpoint stays."""
    advance = Progress.advance

    def stopped(self: Progress, *args: Any) -> None:
        advance(self, *args)
        if self.epoch == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Progress, "advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            yield


def _alone(run: Callable[[], object]) -> None:
    torch.set_num_threads(1)  # as in the tests, or it would be another environment
    run()
