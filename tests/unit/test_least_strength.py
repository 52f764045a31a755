"""The least strength that AutoStrength tunes: one whose step changes the weights by a millionth of their norm."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, make_data, make_model
from torchreg import L1, L2, GroupLasso, LogSum, Regularizer
from torchreg.tuning import AutoStrength

X, Y = make_data()
HELD_OUT = X.flip(0) + 0.3, Y.flip(0) - 0.2
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


def trained(penalty, mode, make_optimizer, *, tunes, scale=1.0, steps=1):
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    regularizer = Regularizer(model, penalty, mode=mode)
    regularizer.scale = scale
    if tunes:
        auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), every=1, lr=1e-3).attach(optimizer)
    else:
        regularizer.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    weights = torch.cat([a.param.detach().flatten() for a in regularizer.entries if a.acting is not None])
    return (weights, auto) if tunes else weights


def norm_of_weights():
    model = make_model()
    penalized = [a.param for a in Regularizer(model, L2(1.0)).entries if a.acting is not None]
    return torch.cat([param.detach().flatten() for param in penalized]).norm().item()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), GroupLasso(0.1), LogSum(0.1)], ids=str)
def test_a_step_at_the_least_strength_changes_the_weights_by_a_millionth(penalty, mode, name):
    if name == "Adam" and mode == "grad" and not isinstance(penalty, L2):
        pytest.skip("Adam's first step is alike for small changes of the gradient: too flat for finite differences")
    _, auto = trained(penalty, mode, OPTIMIZERS[name], tunes=True, scale=1e-7)
    least = auto.regularizers[0].scale
    assert least > 1e-7 * math.exp(2e-3)  # more than a step of the tuning would give
    h = 1e-6
    with_, without = (trained(penalty, mode, OPTIMIZERS[name], tunes=False, scale=scale) for scale in (h, 0.0))
    size = without.norm().item() if mode == "prox" else norm_of_weights()  # what the operator is applied to
    assert_close((with_ - without).norm().item() / h * least / size / 1e-6, 1.0, 1e-3)


def test_a_strength_above_it_moves_as_without():
    _, auto = trained(L2(0.1), "decoupled", OPTIMIZERS["SGD"], tunes=True)
    assert_close(abs(math.log(auto.strengths["L2"] / 0.1)), 1e-3)


def test_a_falling_learning_rate_does_not_raise_it():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    auto = AutoStrength(Regularizer(model, L2(1e-8), mode="decoupled"), HELD_OUT, nn.MSELoss(), every=1, lr=1e-9)
    auto.attach(optimizer)
    for lr in (0.1, 0.01, 0.001):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
        assert_close(auto.strengths["L2"] / 1e-5, 1.0, 1e-6)


def test_the_largest_strength_goes_before_it():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L2(1e-8), mode="decoupled")
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), every=1, bounds=(1e-8, 2e-8)).attach(optimizer)
    F.mse_loss(model(X), Y).backward()
    optimizer.step()
    assert_close(auto.strengths["L2"], 2e-8)


@pytest.mark.parametrize("weight", [0.0, math.inf, 1e300])
def test_weights_of_no_size_or_too_large_a_size_have_none(weight):
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    auto = AutoStrength(Regularizer(model, L1(1e-6), mode="prox"), HELD_OUT, nn.MSELoss())
    auto._tuned[0].note(1e-6, float(model.weight.detach().square().sum()))
    assert auto._tuned[0].reach == 0.0
    auto.attach(optimizer).remove()
    assert auto.strengths == {"L1": 1e-6}


def test_it_is_saved_and_states_without_it_are_read():
    _, auto = trained(L2(0.1), "decoupled", OPTIMIZERS["SGD"], tunes=True, steps=3)
    state = auto.state_dict()
    other = AutoStrength(Regularizer(make_model(), L2(0.2), mode="decoupled"), HELD_OUT, nn.MSELoss())
    other.load_state_dict(state)
    assert_close(other._tuned[0].reach, 2 * auto._tuned[0].reach)  # its unit is twice as large
    old = {**state, "knobs": {name: numbers[:5] for name, numbers in state["knobs"].items()}}
    other.load_state_dict(old)
    assert other._tuned[0].reach == 0.0
    assert_bit_equal(torch.tensor(other.strengths["L2"]), torch.tensor(auto.strengths["L2"]))


@pytest.mark.parametrize("per", ["regularizer", "parameter"])
def test_a_run_from_far_below_ends_as_one_from_near_by(per):
    ends = []
    for start in (1e-7, 1e-3):
        torch.manual_seed(0)
        x, held_out = (torch.randn(60, 40, dtype=torch.float64) for _ in range(2))
        y, wanted = (each[:, :1] + torch.randn(60, 1, dtype=torch.float64) for each in (x, held_out))
        model = nn.Linear(40, 1, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        regularizer = Regularizer(model, L2(start), mode="decoupled")
        auto = AutoStrength(regularizer, (held_out, wanted), nn.MSELoss(), every=1, per=per).attach(optimizer)
        for _ in range(300):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        ends.append(next(iter(auto.strengths.values())))
    assert abs(math.log(ends[0] / ends[1])) < 0.5
    assert 0.1 < ends[0] < 10
