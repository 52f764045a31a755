"""How long an epoch takes, by the first steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from .loop import make_steps
from .measure import evaluate
from .setup import Setup

_WARMED = 2  # calls before the first timed one, which make what later ones use again
_TIMED = 0.1  # seconds of timed calls, and at least so many of them
_LOOKS = 3


def seconds_of_epoch(setup: Setup, every: int = 1) -> float:
    """The seconds of an epoch's steps, and of an evaluation in every so many epochs; the model is trained by it."""
    setup = replace(setup, scheduler=None, is_each_step=False)  # it may know how many steps there are
    batches, examples = setup.batches(), setup.examples

    def step() -> None:
        make_steps(setup, batches[: setup.accumulate])

    def look() -> None:
        evaluate(setup.model, examples, setup.metrics)

    looks = 1 if setup.average is None else 2  # one more at the averaged weights
    return setup.steps * _seconds(step) + looks * _seconds(look) / every


def _seconds(work: Callable[[], object]) -> float:
    taken: list[float] = []
    while len(taken) < _WARMED + _LOOKS or sum(taken[_WARMED:]) < _TIMED:
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():  # which goes on by itself
            torch.accelerator.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[_WARMED:])  # others are longer by what else the machine does
