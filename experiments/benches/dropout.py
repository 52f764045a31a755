"""Dropout against torch's dropout: alone, and in a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

import torchreg

from .steps import mlp, step
from .timing import Clock, Row, Table, growing

_POWERS = (8, 10, 12, 14, 16, 17, 18, 20, 22, 24)


def tables(clock: Clock) -> Iterator[Table]:
    """Forward and backward alone, by the number of elements; then in a step of a network with four million weights."""
    torch.empty(31 << 18).fill_(0)  # from here on the C library keeps what is freed, as in a process that has trained
    for dtype in (torch.float32,) if clock.is_quick else (torch.float32, torch.bfloat16):
        for p in (0.5, 0.2, 0.1):
            yield from alone(p, dtype, clock)
    yield from attention(clock)
    yield from in_step(clock)


def alone(p: float, dtype: torch.dtype, clock: Clock, own: bool = False) -> Iterator[Table]:
    """How many times faster than torch's; ``own`` with a generator for the layer."""
    powers = (10, 14, 17, 20, 22) if clock.is_quick else _POWERS
    kind = str(dtype).removeprefix("torch.") + ", a generator of its own" * own
    rows = chain.from_iterable(_rows(p, dtype, power, own, clock) for power in powers)
    title = f"torch.nn.Dropout / torchreg.nn.Dropout, forward + backward, p = {p}, {kind}, elements"
    yield from growing(title, rows, [f"2^{power}" for power in powers])


def attention(clock: Clock) -> Iterator[Table]:
    """How many times faster than torch's attention with dropout; what keys and heads cost to the same."""
    lengths = (64, 256) if clock.is_quick else (64, 256, 512)
    cases = [(drop, length) for drop in ("weights", "keys", "heads") for length in lengths]
    rows = chain.from_iterable(_attending(drop, length, clock) for drop, length in cases)
    title = (
        "torch.nn.MultiheadAttention / torchreg.nn.MultiheadAttention, forward + backward, p = 0.1, batch 4, width 256"
    )
    yield from growing(title, rows, [f"{drop}, length {length}" for drop, length in cases])


def in_step(clock: Clock) -> Iterator[Table]:
    """What dropout adds to a training step."""
    kinds = {"by hand: rand > p": ByHand, "torch.nn.Dropout": nn.Dropout, "torchreg.nn.Dropout": torchreg.nn.Dropout}
    contenders = {"bare": step(mlp, device=clock.device)}
    for name, kind in kinds.items():
        contenders[name] = step(partial(with_dropout, mlp, kind), device=clock.device)
    title = "training step, 784-1024-1024-2048-10, batch 128, fused AdamW, dropout .2 of inputs and .5 of hidden units"
    yield from clock.race(title, contenders, rounds=60)


class ByHand(nn.Module):
    """Dropout as one writes it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.p) / (1 - self.p) if self.training else x


def with_dropout(make_net: Callable[[], nn.Sequential], kind: Callable[[float], nn.Module]) -> nn.Sequential:
    """The network with dropout: .2 of the inputs and .5 of the hidden units."""
    layers: list[nn.Module] = [kind(0.2)]
    for layer in make_net():
        layers += [layer, kind(0.5)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers)


def _rows(p: float, dtype: torch.dtype, power: int, own: bool, clock: Clock) -> Iterator[Row]:
    x = torch.randn(1 << power, dtype=dtype, device=clock.device, requires_grad=True)
    generator = torch.Generator(clock.device) if own else None
    ours, theirs = torchreg.nn.Dropout(p, generator=generator), nn.Dropout(p)
    rounds = max(15, min(2000, (1 << 25) >> power))
    return clock.duel(f"2^{power}", _forward_backward(ours, x), _forward_backward(theirs, x), rounds)


def _attending(drop: Any, length: int, clock: Clock) -> Iterator[Row]:
    x = torch.randn(4, length, 256, device=clock.device, requires_grad=True)

    def work(layer: nn.MultiheadAttention) -> Callable[[], object]:
        return _forward_backward(lambda x: layer(x, x, x, need_weights=False)[0], x)

    ours = torchreg.nn.MultiheadAttention(256, 8, 0.1, batch_first=True, device=clock.device, drop=drop)
    theirs = nn.MultiheadAttention(256, 8, 0.1, batch_first=True, device=clock.device)
    return clock.duel(f"{drop}, length {length}", work(ours), work(theirs), rounds=30)


def _forward_backward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(x)

    def work() -> None:
        x.grad = None
        layer(x).backward(gradient)

    return work
