"""What every engine is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from ...training import interrupts
from ..tasks import Outcome, Task


class Engine(Protocol):
    """Performs tasks, some at a time."""

    def open(self, folder: Path, device: torch.device) -> AbstractContextManager[Pool]:
        """Starts the engine for the tasks of a study; all that it started has ended after the context."""


class Pool(Protocol):
    """An engine that is at work."""

    @property
    def has_room(self) -> bool:
        """Whether another task would begin soon."""

    @property
    def is_idle(self) -> bool:
        """Whether all tasks have ended."""

    def submit(self, task: Task) -> None:
        """Takes a task."""

    def ended(self) -> list[Outcome]:
        """Waits until a task has ended; the outcomes of those that have.

        Raises:
            UserError: the study cannot go on: a record is damaged or cannot be written.
        """


def outcomes(pool: Pool, take: Callable[[], Any]) -> Iterator[Outcome]:
    """The outcomes of tasks, in the order in which they end.

    ``take`` gives the next task, or None as long as there is none: an outcome may bring others.
    """
    while True:
        while pool.has_room and (task := take()) is not None:
            pool.submit(task)
        if pool.is_idle:
            return
        interrupts.check()
        yield from pool.ended()
