"""Dropout against torch's dropout: alone, and in a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

import torchreg

from .steps import mlp, step
from .timing import Row, Table, growing, race


def tables() -> Iterator[Table]:
    """Forward and backward alone, by the number of elements; then in a step of a network with four million weights."""
    torch.empty(31 << 18).fill_(0)  # from here on the C library keeps what is freed, as in a process that has trained
    for dtype in (torch.float32, torch.bfloat16):
        for p in (0.5, 0.2, 0.1):
            yield from _alone(p, dtype)
    contenders = {
        "bare": step(mlp),
        "torch.nn.Dropout": step(partial(with_dropout, mlp, nn.Dropout)),
        "torchreg.nn.Dropout": step(partial(with_dropout, mlp, torchreg.nn.Dropout)),
    }
    title = "training step, 784-1024-1024-2048-10, batch 128, fused AdamW, dropout .2 of inputs and .5 of hidden units"
    yield race(title, contenders, rounds=60)


def with_dropout(make_net: Callable[[], nn.Sequential], kind: type[nn.Module]) -> nn.Sequential:
    """The network with dropout: .2 of the inputs and .5 of the hidden units."""
    layers: list[nn.Module] = [kind(0.2)]
    for layer in make_net():
        layers += [layer, kind(0.5)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers)


def _alone(p: float, dtype: torch.dtype) -> Iterator[Table]:
    kind = str(dtype).removeprefix("torch.")
    rows = (_row(p, dtype, power) for power in (8, 12, 14, 16, 17, 18, 20, 22, 24))
    yield from growing(f"torch.nn.Dropout / torchreg.nn.Dropout, forward + backward, p = {p}, {kind}, elements", rows)


def _row(p: float, dtype: torch.dtype, power: int) -> Row:
    x = torch.randn(1 << power, dtype=dtype, requires_grad=True)
    contenders = {
        "torchreg": _forward_backward(torchreg.nn.Dropout(p), x),
        f"2^{power}": _forward_backward(nn.Dropout(p), x),
    }
    return race("", contenders, rounds=max(15, min(2000, (1 << 25) >> power)))[f"2^{power}"]


def _forward_backward(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(x)

    def work() -> None:
        x.grad = None
        layer(x).backward(gradient)

    return work
