"""A small network with a task, trained to sparsity, and the shares of zeros in it."""

import torch
from torch import nn

from torchreg import diagnostics


def a_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, 4))


def batches(seed: int = 1):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 30, generator=draw)
    y = (x[:, :4] * x[:, 4:8] + x[:, 8:12]).argmax(1)
    while True:
        batch = torch.randint(512, (64,), generator=draw)
        yield x[batch], y[batch]


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, data=None) -> None:
    data = data or batches()
    for _ in range(steps):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def zeros(net: nn.Module) -> float:
    weights = diagnostics.weights_of(net).values()
    return 1 - sum(w.count_nonzero().item() for w in weights) / sum(w.numel() for w in weights)


def zero_groups(net, dim):
    weights = diagnostics.weights_of(net).values()
    return sum((~w.any(1 - dim)).sum().item() for w in weights) / sum(w.shape[dim] for w in weights)
