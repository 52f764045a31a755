"""Tasks: what an engine performs, in this process or in another one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ..config import Run
from ..errors import RecordError, oneline
from ..training import ranks
from ..training.locks import lock
from ..training.loop import train
from ..training.record import Record, Row
from ..training.storage import make_folder
from .stacks import make_together


class Task(Protocol):
    """Runs that are made together or one after another. What it holds can be sent to another process."""

    @property
    def runs(self) -> Sequence[Run]: ...

    def perform(self, folder: Path, device: torch.device) -> Any:
        """Makes the runs that are not finished; a task that was stopped at any moment goes on from its checkpoint."""


class Outcome(NamedTuple):
    """The result of a task, or the reason why there is none."""

    task: Any
    result: Any
    failure: str | None = None


class Made(NamedTuple):
    """The result of a run, and whether it had to be made."""

    result: Row
    is_new: bool


@dataclass(frozen=True)
class Together:
    """Runs that could be a stack; the result has those that were, by their folders."""

    runs: Sequence[Run]

    def perform(self, folder: Path, device: torch.device) -> dict[str, Row]:
        """Makes them as a stack if that is faster."""
        return make_together(self.runs, folder, device)


@dataclass(frozen=True)
class Alone:
    """One run."""

    run: Run

    @property
    def runs(self) -> Sequence[Run]:
        """The run."""
        return [self.run]

    def perform(self, folder: Path, device: torch.device) -> Made:
        """Makes it."""
        return make_once(self.run, folder, device)


class Judge(Protocol):
    """Decides in the process of a run whether to prune it; what it holds can be sent there."""

    def __call__(self, step: int, row: Row) -> bool: ...


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, seed after seed, until one diverges, fails or is pruned by the judge.

    The judge gets the figures at each step: an epoch, counted over all seeds.
    """

    runs: Sequence[Run]
    judge: Judge | None = None
    number: int | None = None  # of the trial

    def perform(self, folder: Path, device: torch.device) -> list[Row]:
        """Makes them."""
        place = folder / "runs" / self.runs[0].place
        make_folder(place)
        with lock(place):  # a sampler may try a point twice at a time
            return self._results(folder, device)

    def _results(self, folder: Path, device: torch.device) -> list[Row]:
        results: list[Row] = []
        for i, run in enumerate(self.runs):

            def watch(row: Row, before: int = i * run.train.epochs) -> bool:
                return self.judge is not None and self.judge(before + row["epoch"], row)

            results.append(make_once(run, folder, device, watch).result)
            if results[-1]["status"] != "done":
                break
        return results


def make_once(run: Run, folder: Path, device: torch.device, watch: Callable[[Row], bool] | None = None) -> Made:
    """The result of a run, which is made if it is not finished; one that failed before is made again."""
    record = Record(folder / "runs" / run.folder, run)
    before = record.result
    if before is not None and before["status"] != "failed":
        return Made(before, is_new=False)
    started = time.monotonic()
    try:
        return Made(train(run, device, record, watch), is_new=True)
    except (RecordError, ranks.LostError):
        raise
    except (Exception, SystemExit) as error:  # whatever a run raises is its own fault, and not that of the others
        ranks.check_all_failed(error)
        for own, other in ((run.average, record.of_average(run)), (run, record)):
            if own is not None and other is not None:
                result = other.fail(own, device, oneline(error), time.monotonic() - started)
        return Made(result, is_new=True)
