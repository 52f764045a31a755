"""Runs that differ in seeds and strengths alone, trained as one stacked model where that is faster."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.config import Run
from experiments.errors import RecordError, oneline
from experiments.training.cost import seconds_of_epoch
from experiments.training.files import checksum
from experiments.training.loop import make_steps, train_together
from experiments.training.record import Record, Row, digest_of, load_sealed, save_sealed
from experiments.training.setup import Setup, set_up
from experiments.training.together import is_strength_0_of, kind_of
from torchreg import Stacked

LARGEST = 64  # members of one stack
_MOST = 1 << 26  # values in all parameters of one stack: larger ones wait for memory, and may not fit into it
# Their steps are element by element, so that no member's depends on the others'.
_ELEMENTWISE = {
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "ASGD", "Adadelta", "Adagrad"),
    *("SGDW", "AdamaxW", "NAdamW", "RAdamW", "RMSpropW", "AdagradW"),
}


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that could be stacks, each in the place of its first run.

    Runs without regularizers join those that they are at strength 0, so that the two can be equal to the bit.
    """
    kinds = [kind_of(run) for run in runs]
    firsts = dict(zip(reversed(kinds), reversed(runs), strict=True))
    homes = {
        kind: next((other for other in dict.fromkeys(kinds) if is_strength_0_of(first, firsts[other])), kind)
        for kind, first in firsts.items()
    }
    found: dict[str, list[Run]] = {}
    for run, kind in zip(runs, kinds, strict=True):
        found.setdefault(homes[kind], []).append(run)
    return [group[i : i + LARGEST] for group in found.values() for i in range(0, len(group), LARGEST)]


class StackStore:
    """The checkpoint of a stack, in a file of the study's folder; it says which runs are in the stack."""

    def __init__(self, folder: Path, group: Sequence[Run]) -> None:
        name = checksum(json.dumps([run.folder for run in group]).encode())[:12]
        self.path, self._group = folder / "stacks" / f"{name}.pt", group
        self.runs: list[Run] = []

    def load(self) -> Row | None:
        """The checkpoint, if there is one; :attr:`runs` are then the runs in the stack."""
        if not self.path.exists():
            return None
        try:
            state, is_sealed = load_sealed(self.path)
            ours = {run.folder: run for run in self._group}
            self.runs = [ours[name] for name in state["runs"]]
            if not is_sealed or [digest_of(run) for run in self.runs] != state["digests"]:
                raise ValueError("altered, or of other runs")
        except Exception:  # torch.load raises what it likes on a damaged file
            print(f"note: {self.path} is damaged: its runs start afresh", file=sys.stderr)
            self.discard()
            return None
        return state if state["epoch"] else None

    def save(self, state: Row) -> None:
        """Replaces the checkpoint."""
        self.path.parent.mkdir(exist_ok=True)
        names = [run.folder for run in self.runs]
        save_sealed(self.path, {**state, "runs": names, "digests": [digest_of(run) for run in self.runs]})

    def discard(self) -> None:
        """Removes what nothing needs any more."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def make_together(group: Sequence[Run], folder: Path, device: torch.device) -> dict[str, Row]:
    """The results of those runs of a group that were trained as a stack, by their folders; none if they are not."""
    store = StackStore(folder, group)
    is_begun = store.load() is not None or bool(store.runs)
    if not is_begun:
        store.runs = [run for run in group if not _is_begun(folder, run)]
        if len(store.runs) < 2 or group[0].train.stack is False or not _is_faster(store.runs, device):
            return {}
    records = [Record(folder / "runs" / run.folder, run) for run in store.runs]
    try:
        results = train_together(store.runs, device, records, store)
    except RecordError:
        raise
    except (Exception, SystemExit) as error:  # whatever one run raises; alone it is only its own fault
        print(f"note: {len(records)} runs are made one after another: {oneline(error)}", file=sys.stderr)
        store.discard()
        return {}
    store.discard()
    return {run.folder: result for run, result in zip(store.runs, results, strict=True)}


def _is_begun(folder: Path, run: Run) -> bool:
    """Whether the run has ended, or has a checkpoint of its own to go on from."""
    record = Record(folder / "runs" / run.folder, run)
    result = record.result
    return (record.folder / "checkpoint.pt").exists() or (result is not None and result["status"] != "failed")


def obstacle(run: Run) -> str | None:
    """Why runs such as this one cannot be stacked, as far as their settings tell."""
    for key in ("augment", "mix"):
        if getattr(run.data, key):
            return f"data.{key}: draws from torch's generator, which all members would share"
    if run.train.amp:
        return "amp: one scale of the losses would be that of all members"
    if run.train.solve:
        return "train.solve: solves for the layer of one network"
    if any(regularizer.activity for regularizer in run.regularizers):
        return "regularizers: the activities within a stack cannot be recorded"
    for key in ("auto_strength", "sparsity"):
        if getattr(run, key) is not None:
            return f"{key}: is that of one network"
    if run.optimizer.name not in _ELEMENTWISE:
        return f"optimizer: {run.optimizer.name or run.optimizer.class_} may mix the members' elements"
    return None


def _is_faster(runs: Sequence[Run], device: torch.device) -> bool:
    """Whether the first steps say so, or the study wants it; prints how long they take, or why there is no stack."""
    train, arms = runs[0].train, dict.fromkeys(run.arm for run in runs)
    name = f"{', '.join(arms)}: {len(runs)} runs"
    reason = obstacle(runs[0])
    if reason is None:
        with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
            try:
                setups = [_tried(some, device, len(runs)) for some in (runs[:1], runs)]
                if train.stack is True:
                    return True
                alone, stack = (seconds_of_epoch(setup, train.evaluate_every) for setup in setups)
            except _CannotStackError as error:
                reason = str(error)
            except (Exception, SystemExit) as error:  # whatever a user's model raises in a stack
                reason = oneline(error)
    if reason is not None:
        if train.stack is True:
            print(f"note: {name} one after another: {reason}", file=sys.stderr)
        return False
    how = "as one stack" if stack < len(runs) * alone else "one after another"
    times = f"an epoch takes {stack:.3g} s stacked, {len(runs)} x {alone:.3g} s alone"
    print(f"{name} {how}: {times}", file=sys.stderr)
    return stack < len(runs) * alone


class _CannotStackError(Exception):
    pass


def _tried(runs: Sequence[Run], device: torch.device, members: int) -> Setup:
    """A run alone, or all of them as a stack, after a step that shows whether they can be stacked."""
    is_stack = len(runs) > 1
    setup = set_up(runs, device, stacked=is_stack)
    if setup.examples.train.is_streamed:
        raise _CannotStackError("data.stream: the members would read the examples in as many orders")
    if not is_stack and members * sum(param.numel() for param in setup.model.parameters()) > _MOST:
        raise _CannotStackError(f"together they have more than {_MOST:,} values in their parameters")
    before, batches = torch.get_rng_state(), setup.batches()
    make_steps(setup, batches[:1])
    if not is_stack and not torch.equal(before, torch.get_rng_state()):
        raise _CannotStackError("the model draws from torch's generator, layers of torchreg.nn from their own")
    if isinstance(setup.model, Stacked) and not setup.model.vectorize:
        raise _CannotStackError("torch.func.vmap cannot compute the model")
    return setup
