"""The parts of a step's time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

import torchreg

from ..config import Data
from ..training import data
from .dropout import with_dropout
from .epoch import WIDTHS, Loop
from .steps import BATCH, mlp
from .timing import Clock, Row, Table, spread

_STEPS = 200
_ROUNDS = 9
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "AdamW's kernel": ("aten::_fused_adamw_",),
    "ReLU, loss, bias gradients": (
        *("aten::clamp_min", "aten::threshold_backward", "aten::sum", "aten::_log_softmax", "aten::nll_loss_forward"),
        *("aten::_log_softmax_backward_data", "aten::nll_loss_backward"),
    ),
    "the batch, out of memory": ("aten::index",),
    "dropout's random bits": ("aten::random_",),
    "dropout's masks and products": ("aten::ge", "aten::lt", "aten::mul", "aten::mul_", "aten::copy_"),
    "the penalty": ("aten::sgn", "aten::sign", "aten::softshrink", "aten::div_", "aten::add_"),
}
REST = "Python, autograd and dispatch"


def tables(clock: Clock) -> Iterator[Table]:
    """The shares of a step's time, without and with regularization; torch's profiler times the kernels."""
    split = data.load(Data(name="mnist", valid_size=5000), torch.device("cpu")).train
    some = replace(split, x=split.x[: _STEPS * BATCH], y=split.y[: _STEPS * BATCH])
    plain = partial(mlp, WIDTHS)
    dropped = partial(with_dropout, plain, torchreg.nn.Dropout)
    loops = {
        "the loop, bare": Loop(plain, some),
        "the loop, dropout": Loop(dropped, some),
        "the loop, dropout + L1 + L2 'decoupled'": Loop(dropped, some, mode="decoupled"),
    }
    for name, loop in loops.items():
        loop()
        yield from _shares(name, loop, clock)


def _shares(name: str, loop: Loop, clock: Clock) -> Iterator[Table]:
    title = f"a step of {name}, 784-512-512-10, batch 128"
    yield Table(title, figure="share", width=max(map(len, (*PARTS, REST))))
    for rounds, stopped in clock.repeated(name, lambda _: _round(loop), _ROUNDS):
        taken = [sum(parts.values()) for parts in rounds]
        rows = []
        for part in rounds[0]:
            shares = [parts[part] / whole for parts, whole in zip(rounds, taken, strict=True)]
            rows.append(Row(part, *spread(shares), median(parts[part] for parts in rounds)))
        whole = f"the step takes {1e3 * median(taken):.2f} ms"
        yield Table(title, tuple(rows), f"{whole}; {stopped}" if stopped else whole, "share")


def _round(loop: Loop) -> dict[str, float]:
    """The seconds of a step by part: the whole without the profiler, the kernels with it, and the rest."""
    start = time.perf_counter()
    loop()
    taken = (time.perf_counter() - start) / _STEPS
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loop()
    spent = {event.key: event.self_cpu_time_total * 1e-6 / _STEPS for event in seen.key_averages()}
    parts = {part: sum(spent.get(key, 0.0) for key in keys) for part, keys in PARTS.items()}
    return {**parts, REST: max(0.0, taken - sum(parts.values()))}
