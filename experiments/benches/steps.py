"""Training steps to time: a network, an optimizer, and a regularizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchreg import L1, L2, Penalty, Regularizer
from torchreg.regularizer import Mode

BATCH = 128
CHECKED = 4  # steps whose losses are kept, before the batch is memorized
L1_STRENGTH, L2_STRENGTH = 1e-6, 1e-5


def l1_l2(w: Tensor) -> Tensor:
    """L1 + L2 of a weight, as written by hand."""
    return L1_STRENGTH * w.abs().sum() + 0.5 * L2_STRENGTH * (w**2).sum()


def mlp(widths: Sequence[int] = (784, 1024, 1024, 2048, 10)) -> nn.Sequential:
    """A perceptron with ReLUs, by default with four million weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def deep(layers: int, weights: int = 4_000_000) -> nn.Sequential:
    """So many weights in square layers, with residual connections so that gradients reach all of them."""
    width = max(1, math.isqrt(weights // layers))
    return nn.Sequential(*(_Residual(width) for _ in range(layers)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.relu())
        return x + y


@dataclass
class Step:
    """A training step of the network: fused AdamW on a batch of noise, always the same, and its first losses.

    ``mode`` is that of a regularizer; ``by_hand`` gives what is added to the loss for each weight, as one does without
    torchreg. ``batch`` holds inputs and classes for networks that take others than rows of numbers, ``half`` the
    precision for autocast.
    """

    net: nn.Module
    mode: Mode | None = None
    penalty: Penalty = field(default_factory=lambda: L1(L1_STRENGTH) + L2(L2_STRENGTH))
    compile: bool = False
    every: int = 1
    by_hand: Callable[[Tensor], Tensor] | None = None
    batch: tuple[Tensor, Tensor] | None = None
    half: torch.dtype | None = None
    capturable: bool = False
    losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = next(self.net.parameters())
        if self.batch is None:
            draw = torch.Generator().manual_seed(0)
            x = torch.randn(BATCH, first.shape[1], generator=draw).to(first.device)
            self.batch = x, torch.randint(self.net(x).shape[1], (BATCH,), generator=draw).to(first.device)
        self.x, self.y = self.batch
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), weight_decay=0, fused=True, capturable=self.capturable
        )
        self.weights = [p for p in self.net.parameters() if p.ndim > 1]
        self.regularizer: Regularizer | None = None
        if self.mode is not None:
            self.regularizer = Regularizer(
                self.net, self.penalty, mode=self.mode, compile=self.compile, every=self.every
            )
            if self.mode != "loss":
                self.regularizer.attach(self.optimizer)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.x.device.type, self.half, enabled=self.half is not None):
            loss = cross_entropy(self.net(self.x), self.y)
        if len(self.losses) < CHECKED:
            self.losses.append(loss.detach())
        if self.regularizer is not None and self.mode == "loss":
            loss = loss + self.regularizer.value()
        if self.by_hand is not None:
            for w in self.weights:
                loss = loss + self.by_hand(w)
        loss.backward()
        self.optimizer.step()


def step(make_net: Callable[[], nn.Module], mode: Mode | None = None, device: str = "cpu", **options: object) -> Step:
    """A step of a new network with the same initial weights each time."""
    torch.manual_seed(0)
    return Step(make_net().to(device), mode, **options)  # type: ignore[arg-type]
