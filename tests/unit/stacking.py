"""Members of a stack that are trained together and alone, for the tests of stacks."""

from copy import deepcopy

import torch
from torch import nn

from torchreg import Regularizer, Stacked
from torchreg.nn import seed_dropout

MEMBERS = 4
SCALES = torch.tensor([0.0, 0.3, 1.0, 3.0], dtype=torch.float64)
X = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(4))


def network(seed: int, *extra: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *extra, nn.Linear(8, 3)).double()
    if any(getattr(module, "generator", 0) is None for module in model.modules()):
        seed_dropout(model, seed)
    return model


def train(model, optimizer, criterion, regularizer=None, steps=6):
    """The loop that anyone writes, for one model or for many."""
    for step in range(steps):
        half = slice(0, 6) if step % 2 else slice(6, 12)
        optimizer.zero_grad()
        loss = criterion(model(X[half]), Y[half])
        if regularizer is not None and regularizer.mode == "loss":
            loss = loss + regularizer.value()
        loss.sum().backward()
        optimizer.step()


def together_and_alone(make_optimizer, penalty=None, mode="prox", *extra, vectorize=True):
    """The state of each member: trained in a stack, and trained alone."""

    def go(model, criterion, scale):
        optimizer = make_optimizer(model.parameters())
        regularizer = None
        if penalty is not None:
            regularizer = Regularizer(model, penalty, mode=mode)
            regularizer.scale = scale
            if mode != "loss":
                regularizer.attach(optimizer)
        train(model, optimizer, criterion, regularizer)

    models = [network(seed, *deepcopy(extra)) for seed in range(MEMBERS)]
    stack = Stacked(models, vectorize=vectorize)
    go(stack, stack.per_member(nn.CrossEntropyLoss()), SCALES)
    for model, scale in zip(models, SCALES.tolist(), strict=True):
        go(model, nn.CrossEntropyLoss(), scale)
    return [member.state_dict() for member in stack.members()], [model.state_dict() for model in models]


class Looks(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 1e9 else 2 * x
