"""The engine of several processes on this machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, oneline
from ...training import bars, loggers
from .. import orphans
from ..tasks import Outcome, Task

TRIES = 3  # of a task whose process dies: killed by the system where memory is short, or by the task itself


@dataclass(frozen=True)
class Processes:
    """So many processes, each with its share of the threads, and of the GPUs if there are several."""

    jobs: int

    @contextmanager
    def open(self, folder: Path, device: torch.device) -> Iterator[_Pool]:
        """Starts a process with the first task that it gets."""
        pool = _Pool(folder, device, self.jobs)
        try:
            yield pool
        finally:
            pool.end()


class _Pool:
    def __init__(self, folder: Path, device: torch.device, jobs: int) -> None:
        threads = max(1, torch.get_num_threads() // jobs)
        self._free = [_Worker(folder, _of(device, number), threads) for number in range(jobs)][::-1]
        self._busy: dict[Future[Any], _Attempt] = {}

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    @property
    def is_idle(self) -> bool:
        return not self._busy

    def submit(self, task: Task, worker: _Worker | None = None, number: int = 1) -> None:
        worker = worker or self._free.pop()
        self._busy[worker.begin(task)] = _Attempt(task, worker, number)

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

    def end(self) -> None:
        with ExitStack() as stack:
            for worker in [*self._free, *(attempt.worker for attempt in self._busy.values())]:
                stack.callback(worker.end)


@dataclass
class _Worker:
    """A process that performs one task at a time, and is replaced when it dies.

    Each is a pool of its own: a pool of several ends them all when one dies, and cannot tell whose task it was.
    """

    folder: Path
    device: torch.device
    threads: int
    _pool: ProcessPoolExecutor | None = None
    _process: BaseProcess | None = None

    def begin(self, task: Task) -> Future[Any]:
        if self._pool is None:
            context = get_context("spawn")  # a fork would share the threads and the GPU of this process
            started = __name__, _start.__name__, self.threads, *loggers.chosen()
            self._pool = ProcessPoolExecutor(1, context, orphans.call, started)
        before = active_children()
        try:
            future = self._pool.submit(_perform, task, self.folder, self.device)
        except BrokenProcessPool:  # it was killed when it had nothing to do
            self.end()
            return self.begin(task)
        self._process = next((process for process in active_children() if process not in before), self._process)
        return future

    def end(self) -> int | None:
        """Ends the process at once, and returns its exit code; all files that it has written are complete."""
        if self._pool is None or self._process is None:
            return None
        self._process.terminate()
        self._pool.shutdown(cancel_futures=True)
        code, self._pool, self._process = self._process.exitcode, None, None
        return code


@dataclass(frozen=True)
class _Attempt:
    task: Task
    worker: _Worker
    number: int


def _of(device: torch.device, number: int) -> torch.device:
    """The device of the worker of that number."""
    return torch.device("cuda", number % torch.cuda.device_count()) if device.type == "cuda" else device


def _start(threads: int, log: str | None, project: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one ends us
    torch.set_num_threads(threads)
    bars.silence()
    loggers.choose(log, project)


def _perform(task: Task, folder: Path, device: torch.device) -> Any:
    return task.perform(folder, device)
