"""A step, a held-out loss, and the slope of that by finite differences, for the tests of tuned strengths."""

from copy import deepcopy

import torch
import torch.nn.functional as F

from tests.helpers import make_data, make_model
from torchreg import Regularizer
from torchreg.tuning.online.hypergradient import hypergradients, penalty_updates_of

X, Y = make_data()
HELD_OUT = X.flip(0) + 0.3, Y.flip(0) - 0.2


def step(model, optimizer, batch):
    optimizer.zero_grad()
    F.mse_loss(model(X[batch]), Y[batch]).backward()
    optimizer.step()


def measured(penalties, make_optimizer, steps=3):
    """The hypergradient of each regularizer in the last step, and how the held-out loss depends on its scale."""
    model = make_model()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(0.7).add_(0.05)  # no ties among weights, where a subgradient is one of many
    optimizer = make_optimizer(model.parameters())
    regularizers = [Regularizer(model, penalty, mode=mode).attach(optimizer) for penalty, mode in penalties]
    for number in range(steps - 1):
        step(model, optimizer, slice(number, number + 12))
    state = deepcopy((model.state_dict(), optimizer.state_dict()))

    def loss_after(scales):
        model.load_state_dict(state[0])
        optimizer.load_state_dict(deepcopy(state[1]))
        for regularizer, scale in zip(regularizers, scales, strict=True):
            regularizer.scale = scale
        step(model, optimizer, slice(20, 30))
        return F.mse_loss(model(HELD_OUT[0]), HELD_OUT[1])

    acts = []
    for regularizer in regularizers:
        regularizer._listeners.append(lambda *at: acts.extend(penalty_updates_of(*at)))
    loss = loss_after([1.0] * len(regularizers))
    for regularizer in regularizers:
        regularizer._listeners.clear()
    weights = list(dict.fromkeys(act.param for act in acts))
    found = dict.fromkeys(regularizers, 0.0)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        own = [act for act in acts if act.param is weight]
        for act, slope in zip(own, hypergradients(own, gradient), strict=True):
            found[act.regularizer] += slope.item()
    expected, h = [], 2e-5
    for number in range(len(regularizers)):
        at = [loss_after([1 + h * k * (i == number) for i in range(len(regularizers))]).item() for k in (-2, -1, 1, 2)]
        expected.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h))
    return list(found.values()), expected


def assert_slopes_agree(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours - theirs) <= 1e-6 * abs(theirs) + 1e-11
        assert theirs != 0
