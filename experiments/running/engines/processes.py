"""The engine of several processes on this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import active_children, forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError, oneline
from ...training import bars, loggers
from .. import orphans, tasks
from ..tasks import Outcome, Task

# On Linux a process is a fork of one that has imported these modules and done nothing else. So it starts at once, and
# shares the memory of what is imported. A fork of this process would share its threads and its GPU; elsewhere forks are
# not safe.
_IS_FORKED = sys.platform == "linux"
_IMPORTED = "__main__", tasks.__name__, "torch._dynamo", "sklearn.datasets"  # torch's optimizers import the third
_CONTEXT = get_context("forkserver" if _IS_FORKED else "spawn")
TRIES = 3  # of a task whose process dies: killed by the system where memory is short, or by the task itself


class Processes:
    """So many processes, each with its share of the threads, and of the GPUs if there are several."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers = [_Worker(number) for number in range(jobs)]

    @contextmanager
    def begun(self) -> Iterator[Processes]:
        """The engine while its processes run; torch is imported there while this one does something else."""
        threads = max(1, torch.get_num_threads() // self.jobs)
        if _IS_FORKED:
            _CONTEXT.set_forkserver_preload(list(_IMPORTED))
            forkserver.ensure_running()
        try:
            for worker in self._workers:
                worker.begin(threads)
            yield self
        finally:
            with ExitStack() as stack:
                for worker in self._workers:
                    stack.callback(worker.end)

    @contextmanager
    def open(self, folder: Path, device: torch.device) -> Iterator[_Pool]:
        """Begins the processes, if they have not begun."""
        with nullcontext() if self._workers[0].is_begun else self.begun():
            yield _Pool(folder, device, self._workers)


class _Pool:
    def __init__(self, folder: Path, device: torch.device, workers: list[_Worker]) -> None:
        self._folder, self._device, self._free = folder, device, workers[::-1]
        self._busy: dict[Future[Any], _Attempt] = {}

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    @property
    def is_idle(self) -> bool:
        return not self._busy

    def submit(self, task: Task, worker: _Worker | None = None, number: int = 1) -> None:
        worker = worker or self._free.pop()
        future = worker.submit(_perform, task, self._folder, _of(self._device, worker.number))
        self._busy[future] = _Attempt(task, worker, number)

    def ended(self) -> list[Outcome]:
        found: list[Outcome] = []
        while not found:
            for future in wait(self._busy, return_when=FIRST_COMPLETED).done:
                attempt = self._busy.pop(future)
                try:
                    found.append(Outcome(attempt.task, future.result()))
                except UserError:
                    raise
                except BrokenProcessPool:
                    code = attempt.worker.end()
                    if attempt.number < TRIES:  # it goes on from its last checkpoint
                        self.submit(attempt.task, attempt.worker, attempt.number + 1)
                        continue
                    found.append(Outcome(attempt.task, None, f"its process died with exit code {code}"))
                except Exception as error:
                    found.append(Outcome(attempt.task, None, oneline(error)))
                self._free.append(attempt.worker)
        return found


@dataclass
class _Worker:
    """A process that performs one task at a time, and is replaced when it dies.

    Each is a pool of its own: a pool of several ends them all when one dies, and cannot tell whose task it was.
    """

    number: int
    _threads: int = 1
    _pool: ProcessPoolExecutor | None = None
    _process: BaseProcess | None = None

    @property
    def is_begun(self) -> bool:
        return self._pool is not None

    def begin(self, threads: int) -> None:
        """Starts the process, or lets its first task start it where that takes no time."""
        self._threads = threads
        started = __name__, _start.__name__, dict(os.environ), threads, *loggers.chosen()
        self._pool = ProcessPoolExecutor(1, _CONTEXT, orphans.call, started)
        if not _IS_FORKED:
            self.submit(_nothing)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        if self._pool is None:
            self.begin(self._threads)
        assert self._pool is not None
        before = active_children()
        try:
            future = self._pool.submit(function, *args)
        except BrokenProcessPool:  # it was killed when it had nothing to do
            self.end()
            return self.submit(function, *args)
        self._process = next((process for process in active_children() if process not in before), self._process)
        return future

    def end(self) -> int | None:
        """Ends the process at once, and returns its exit code; all files that it has written are complete."""
        pool, process, self._pool, self._process = self._pool, self._process, None, None
        if process is not None:
            process.terminate()
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        return None if process is None else process.exitcode


@dataclass(frozen=True)
class _Attempt:
    task: Task
    worker: _Worker
    number: int


def _of(device: torch.device, number: int) -> torch.device:
    """The device of the worker of that number."""
    return torch.device("cuda", number % torch.cuda.device_count()) if device.type == "cuda" else device


def _start(environment: dict[str, str], threads: int, log: str | None, project: str) -> None:
    os.environ.update(environment)  # may have changed since the process was started of which this one is a fork
    np.random.seed()  # else the same in each fork, for whatever the class of a user draws from it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one ends us
    torch.set_num_threads(threads)
    bars.silence()
    loggers.choose(log, project)


def _nothing() -> None:
    """What a process is given first, for which it imports all that tasks need."""


def _perform(task: Task, folder: Path, device: torch.device) -> Any:
    return task.perform(folder, device)
