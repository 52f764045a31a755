"""Models with weights that are computed from several parameters, for the tests of effective penalties."""

import pytest
import torch
from torch import nn

from torchreg import L1, L2, Effective, GroupLasso, Nuclear


class LoRA(nn.Module):
    """A linear layer with an update of low rank."""

    def __init__(self, inputs, outputs, rank=2, scale=0.5):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inputs))
        self.B = nn.Parameter(torch.randn(outputs, rank))
        self.scale = scale

    def forward(self, x):
        return self.base(x) + self.scale * x @ self.A.mT @ self.B.mT


def update(layer):
    return layer.scale * layer.B @ layer.A


def adapted():
    torch.manual_seed(0)
    return nn.Sequential(LoRA(4, 6), nn.Tanh(), LoRA(6, 3)).double()


def product(model):
    return model[2].weight @ model[0].weight


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)).double()


class Parallel(nn.Module):
    """Two layers of one input; a part of the second is tied to the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)
        self.again = self.first

    def forward(self, x):
        return self.first(x) + self.second(x)


def total(model):
    return model.first.weight + model.second.weight + model.again.weight


def parallel():
    torch.manual_seed(0)
    return Parallel().double()


def all_updates(model):
    return [layer.scale * layer.B @ layer.A for layer in (model[0], model[2])]


# What is made, the effective penalty, and the effective weights written out.
CASES = {
    "LoRA": (adapted, lambda penalty: Effective(penalty, update, modules=LoRA), all_updates),
    "product": (two_layers, lambda penalty: Effective(penalty, product), lambda m: [m[2].weight @ m[0].weight]),
    "sum": (
        parallel,
        lambda penalty: Effective(penalty, total),
        lambda m: [2 * m.first.weight + m.second.weight],
    ),
}
PENALTIES = [L2(0.3), L1(0.2), L1(0.2) + L2(0.3), GroupLasso(0.4, groups="output"), Nuclear(0.2)]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)


def batch(width=4):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(16, width, dtype=torch.float64, generator=draw)


def loss_of(model):
    return model(batch()).square().mean()


def gradients(model):
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def by_autograd(make, weights_of, penalty, times=1.0):
    model = make()
    (loss_of(model) + times * sum(penalty.value(w) for w in weights_of(model))).backward()
    return gradients(model)
