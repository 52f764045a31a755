"""Tasks in this process or in several worker processes; failures of tasks and of processes are reported."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import Run
from ..errors import RecordError, oneline
from ..training import bars, loggers
from ..training.record import Row, lock
from . import orphans
from .search import Search
from .study import make


@dataclass(frozen=True)
class Task:
    """The runs of one setting, with their trial if they belong to a search."""

    runs: Sequence[Run]
    search: Search | None = None
    number: int = 0

    @property
    def is_judged(self) -> bool:
        """Whether the runs may be pruned."""
        return self.search is not None and self.search.sweep.pruner is not None

    def judge(self, step: int, row: Row) -> bool:
        """Whether to prune, by the figures at a step."""
        assert self.search is not None
        return self.search.report(self.number, step, row[self.search.sweep.metric])


class Outcome(NamedTuple):
    """The outcome of a task: the results of its runs, or the reason why there are none."""

    task: Task
    results: Sequence[Row]
    failure: str | None = None


def in_turn(tasks: Iterator[Task], folder: Path, device: torch.device) -> Iterator[Outcome]:
    """Runs the tasks one after another in this process."""
    for task in tasks:
        try:
            yield Outcome(task, make(task.runs, folder, device, task.judge if task.is_judged else None))
        except RecordError:
            raise
        except Exception as error:  # whatever is wrong with a task is its own fault, and not that of the others
            yield Outcome(task, [], oneline(error))


def side_by_side(tasks: Iterator[Task], folder: Path, device: torch.device, jobs: int) -> Iterator[Outcome]:
    """Runs the tasks in so many processes; a task is started when a process is free."""
    threads = max(1, torch.get_num_threads() // jobs)
    workers = [_Worker(folder, device, threads) for _ in range(jobs)]
    try:
        busy = [worker for worker in workers if worker.take(next(tasks, None))]
        while busy:
            for pipe in connection.wait([worker.pipe for worker in busy]):
                worker = next(worker for worker in busy if worker.pipe is pipe)
                outcome = worker.answer()
                if outcome is None:
                    continue
                busy.remove(worker)
                yield outcome
                if (task := next(tasks, None)) is None:
                    continue
                if not worker.is_alive:
                    worker = _Worker(folder, device, threads)
                    workers.append(worker)
                worker.take(task)
                busy.append(worker)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A worker process, which runs one task at a time."""

    def __init__(self, folder: Path, device: torch.device, threads: int) -> None:
        context = get_context("spawn")  # a fork would share the threads and the GPU of this process
        self.pipe, theirs = context.Pipe()
        args = (__name__, serve.__name__, theirs, folder, str(device), threads, *loggers.chosen())
        self._process = context.Process(target=orphans.call, args=args, daemon=True)
        self._process.start()
        theirs.close()  # so that its end is the end of the pipe
        self._task = Task([])
        self.is_alive = True

    def take(self, task: Task | None) -> bool:
        """Gives the process a task; returns whether there was one."""
        if task is None:
            return False
        self._task = task
        with suppress(OSError):  # it has died: answer() tells
            self.pipe.send((task.runs, task.is_judged))
        return True

    def answer(self) -> Outcome | None:
        """Reads a message: returns the task's outcome, or answers a question and returns None."""
        try:
            kind, said = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.is_alive = False
            return Outcome(self._task, [], f"its process died with exit code {self._process.exitcode}")
        if kind == "judge":
            self.pipe.send(self._task.judge(*said))
            return None
        if kind == "record":
            raise RecordError(said)
        return Outcome(self._task, said) if kind == "results" else Outcome(self._task, [], said)

    def end(self) -> None:
        """Ends the process; all files that it has written are complete."""
        self._process.terminate()
        self._process.join()


def serve(pipe: connection.Connection, folder: Path, device: str, threads: int, log: str | None, project: str) -> None:
    """Makes the runs that come through the pipe, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one ends us
    torch.set_num_threads(threads)
    bars.silence()
    loggers.choose(log, project)

    def ask(step: int, row: Row) -> bool:
        pipe.send(("judge", (step, row)))
        return bool(pipe.recv())

    while True:
        runs, judged = pipe.recv()
        try:
            (folder / "runs" / runs[0].place).mkdir(parents=True, exist_ok=True)
            with lock(folder / "runs" / runs[0].place):  # a sampler may try a point twice at a time
                pipe.send(("results", make(runs, folder, torch.device(device), ask if judged else None)))
        except RecordError as error:
            pipe.send(("record", str(error)))
        except Exception as error:
            pipe.send(("failure", oneline(error)))
