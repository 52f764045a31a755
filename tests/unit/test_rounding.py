"""A penalty that low-precision weights round away is told of, once, by name; any other is not."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.cases import each_step_mode
from torchreg import L1, L2, GroupLasso, Nuclear, Regularizer, linear

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def trained(penalty, mode, dtype, steps=3, lr=0.1, gradient=1.0, optimizer=torch.optim.SGD, **options):
    """What is said in a few steps, and how far the penalty has moved the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5))
    regularizer = Regularizer(model, penalty, mode=mode, **options)
    model.to(dtype)  # after the regularizer was made
    before = model[0].weight.detach().clone()
    made = optimizer(model.parameters(), lr=lr)
    regularizer.attach(made)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            for param in model.parameters():
                param.grad = torch.full_like(param, gradient)
            made.step()
    return [str(warning.message) for warning in said], not torch.equal(model[0].weight, before), regularizer


@HALF
@each_step_mode
@pytest.mark.parametrize("penalty", [L2(1e-4), L1(1e-7), GroupLasso(1e-7), L1(1e-7) + L2(1e-4)], ids=repr)
def test_it_is_told_once_by_name(penalty, mode, dtype):
    messages, has_moved, regularizer = trained(penalty, mode, dtype, gradient=0.0 if mode != "grad" else 1.0)
    (message,) = messages
    assert "0.weight, 2.weight rounds away" in message
    assert f"in mode {mode!r}" in message
    assert str(dtype).removeprefix("torch.") in message
    assert mode == "grad" or not has_moved  # it is true
    assert regularizer._listeners == []


@HALF
@each_step_mode
@pytest.mark.parametrize("penalty", [L2(0.3), L1(0.1), GroupLasso(0.05), Nuclear(0.05)], ids=repr)
def test_a_penalty_that_has_an_effect_is_not_told_of(penalty, mode, dtype):
    if mode == "decoupled" and penalty == L2(0.3):
        penalty = L2(1.0)
    messages, has_moved, _ = trained(penalty, mode, dtype, gradient=0.0)
    assert not messages
    assert has_moved


@each_step_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_full_precision_is_never_looked_at(mode, dtype):
    messages, _, regularizer = trained(L2(1e-12), mode, dtype)
    assert not messages
    assert regularizer._listeners == []


@pytest.mark.parametrize("strength", [L1(0.0), L2(0.0)], ids=repr)
def test_no_strength_is_nothing_lost(strength):
    assert not trained(strength, "decoupled", torch.bfloat16)[0]


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_a_warmup_does_not_count(mode):
    def warming(params, lr):
        optimizer = torch.optim.SGD(params, lr=lr)
        torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-5, total_iters=100)
        return optimizer

    assert not trained(L2(1.0), mode, torch.bfloat16, optimizer=warming)[0]
    assert not trained(L2(1.0), mode, torch.bfloat16, schedule=linear(100))[0]
    assert trained(L2(1e-4), mode, torch.bfloat16, schedule=linear(100))[0]


def test_a_parameter_whose_gradient_comes_later_is_looked_at_then():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L2(1e-5), mode="decoupled").attach(optimizer)
    for place in (0, 1):
        model[place].weight.grad = torch.ones_like(model[place].weight)
        with pytest.warns(RuntimeWarning, match=rf"of {place}\.weight rounds away"):
            optimizer.step()
        model[place].weight.grad = None
    assert regularizer._listeners == []


def test_other_listeners_hear_every_step_and_a_copy_is_not_told_again():
    model = nn.Linear(4, 4).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L2(1e-5), mode="decoupled").attach(optimizer)
    heard = []
    regularizer._listeners.append(lambda *_: heard.append(1))
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.warns(RuntimeWarning, match="rounds away"):
        optimizer.step()
    optimizer.step()
    optimizer.step()
    assert len(heard) == 3
    _, twin = copy.deepcopy((regularizer, optimizer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin.step()


def test_under_a_fused_scaler_the_scale_does_not_matter():
    for strength, is_told in ((1e-4, True), (1.0, False)):
        model = nn.Linear(4, 4).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        Regularizer(model, L2(strength), mode="grad").attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scaler.scale(torch.ones(1))
        model.weight.grad, model.bias.grad = torch.full((4, 4), 2.0**10).half(), torch.zeros(4).half()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            scaler.step(optimizer)
        assert len(said) == is_told
