"""The time that a penalty adds to a training step, in each mode and for growing networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import nn

from torchreg import L1, L2, ElasticNet, GroupLasso, Huber, LogSum, Regularizer
from torchreg.regularizer import Mode

from .steps import CHECKED, Step, deep, mlp, step
from .timing import Row, Table, race, seconds

MODES: tuple[Mode, ...] = ("loss", "grad", "decoupled", "prox")


def tables() -> Iterator[Table]:
    """The tables of modes, of penalties, and of growing numbers of weights and tensors."""
    yield modes()
    yield penalties()
    yield from (size(10**power) for power in range(4, 9))
    yield from map(layers, (1, 20, 100, 500))
    yield slope()


def modes() -> Table:
    """L1 + L2 in each mode, with and without compile, against the bare step of a network with four million weights."""
    contenders = {"bare": step(mlp), "naive penalty in the loss": step(mlp, naive=True), **_each_mode(mlp)}
    contenders |= {f"{name}, compile=True": work for name, work in _each_mode(mlp, compile=True).items()}
    table = race("training step, 784-1024-1024-2048-10, batch 128, fused AdamW, L1 + L2", contenders, 60)
    return _checked(table, contenders)


def penalties() -> Table:
    """Single penalties in modes "grad" and "prox"; those that are sums over single weights also compiled."""
    contenders = {"bare": step(mlp)}
    for penalty in (L1(1e-6), L2(1e-6), ElasticNet(1e-6), Huber(1e-6), LogSum(1e-6), GroupLasso(1e-6)):
        for mode in ("grad", "prox"):
            name = f"{penalty!r}, {mode!r}"
            contenders[name] = step(mlp, mode, penalty=penalty)
            if penalty.is_uniform:
                contenders[f"{name}, compile=True"] = step(mlp, mode, penalty=penalty, compile=True)
    return race("the same step, by penalty", contenders, 25)


def size(weights: int) -> Table:
    """So many weights in one square layer, or in several layers of at most 16 million weights."""
    net = partial(deep, max(1, weights // 16_000_000), weights)
    rounds = max(5, min(400, 400_000_000 // weights))
    contenders = {"bare": step(net), "naive": step(net, naive=True), **_each_mode(net)}
    table = race(f"training step, {weights:,} weights, batch 128, fused AdamW, L1 + L2", contenders, rounds)
    return _checked(table, contenders)


def layers(count: int) -> Table:
    """Four million weights in the given number of tensors."""
    net = partial(deep, count)
    contenders = {"bare": step(net), **_each_mode(net)}
    return race(f"training step, 4M weights in {count}, batch 128, fused AdamW, L1 + L2", contenders, 30)


def slope() -> Table:
    """The seconds that a regularizer takes for each further tensor of 64 weights, from 550 tensors against 50."""
    rows = []
    for mode in MODES:
        few, many = (_act_alone(mode, count) for count in (50, 550))
        taken = [[seconds(few), seconds(many)] for _ in range(300)][20:]
        each = [(more - less) / 500 for less, more in taken]
        rows.append(Row(f"mode {mode!r}", 1e6 * median(each), *_quartiles(each), 0.0))
    title = "what L1 + L2 alone take for each further tensor of 64 weights, in microseconds"
    return Table(title, tuple(rows), figure="us")


def _quartiles(each: list[float]) -> tuple[float, float]:
    ordered = sorted(each)
    return 1e6 * ordered[len(each) // 4], 1e6 * ordered[3 * len(each) // 4]


def _act_alone(mode: Mode, count: int) -> Callable[[], object]:
    """The work of a regularizer in a step: in mode "loss" the value and its gradients, else that of its hook."""
    params = nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(count)])
    for param in params:
        param.grad = torch.zeros_like(param)
    regularizer = Regularizer(params, L1(1e-4) + L2(1e-4), mode=mode)
    if mode == "loss":
        return lambda: torch.autograd.grad(regularizer.value(), list(params))
    optimizer = torch.optim.SGD(params, lr=1e-3)
    optimizer.step = optimizer.profile_hook_step(lambda self: None).__get__(optimizer)  # type: ignore[method-assign]
    regularizer.attach(optimizer)
    return optimizer.step


def _each_mode(net: Callable[[], nn.Sequential], compile: bool = False) -> dict[str, Step]:
    return {f"mode {mode!r}": step(net, mode, compile=compile) for mode in MODES}


def _checked(table: Table, contenders: Mapping[str, Step]) -> Table:
    """A note that contenders for the same problem have reached the same loss, so that they did the same work."""
    same = [name for name in contenders if name.startswith(("naive", "mode 'loss'", "mode 'grad'"))]
    losses = [contenders[name].losses[-1].item() for name in same]
    apart = max(losses) - min(losses)
    if apart > 1e-3 * min(losses):
        raise RuntimeError(f"bench: {', '.join(same)} must have the same loss, got {losses}")
    note = f"after {CHECKED} steps the losses of {len(same)} equivalent steps, {losses[0]:.4f}, differ by {apart:.0e}"
    return replace(table, note=note)
