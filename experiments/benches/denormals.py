"""What numbers below the normal range of a float cost in an optimizer's step, and what it gains to count them as 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..training import denormals
from .steps import mlp
from .timing import Clock, Table


def tables(clock: Clock) -> Iterator[Table]:
    """Steps of units that are dead: their gradients are 0, and their momentum fades."""
    title = "fused SGD's step without gradients, 784-1024-1024-2048-10, to that without momentum"
    with denormals.flushed():
        contenders = {
            "momentum 0": _step(0.0, is_flushed=False),
            "momentum 1e-40": _step(1e-40, is_flushed=False),
            "momentum 1e-40, counted as 0": _step(1e-40, is_flushed=True),
        }
        yield from clock.race(title, contenders, 30)


def _step(momentum: float, is_flushed: bool) -> Callable[[], None]:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.95, fused=True)
    for param in net.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]

    def work() -> None:
        torch.set_flush_denormal(is_flushed)
        optimizer.step()

    torch.set_flush_denormal(False)  # else 1e-40 is written as 0
    for buffer in buffers:
        buffer.fill_(momentum)
    return work
