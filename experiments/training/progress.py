"""The progress of runs that are trained together, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from torchreg import Stacked

from ..config import Run
from ..errors import oneline
from . import ranks
from .files import damaged
from .measure import are_finite
from .record import Record, Row

if TYPE_CHECKING:
    from pathlib import Path

    from .setup import Setup

Describe = Callable[[nn.Module], Row]


class Store(Protocol):
    """Where the checkpoints of a stack are."""

    path: Path

    def load(self) -> Row | None: ...

    def save(self, state: Row) -> None: ...


@dataclass
class Member:
    """One of the runs, or its averaged weights."""

    run: Run
    record: Record
    best: Row = field(default_factory=dict)
    last: Row = field(default_factory=dict)
    result: Row | None = None
    rows: int = 0
    average: Member | None = None

    @classmethod
    def of(cls, run: Run, record: Record) -> Member:
        """The run with its averaged weights, if it has some."""
        average, beside = run.average, record.of_average(run)
        return cls(run, record, average=cls(average, beside) if average and beside else None)

    def is_stopped(self, epoch: int) -> bool:
        """Whether early stopping ends the run."""
        stopping = self.run.train.early_stopping
        return stopping is not None and bool(self.best) and epoch - self.best["epoch"] >= stopping.patience


class Progress:
    """The progress of runs: the epoch, the best epoch of each so far, and all that a checkpoint must contain.

    Without a store there is one run, whose record holds the checkpoint.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        records: Sequence[Record],
        setup: Setup,
        device: torch.device,
        store: Store | None = None,
    ) -> None:
        self.members = [Member.of(run, record) for run, record in zip(runs, records, strict=True)]
        self.setup, self.device, self.store = setup, device, store
        self.epoch = self.rows = 0
        self._copies: tuple[tuple[int, bool], list[nn.Module]] = (0, False), []  # a stack's members after an epoch
        self._seconds = 0.0
        self._started = self._saved = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or every run has ended before."""
        ended = (member.result is not None or member.is_stopped(self.epoch) for member in self.members)
        return self.epoch >= self.members[0].run.train.epochs or all(ended)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Begins the records, and goes on from a checkpoint if there is one."""
        if self.store is None:
            (member,) = self.members
            state = member.record.begin(member.run, self.device)
            self._begin_average(0, state)
            path = member.record.folder / "checkpoint.pt"
        else:
            state, path = self.store.load(), self.store.path
            for number, member in enumerate(self.members):
                before = member.record.result
                if before is not None and before["status"] != "failed":
                    member.result = before
                else:
                    member.record.begin_at(member.run, self.device, 0 if state is None else state["rows"])
                    self._begin_average(number, state)
        if state is not None:
            try:
                self._load(state)
            except Exception as error:  # whatever a part raises on a state that is not its own
                raise damaged(path, f"does not fit the run ({oneline(error)})") from error
        if self.store is not None and state is None:
            self.save()  # which runs are in the stack, before one of them can end

    def _begin_average(self, number: int, state: Row | None) -> None:
        average = self.members[number].average
        if average is None:
            return
        before: Row = {} if state is None else state["averages"][number]
        average.best, average.rows = dict(before.get("best", {})), before.get("rows", 0)
        average.result = before.get("result")
        if average.result is None:
            average.record.begin_at(average.run, self.device, average.rows)
            average.last = average.record.history[-1] if average.rows else {}

    def _load(self, state: Row) -> None:
        for name, part in self.setup.parts.items():
            ranks.load(part, state[name])
        self.epoch, self._seconds = state["epoch"], float(state["seconds"])
        self.rows = state.get("rows", self.epoch)
        bests, shuffles = state["best"], state["shuffle"]
        if self.store is None:
            bests, shuffles = [bests], [shuffles]
        for member, best, shuffle, own in zip(self.members, bests, self.setup.shuffles, shuffles, strict=True):
            member.best = dict(best)
            shuffle.set_state(own)
            if self.epoch and member.result is None:
                member.last = member.record.history[-1]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def save(self) -> None:
        """Writes a checkpoint."""
        state: Row = {name: ranks.whole(part.state_dict()) for name, part in self.setup.parts.items()}
        state |= {"epoch": self.epoch, "rows": self.rows, "seconds": self._elapsed(), "rng": torch.get_rng_state()}
        bests = [member.best for member in self.members]
        shuffles = [shuffle.get_state() for shuffle in self.setup.shuffles]
        averages = [member.average for member in self.members if member.average is not None]
        if averages:
            state["averages"] = [{"best": one.best, "rows": one.rows, "result": one.result} for one in averages]
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        for one in (*self.members, *(member.average for member in self.members if member.average is not None)):
            one.record.flush()
        if self.store is None:
            (member,) = self.members
            member.record.save(member.run, {**state, "best": bests[0], "shuffle": shuffles[0]})
        else:
            self.store.save({**state, "best": bests, "shuffle": shuffles})
        self._saved = time.monotonic()

    # -- epochs ---------------------------------------------------------------------------------------------------

    @property
    def next(self) -> int:
        """How many epochs there are until the next evaluation."""
        run = self.members[0].run  # the last epoch of each task is evaluated, too
        return min(run.train.evaluate_every, run.epochs_of_turn - self.epoch % run.epochs_of_turn)

    def advance(
        self,
        rows: Sequence[Row],
        faults: Sequence[str | None],
        describe: Describe,
        averaged: Sequence[Row] | None = None,
    ) -> None:
        """Records the figures of the next evaluation; ends the runs that diverged, or that early stopping ends.

        Args:
            rows: the figures of each run.
            faults: why a run has diverged, if it has.
            describe: describes the weights of a run that ends.
            averaged: the figures of the averaged weights, if there are some.
        """
        self.epoch, self.rows = self.epoch + self.next, self.rows + 1
        for number, (member, figures, fault) in enumerate(zip(self.members, rows, faults, strict=True)):
            if member.result is not None:
                continue
            if fault is not None:
                self._diverge(member, fault)
                continue
            self._note(number, member, figures)
            if member.average is not None and averaged is not None:
                self._note(number, member.average, averaged[number])
            if member.is_stopped(self.epoch):
                self._finish(number, describe)
        is_due = time.monotonic() - self._saved >= self.members[0].run.train.checkpoint_seconds
        if not self.is_over and ranks.told(is_due):
            self.save()

    def _note(self, number: int, one: Member, figures: Row) -> None:
        if one.result is not None:
            return
        if not are_finite(figures):
            self._diverge(one, f"the averaged weights are not finite after epoch {self.epoch}")
            return
        one.last, one.rows = {"epoch": self.epoch, **figures}, one.rows + 1
        one.record.append(one.last)
        if one.run.train.early_stopping and figures["valid_loss"] < one.best.get("valid_loss", float("inf")):
            with self._weights_of(one):
                state = self._state_of(number)
            one.best = {"epoch": self.epoch, "valid_loss": figures["valid_loss"], "model": state}

    def finish(self, describe: Describe) -> list[Row]:
        """Records the results of all runs that have not ended."""
        for number, member in enumerate(self.members):
            if member.result is None:
                self._finish(number, describe)
        return [member.result for member in self.members if member.result is not None]

    def prune(self, describe: Describe) -> None:
        """Records that the one run was pruned, and at which epoch."""
        (member,) = self.members
        for one in _in_order(member):
            with self._weights_of(one):
                self._conclude(one, "pruned", one.last, describe(self.setup.whole_model()))

    def _diverge(self, member: Member, reason: str) -> None:
        for one in filter(None, (member.average, member)):
            self._close(one, {"status": "diverged", "reason": reason})

    def _finish(self, number: int, describe: Describe) -> None:
        """The figures of the last epoch, or with early stopping those of the best one."""
        if self.store is None:
            self.save()
        for one in _in_order(self.members[number]):
            with self._weights_of(one):
                model = self._model_of(number, one)
                chosen = one.best.get("epoch", self.epoch)
                row = next(row for row in one.record.history if row["epoch"] == chosen)
                self._conclude(one, "done", row, describe(model))

    def _weights_of(self, one: Member) -> AbstractContextManager[None]:
        """The model has the averaged weights in the context, if it is about them."""
        average = self.setup.average if one.run.is_average else None
        return nullcontext() if average is None else average.applied(self.setup.model)

    def _state_of(self, number: int) -> Row:
        model = self.setup.model
        return model.state_of(number) if isinstance(model, Stacked) else deepcopy(ranks.whole(model.state_dict()))

    def _model_of(self, number: int, one: Member) -> nn.Module:
        """The run's model, with the weights of the best epoch under early stopping."""
        model = self.setup.whole_model()
        if isinstance(model, Stacked):
            key = self.epoch, one.run.is_average
            if self._copies[0] != key:  # of all at once: several runs end after one epoch
                self._copies = key, model.members()
            model = self._copies[1][number]
        if isinstance(self.setup.model, Stacked) or one.run.is_average:
            kept = {
                "epoch": self.epoch,
                "rows": one.rows if one.run.is_average else self.rows,
                "best": one.best,
                "model": model.state_dict(),
                "is_of_stack": True,
            }
            one.record.save(one.run, kept)  # for those who want its weights: nothing can go on from here
        if one.best:
            model.load_state_dict(one.best["model"], strict=False)
        return model

    def _conclude(self, one: Member, status: str, row: Row, described: Row) -> None:
        if are_finite(described):
            self._close(one, {"status": status, "epochs": self.epoch, **row, **described})
        else:  # weights that are finite, and too large for their norm to be
            reason = f"the norms of the weights are not finite after epoch {row['epoch']}"
            self._close(one, {"status": "diverged", "reason": reason})

    def _close(self, member: Member, result: Row) -> None:
        of = {} if self.store is None else {"stack": len(self.members)}
        member.result = {**result, **of, "seconds": self._elapsed() / len(self.members)}
        member.record.finish(member.result)

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started


def _in_order(member: Member) -> list[Member]:
    """What of a run is to be ended, in this order: with the result of the run itself all of it is done."""
    return [one for one in (member.average, member) if one is not None and one.result is None and one.last]
