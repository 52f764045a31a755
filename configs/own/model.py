"""The model and the data of configs/own/model.toml."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    """A network on vectors. The study gives it the shape of an input and the number of outputs."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int = 256) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x))


def spirals(count: int, noise: float) -> TensorDataset:
    """Points on two spirals that turn around each other."""
    y = torch.arange(count) % 2
    turn = 3 * torch.rand(count).sqrt() + 0.5
    angle = turn * torch.pi + y * torch.pi
    x = torch.stack([turn * angle.cos(), turn * angle.sin()], 1) / 3
    return TensorDataset(x + noise * torch.randn(count, 2), y)
