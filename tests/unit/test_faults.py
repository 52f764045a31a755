"""Faults that other libraries' penalties and selections were seen to have: each a test, named by its symptom."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_penalty, each_proximal
from tests.helpers import assert_bit_equal, assert_close, make_data, make_model
from torchreg import L1, L2, GroupLasso, MaxNorm, Regularizer


def loss_of(model):
    x, y = make_data()
    return F.mse_loss(model(x), y)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def test_every_layer_is_regularized_not_just_the_first():
    model = make_model(widths=(6, 5, 4, 3))
    Regularizer(model, L1(1.0)).value().backward()
    assert all((layer.weight.grad.abs() == 1).all() for layer in model if isinstance(layer, nn.Linear))


def test_the_penalty_is_there_at_the_second_step_and_at_every_later_one():
    regularizer = Regularizer(make_model(), L2(1.0))
    values = [regularizer.value().item() for _ in range(3)]
    assert values[0] > 0
    assert len(set(values)) == 1


def test_l2_is_the_squared_norm():
    w = torch.tensor([3.0, 4.0])
    assert L2(2.0).value(w) == 25  # not 5, the norm


def test_weights_of_normalizations_are_not_decayed():
    norms = [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *norms)
    penalized = [entry.name for entry in Regularizer(model, L2(1.0)).entries if entry.is_penalized]
    assert penalized == ["0.weight"]


@pytest.mark.parametrize("name", ["unbiased_head", "bias_head", "normalizer", "debiased"])
def test_a_name_that_contains_bias_or_norm_is_not_exempt(name):
    model = nn.ModuleDict({name: nn.Linear(3, 2)})
    penalized = [entry.name for entry in Regularizer(model, L2(1.0)).entries if entry.is_penalized]
    assert penalized == [f"{name}.weight"]


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_a_later_reader_of_the_gradient_sees_that_of_the_loss(mode):
    model = make_model()
    optimizer = sgd(model)
    Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    loss_of(model).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert_bit_equal([p.grad for p in model.parameters()], gradients)


@each_proximal
@pytest.mark.parametrize(("scale", "lr"), [(0.0, 0.1), (1.0, 0.0)], ids=["strength 0", "lr 0, a warm-up's first step"])
def test_zero_weights_do_not_become_nan(case, scale, lr):
    model = make_model()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = sgd(model, lr)
    regularizer = Regularizer(model, case.penalty, mode="prox").attach(optimizer)
    regularizer.scale = scale
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_close([p.detach() for p in model.parameters()], before)


@each_penalty
def test_the_penalty_in_the_loss_has_a_gradient(case):
    model = make_model()
    Regularizer(model, case.penalty).value().backward()
    for layer in (model[0], model[2]):
        assert_close(
            layer.weight.grad, torch.autograd.grad(case.formula(layer.weight), layer.weight)[0], tolerance=1e-9
        )
        assert layer.weight.grad.any()


@pytest.mark.parametrize("fused", [False, True])
def test_under_loss_scaling_the_penalty_counts_as_much_as_without(fused):
    runs = []
    for scaled in (True, False):
        model = make_model(dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        Regularizer(model, L2(0.5), mode="grad").attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        x, y = make_data(torch.float32)
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        runs.append([p.detach() for p in model.parameters()])
    assert_close(*runs, tolerance=1e-6)


def test_equal_groups_are_penalized_equally_and_without_nan():
    w = torch.ones(4, 3, dtype=torch.float64)
    for result in (GroupLasso(0.1).gradient(w), GroupLasso(0.1).prox(w, 1.0), GroupLasso(0.1).gradient(0 * w)):
        assert result.isfinite().all()
        assert (result == result[0, 0]).all()


def test_each_term_is_there_to_log_and_none_in_the_validation_loss():
    model = make_model()
    regularizer = Regularizer(model, L1(0.1) + L2(0.2))
    assert regularizer.terms().keys() == {"L1", "L2"}
    criterion, (x, y) = regularizer.penalize(nn.MSELoss()), make_data()
    model.eval()
    assert_bit_equal(criterion(model(x), y), F.mse_loss(model(x), y))


def test_a_model_that_was_built_long_ago_is_regularized():
    model = make_model()
    loss_of(model).backward()
    model.zero_grad()
    optimizer = sgd(model)
    Regularizer(model, MaxNorm(0.1), mode="prox").attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    assert model[0].weight.norm(dim=1).max() <= 0.1 + 1e-12
