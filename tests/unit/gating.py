"""Layers that learn what to drop, of every kind and around every layer, for the tests of them."""

import pytest
import torch
from torch import nn

from torchreg.nn import ConcreteDropout, HardConcrete, VariationalDropout

KINDS = [ConcreteDropout, VariationalDropout, HardConcrete]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5, dtype=torch.float64), (7, 6)),
    "linear, one example": (lambda: nn.Linear(6, 5, dtype=torch.float64), (6,)),
    "linear over a sequence": (lambda: nn.Linear(6, 5, dtype=torch.float64), (7, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, dtype=torch.float64), (7, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2, dtype=torch.float64), (7, 3, 9, 8)),
    "conv2d, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", dtype=torch.float64),
        (2, 3, 5, 5),
    ),
    "conv2d, one example": (lambda: nn.Conv2d(3, 4, 3, bias=False, dtype=torch.float64), (3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, dtype=torch.float64), (2, 2, 4, 4, 4)),
}
each_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        VariationalDropout(nn.Linear(6, 5, dtype=torch.float64)),
        nn.ReLU(),
        HardConcrete(nn.Linear(5, 4, dtype=torch.float64)),
        ConcreteDropout(nn.Linear(4, 3, dtype=torch.float64)),
    )
