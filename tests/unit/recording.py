"""A penalty on outputs written out by hand, for the tests of what is recorded."""

import torch
from torch import nn

from torchreg import L1, L2

PENALTY = L1(0.3) + L2(0.7)


def formula(activation):
    """``PENALTY`` on an output, divided by the batch size, in torch's own operations."""
    return (0.3 * activation.abs().sum() + 0.35 * (activation * activation).sum()) / len(activation)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def hooks_of(model):
    """How many there are at each module."""
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called) for m in model.modules()
    ]


class Block(nn.Module):
    """Calls one layer twice, and a second layer in a way that the test says."""

    def __init__(self, after=lambda layer, x: layer(x)):
        super().__init__()
        self.shared = nn.Linear(6, 6, dtype=torch.float64)
        self.other = nn.Linear(6, 3, dtype=torch.float64)
        self.after = after

    def forward(self, x):
        return self.after(self.other, self.shared(self.shared(x)))
