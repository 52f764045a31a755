"""Digits to learn, and a loop that learns them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from torchreg import Regularizer


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1797 images of 64 pixels in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16).float(), torch.tensor(labels)


def train(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    regularizer: Regularizer | None = None,
    lr: float = 0.01,
    steps: int = 200,
    watch: Callable[[], float] = lambda: 0.0,
) -> list[float]:
    """Steps of Adam; returns what was watched."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    if regularizer is not None:
        regularizer.attach(optimizer)
    watched = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        watched.append(watch())
    model.eval()
    return watched
