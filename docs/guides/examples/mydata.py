"""Data for studies: data = { class = "mydata:load", args = { count = 300 } }."""

import torch
from torch import Tensor


def load(count: int = 300, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Points in the plane, and on which side of a curve they lie."""
    x = 2 * torch.rand(count, 2) - 1
    y = x[:, 1] + noise * torch.randn(count) > (3 * x[:, 0]).sin() / 2
    return x, y.long()
