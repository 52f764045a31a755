"""A study small enough to run in a second, as its TOML tree; and a process that runs one and is killed."""

import multiprocessing
import os
import signal
import sys
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
from experiments.training.record import Log, Record, Row

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


QUICK = {"epochs": 1, "batch_size": 50}
L1 = {"name": "L1", "regularizers": [{"penalty": "L1", "mode": "prox"}]}
STRENGTH = "regularizers.0.strength"


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


def swept(
    space: dict[str, Any],
    arms: Any = None,
    seeds: Any = (0,),
    train: Any = None,
    arms_searched: Any = None,
    **table: Any,
) -> Study:
    """The small study with a search over ``space``."""
    sweep = {"space": space, "arms": arms_searched, **table}
    return small(arms=arms or [{"name": "arm"}], seeds=list(seeds), train=train or QUICK, sweep=sweep)


def asked(folder: Path) -> list[dict[str, Any]]:
    """The points that were tried, in their order."""
    return [event["values"] for event in Log(folder / "trials.jsonl").events if event["event"] == "ask"]


def results(folder: Path) -> dict[str, Row]:
    """Every result below a folder, by the folders of the runs, without how long it took."""
    paths = sorted(folder.glob("runs/**/result.json"))
    found = {str(path.parent.relative_to(folder)): Record(path.parent).result for path in paths}
    return {path: {**result, "seconds": 0} for path, result in found.items()}


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
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "torch._dynamo", "sklearn.datasets"])


def kill(run: Callable[..., object], study: Study, folder: Path, moment: Callable[[], bool], **options: Any) -> None:
    """Runs the study in another process, which is killed at a moment before its end."""
    process = FORKS.Process(target=_alone, args=(partial(run, study, folder, CPU, resume=True, **options),))
    process.start()
    while process.is_alive() and not moment():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def speak_into(file: Path) -> None:
    """Sends all that this process says into a file."""
    with file.open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())


def workers_of(pid: int) -> list[int]:
    """The processes of an engine that a process runs."""
    return [number for server in servers_of(pid) for number in children_of(server)]


def servers_of(pid: int) -> list[int]:
    """The processes of which a process has forks made."""
    return [number for number in children_of(pid) if "forkserver" in Path(f"/proc/{number}/cmdline").read_text()]


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


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
