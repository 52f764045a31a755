"""The progress of a run, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from experiments.config import Run
from experiments.errors import oneline
from experiments.training.files import damaged
from experiments.training.record import Record, Row


class Progress:
    """The progress of a run: the epoch, the best epoch so far, and everything that a checkpoint must contain."""

    def __init__(
        self, run: Run, parts: dict[str, Any], shuffle: torch.Generator, record: Record, device: torch.device
    ) -> None:
        self.run, self.record, self.shuffle, self.device = run, record, shuffle, device
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.epoch = 0
        self.best: Row = {}
        self.last: Row = {}
        self._seconds = 0.0
        self._started = self._saved = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or early stopping has ended the run."""
        stopping = self.run.train.early_stopping
        stopped = stopping is not None and bool(self.best) and self.epoch - self.best["epoch"] >= stopping.patience
        return stopped or self.epoch >= self.run.train.epochs

    def restore(self, state: Row | None) -> None:
        """Restores a checkpoint's state, if there is one."""
        if state is None:
            return
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.epoch, self.best, self._seconds = state["epoch"], dict(state["best"]), float(state["seconds"])
            self.last = self.record.history[-1]
            self.shuffle.set_state(state["shuffle"])
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        except Exception as error:  # whatever a part raises on a state that is not its own
            how = f"does not fit the run ({oneline(error)})"
            raise damaged(self.record.folder / "checkpoint.pt", how) from error

    def advance(self, figures: Row) -> None:
        """Records an epoch's figures."""
        self.epoch += 1
        self.last = {"epoch": self.epoch, **figures}
        self.record.append(self.last)
        if self.run.train.early_stopping and figures["valid_loss"] < self.best.get("valid_loss", float("inf")):
            state = deepcopy(self.parts["model"].state_dict())
            self.best = {"epoch": self.epoch, "valid_loss": figures["valid_loss"], "model": state}
        if time.monotonic() - self._saved >= self.run.train.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"epoch": self.epoch, "best": self.best, "seconds": self._elapsed()}
        state |= {"shuffle": self.shuffle.get_state(), "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        self.record.save(self.run, state)
        self._saved = time.monotonic()

    def finish(self, describe: Callable[[nn.Module], Row]) -> Row:
        """Records the result: the figures of the last epoch, or with early stopping those of the best one."""
        self.save()
        model = self.parts["model"]
        if self.best:
            model.load_state_dict(self.best["model"])
        chosen = self.best.get("epoch", self.epoch)
        row = next(row for row in self.record.history if row["epoch"] == chosen)
        return self._close({"status": "done", "epochs": self.epoch, **row, **describe(model)})

    def pruned(self, describe: Callable[[nn.Module], Row]) -> Row:
        """Records that the run was pruned, and at which epoch."""
        return self._close({"status": "pruned", "epochs": self.epoch, **self.last, **describe(self.parts["model"])})

    def diverged(self, reason: str) -> Row:
        """Records that the run has diverged, and how."""
        return self._close({"status": "diverged", "reason": reason})

    def _close(self, result: Row) -> Row:
        result["seconds"] = self._elapsed()
        self.record.finish(result)
        return result

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started
