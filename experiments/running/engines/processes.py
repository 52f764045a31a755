"""The engine of several processes on this machine."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import active_children, forkserver, get_context, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError, oneline
from ...training import bars, denormals, interrupts, loggers
from .. import orphans, tasks
from ..tasks import Outcome, Task

# On Linux a process is a fork of one that has imported these modules and done nothing else. So it starts at once, and
# shares the memory of what is imported. A fork of this process would share its threads and its GPU; elsewhere forks are
# not safe.
_IS_FORKED = sys.platform == "linux"
_IMPORTED = tasks.__name__, "torch._dynamo", "sklearn.datasets"  # torch's optimizers import the second
_CONTEXT: Any = get_context("forkserver" if _IS_FORKED else "spawn")
_LOOK = 2.0  # seconds between two looks whether the study was stopped
_AGAIN = 0.5  # seconds until a process is started again: what was killed takes a moment to be gone
TRIES = 3  # of a task whose process dies: killed by the system where memory is short, or by the task itself


class Processes:
    """So many processes, each with its share of the threads, and of the GPUs if there are several."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers = [_Worker(number, max(1, torch.get_num_threads() // jobs)) for number in range(jobs)]
        self._is_begun = False

    @contextmanager
    def begun(self) -> Iterator[Processes]:
        """The engine while its processes run; torch is imported there while this one does something else.

        Raises:
            UserError: a process cannot start.
        """
        self._is_begun = True
        try:
            if _IS_FORKED:
                _serve()
            for worker in () if _IS_FORKED else self._workers:
                worker.submit(_nothing)
            yield self
        finally:
            self._is_begun = False
            with ExitStack() as stack:
                for worker in self._workers:
                    stack.callback(worker.end)

    @contextmanager
    def open(self, folder: Path, device: torch.device) -> Iterator[_Pool]:
        """Begins the processes, if they have not begun.

        Raises:
            UserError: a process cannot start.
        """
        with nullcontext() if self._is_begun else self.begun():
            if _IS_FORKED:
                _try()
            yield _Pool(folder, device, self._workers)


def _serve() -> None:
    """Starts the process of which the others are forks, if it does not run."""
    _CONTEXT.set_forkserver_preload(list(_IMPORTED))
    # It imports from where this process does, and a Ctrl-C that reaches it while it imports says nothing.
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
    given = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    before = {key: os.environ.get(key) for key in given}
    resource_tracker.ensure_running()  # which would end the mask
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.environ.update(given)
    try:
        forkserver.ensure_running()
    except OSError as error:
        raise _cannot_start(error) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _try() -> None:
    """Waits until forks can be made, and makes one that does nothing."""
    process = _CONTEXT.Process(target=orphans.nothing)
    try:
        process.start()
    except (EOFError, OSError) as error:
        raise _cannot_start(error) from None
    process.join()
    if process.exitcode:
        raise UserError(
            "--engine processes: a process ended at its start: a script must begin its study under "
            "if __name__ == '__main__', and in a file"
        )


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
            interrupts.check()
            for future in wait(self._busy, timeout=_LOOK, return_when=FIRST_COMPLETED).done:
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
    threads: int
    _pool: ProcessPoolExecutor | None = None
    _process: BaseProcess | None = None

    def submit(self, function: Callable[..., Any], *args: Any, tries: int = TRIES) -> Future[Any]:
        """Gives the process something to do, once it is started.

        Raises:
            UserError: it cannot be started.
        """
        try:
            if self._pool is None:
                if _IS_FORKED:
                    _serve()
                started = __name__, _start.__name__, dict(os.environ), self.threads, *loggers.chosen()
                self._pool = ProcessPoolExecutor(1, _CONTEXT, orphans.call, started)
            before = active_children()
            future = self._pool.submit(function, *args)
        except (BrokenProcessPool, EOFError, OSError) as error:  # killed with nothing to do, or whose fork it is was
            self.end()
            if tries == 1 or getattr(error, "errno", None) == errno.EMFILE:
                raise _cannot_start(error) from None
            time.sleep(_AGAIN)
            return self.submit(function, *args, tries=tries - 1)
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


def _cannot_start(error: Exception) -> UserError:
    if getattr(error, "errno", None) == errno.EMFILE:
        return UserError("--jobs: needs more open files than ulimit -n allows: choose fewer")
    return UserError(f"--engine processes: a process cannot start: {oneline(error)}")


@dataclass(frozen=True)
class _Attempt:
    task: Task
    worker: _Worker
    number: int


def _of(device: torch.device, number: int) -> torch.device:
    """The device of the worker of that number."""
    return torch.device("cuda", number % torch.cuda.device_count()) if device.type == "cuda" else device


def _start(environment: dict[str, str], threads: int, log: str | None, project: str) -> None:
    os.environ.clear()  # it may have changed since the process was started of which this one is a fork
    os.environ.update(environment)
    np.random.seed()  # else the same in each fork, for whatever the class of a user draws from it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one ends us
    denormals.flush()
    torch.set_num_threads(threads)
    bars.silence()
    loggers.choose(log, project)


def _nothing() -> None:
    """What a process is given first, for which it imports all that tasks need."""


def _perform(task: Task, folder: Path, device: torch.device) -> Any:
    return task.perform(folder, device)
