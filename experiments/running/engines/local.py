"""The engine of one process: this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...errors import UserError, oneline
from ...training.ranks import LostError
from ..tasks import Outcome, Task


class Local:
    """One task after another, in this process."""

    @contextmanager
    def open(self, folder: Path, device: torch.device) -> Iterator[_Here]:
        """Starts nothing."""
        yield _Here(folder, device)


@dataclass
class _Here:
    folder: Path
    device: torch.device
    _waiting: list[Task] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return not self._waiting

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def ended(self) -> list[Outcome]:
        task = self._waiting.pop()
        try:
            return [Outcome(task, task.perform(self.folder, self.device))]
        except (UserError, LostError):
            raise
        except Exception as error:  # whatever is wrong with a task is its own fault, and not that of the others
            return [Outcome(task, None, oneline(error))]
