"""Many optimizers, parameters that come later, and models called as functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_step_mode
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model, train, weights_of
from torchreg import L1, L2, Regularizer, linear


def halves(model, **options):
    return [torch.optim.SGD(model[i].parameters(), lr=0.1, **options) for i in (0, 2)]


def train_with(model, optimizers, steps):
    x, y = make_data()
    for _ in range(steps):
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    return weights_of(model)


@each_step_mode
def test_one_regularizer_over_two_optimizers_is_that_over_one(mode):
    apart, together = make_model(), make_model()
    optimizers, single = halves(apart), torch.optim.SGD(together.parameters(), lr=0.1)
    regularizer = Regularizer(apart, L1(0.1) + L2(0.2), mode=mode, schedule=linear(10)).attach(*optimizers)
    Regularizer(together, L1(0.1) + L2(0.2), mode=mode, schedule=linear(10)).attach(single)
    assert_close(train_with(apart, optimizers, 5), train(together, single, 5))
    assert regularizer.state_dict()["steps"] == 5  # the last optimizer's
    regularizer.remove()
    assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in optimizers)


def test_two_optimizers_must_hold_all_parameters_between_them():
    model = make_model()
    with pytest.raises(ValueError, match=r"does not hold 2\.weight"):
        Regularizer(model, L2(0.1), mode="grad").attach(halves(model)[0])


@each_step_mode
def test_a_parameter_that_is_thawed_and_added_later_is_penalized_from_then_on(mode):
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    Regularizer(model, L1(0.5), mode=mode).attach(optimizer)
    frozen = model[0].weight.detach().clone()
    train(model, optimizer, 2)
    assert_bit_equal(model[0].weight.detach(), frozen)

    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.1})
    reference = make_model()
    reference.load_state_dict(model.state_dict())
    other = torch.optim.SGD(reference.parameters(), lr=0.1)
    Regularizer(reference, L1(0.5), mode=mode).attach(other)
    assert_close(train(model, optimizer, 2), train(reference, other, 2))
    assert_differs(model[0].weight.detach(), frozen)


def test_a_parameter_of_another_model_in_the_optimizer_is_left_alone():
    model, other = make_model(), nn.Linear(2, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    Regularizer(model, L2(0.5), mode="decoupled").attach(optimizer)
    before = other.weight.detach().clone()
    other.weight.grad = torch.zeros_like(other.weight)
    optimizer.step()
    assert_bit_equal(other.weight.detach(), before)


def test_functional_call_uses_the_penalty_of_the_weights_it_is_given():
    model, (x, y), penalty = make_model(), make_data(), L1(0.1) + L2(0.2)

    def objective(weights):
        loss = F.mse_loss(torch.func.functional_call(model, weights, x), y)
        return loss + sum(penalty.value(w) for w in weights.values() if w.ndim > 1)

    weights = {name: p.detach() for name, p in model.named_parameters()}
    functional = torch.func.grad(objective)(weights)
    (F.mse_loss(model(x), y) + Regularizer(model, penalty).value()).backward()
    assert_close(functional, {name: p.grad for name, p in model.named_parameters()})


def test_a_stack_of_models_is_penalized_member_by_member():
    models, penalty = [make_model() for _ in range(3)], L1(0.1) + L2(0.2)
    for i, model in enumerate(models):
        nn.init.normal_(model[0].weight, std=1.0 + i)
    stacked, _ = torch.func.stack_module_state(models)
    values = torch.func.vmap(penalty.value)(stacked["0.weight"].detach())
    assert_close(values, torch.stack([penalty.value(model[0].weight) for model in models]).detach())


@each_step_mode
def test_a_parameter_in_two_optimizers_would_count_twice_and_is_refused(mode):
    model = make_model()
    one, two = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    for optimizers in ((one, two), (one, one)):
        with pytest.raises(ValueError, match=r"must be in one optimizer, got several that have 0\.weight, 2\.weight"):
            Regularizer(model, L2(0.1), mode=mode).attach(*optimizers)
    assert not one._optimizer_step_pre_hooks
