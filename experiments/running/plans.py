"""Whether runs are made as one stack or one after another: by their settings, and by how long the first steps take."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from torchreg import Stacked

from ..config import Run
from ..errors import oneline
from ..training import ranks
from ..training.cost import seconds_of_epoch
from ..training.loop import make_steps
from ..training.setup import Setup, set_up

_WORTH = 0.9  # of the time alone: a stack that saves less is not worth other bits
_MOST = 1 << 26  # values in all parameters of one stack: larger ones wait for memory, and may not fit into it
# Their steps are element by element, so that no member's depends on the others'.
_ELEMENTWISE = {
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "ASGD", "Adadelta", "Adagrad"),
    *("SGDW", "AdamaxW", "NAdamW", "RAdamW", "RMSpropW", "AdagradW"),
}


def is_stacked(runs: Sequence[Run], device: torch.device) -> bool:
    """Whether the first steps say so, or the study wants it; prints how long they take, or why there is no stack."""
    wanted, arms = runs[0].train.stack, dict.fromkeys(run.arm for run in runs)
    name = f"{', '.join(arms)}: {len(runs)} runs"
    try:
        setups = _both(runs, device)
        if wanted is True:
            return True
        alone, stack = _times(setups, runs[0])
    except _CannotStackError as error:
        if wanted is True:
            print(f"note: {name} one after another: {error}", file=sys.stderr)
        return False
    is_faster = stack < _WORTH * len(runs) * alone
    how = "as one stack" if is_faster else "one after another"
    print(f"{name} {how}: an epoch takes {stack:.3g} s stacked, {len(runs)} x {alone:.3g} s alone", file=sys.stderr)
    return is_faster


def seconds_of_each(runs: Sequence[Run], device: torch.device) -> float:
    """The seconds of an epoch of one of the runs, made as they would be: of a stack its share.

    Raises:
        Exception: whatever a run raises that is made alone.
    """
    wanted = runs[0].train.stack
    if len(runs) > 1 and wanted is not False:
        with suppress(_CannotStackError):
            alone, stack = _times(_both(runs, device), runs[0])
            share = stack / len(runs)
            return share if wanted is True or share < _WORTH * alone else alone
    return seconds_of_epoch(set_up(runs[:1], device), runs[0].train.evaluate_every)


def obstacle(run: Run) -> str | None:
    """Why runs such as this one cannot be stacked, as far as their settings tell."""
    if ranks.is_several():
        return "torchrun: its processes train one network at a time"
    for key in ("augment", "mix"):
        if getattr(run.data, key):
            return f"data.{key}: draws from torch's generator, which all members would share"
    if run.data.turns > 1:
        return "data.tasks: what is remembered of a task is that of one network"
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


class _CannotStackError(Exception):
    pass


def _both(runs: Sequence[Run], device: torch.device) -> list[Setup]:
    """The first run alone, and all of them as a stack."""
    if (reason := obstacle(runs[0])) is not None:
        raise _CannotStackError(reason)
    with _unnoticed():
        return [_tried(some, device, len(runs)) for some in (runs[:1], runs)]


def _times(setups: Sequence[Setup], run: Run) -> list[float]:
    """The seconds of an epoch of each."""
    with _unnoticed():
        return [seconds_of_epoch(setup, run.train.evaluate_every) for setup in setups]


@contextmanager
def _unnoticed() -> Iterator[None]:
    """What is tried leaves no trace; whatever it raises is why there is no stack."""
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        try:
            yield
        except _CannotStackError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's model raises in a stack
            raise _CannotStackError(oneline(error)) from error


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
