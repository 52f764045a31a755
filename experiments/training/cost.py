"""How long an epoch takes, by the first steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from .data import Split
from .loop import make_steps
from .measure import evaluate
from .setup import Setup

_TIMED = 0.1  # seconds of timed calls, and at least so many of them; if they are long, a single one
_LEAST = 3
_LONG = 0.2  # seconds
_LOOKED_AT = 1000  # examples of each part that are evaluated; all take as much longer as there are more


def seconds_of_epoch(setup: Setup, every: int = 1) -> float:
    """The seconds of an epoch's steps, and of an evaluation in every so many epochs; the model is trained by it."""
    setup = replace(setup, scheduler=None, is_each_step=False)  # it may know how many steps there are
    batches, examples = setup.batches(), setup.examples
    few = replace(examples, train=_few(examples.train), valid=_few(examples.valid), test=_few(examples.test))

    def step() -> None:
        make_steps(setup, batches[: setup.accumulate])

    def look() -> None:
        evaluate(setup.model, few, setup.metrics)

    looks = 1 if setup.average is None else 2  # one more at the averaged weights
    share = sum(few.sizes.values()) / sum(examples.sizes.values())
    return setup.steps * _seconds(step) + looks * _seconds(look) / share / every


def _few(split: Split) -> Split:
    return Split(split.x[:_LOOKED_AT], split.y[:_LOOKED_AT])


def _seconds(work: Callable[[], object]) -> float:
    """The least time of several calls: others are longer by what else the machine does.

    The first two make what later ones use again.
    """
    taken: list[float] = []
    while len(taken) < 3 or (taken[-1] < _LONG and (len(taken) < 2 + _LEAST or sum(taken[2:]) < _TIMED)):
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():  # which goes on by itself
            torch.accelerator.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[2:])
