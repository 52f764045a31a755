"""The small regularized training that the tests of steps share."""

import torch
from torch import nn

from tests.helpers import make_model, train
from torchreg import L1, L2, Regularizer

PENALTY = L1(0.05) + L2(0.1)


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **options})


def run(mode, make_optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9), *, steps=5, **loop):
    """The weights after some steps of a regularized training."""
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    return train(model, optimizer, steps, **loop)


def set_gradients(model: nn.Module, value: float) -> None:
    for param in model.parameters():
        param.grad = torch.full_like(param, value)


def one_step(optimizer: torch.optim.Optimizer, gradient: float = 0.0) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, gradient)
    optimizer.step()


def a_weight(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def weights(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def step(optimizer: torch.optim.Optimizer, gradient: float | torch.Tensor) -> torch.Tensor:
    """A step of an optimizer that has one parameter; returns the parameter."""
    (w,) = optimizer.param_groups[0]["params"]
    w.grad = torch.as_tensor(gradient, dtype=w.dtype).expand_as(w).clone()
    optimizer.step()
    return w.detach()
