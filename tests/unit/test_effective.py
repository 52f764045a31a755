"""Penalties on what a function computes from several parameters: value and gradients are those of autograd."""

import copy
import io

import pytest
import torch

from tests.helpers import assert_bit_equal, assert_close
from tests.unit.adapting import (
    LoRA,
    adapted,
    all_updates,
    batch,
    by_autograd,
    each_case,
    each_penalty,
    gradients,
    loss_of,
    product,
    two_layers,
    update,
)
from torchreg import L1, L2, L2SP, Effective, Regularizer, linear


@each_penalty
@each_case
def test_value_and_gradients_are_those_of_autograd(case, penalty):
    make, effective, weights_of = case
    expected = by_autograd(make, weights_of, penalty)
    model = make()
    regularizer = Regularizer(model, effective(penalty))
    assert_close(regularizer.value(), sum(penalty.value(w) for w in weights_of(model)))
    (loss_of(model) + regularizer.value()).backward()
    assert_close(gradients(model), expected, 1e-10)

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, effective(penalty), mode="grad").attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    assert_close(gradients(model), expected, 1e-10)


@each_case
def test_terms_scales_multiples_and_schedules(case):
    make, effective, weights_of = case
    penalty = L1(0.2) + L2(0.3)
    model = make()
    regularizer = Regularizer(model, 2 * effective(penalty))
    expected = {
        "L1": sum(0.4 * w.abs().sum() for w in weights_of(model)),
        "L2": sum(0.3 * w.square().sum() for w in weights_of(model)),
    }
    assert_close(regularizer.terms(), expected)
    regularizer.scale = 3.0
    assert_close(regularizer.value(), 3 * (expected["L1"] + expected["L2"]))
    names = [a.name for a in regularizer.entries if a.penalty]
    regularizer.scale = dict(zip(names, range(1, 9), strict=False))
    own = [k * 2 * penalty.value(w) for k, w in enumerate(weights_of(model), 1)]
    assert_close(regularizer.value(), sum(own))

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = linear(steps=4, start=0.5, end=1.0)
    Regularizer(model, effective(penalty), mode="grad", schedule=schedule).attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    assert_close(gradients(model), by_autograd(make, weights_of, penalty, 0.5), 1e-10)


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_what_is_frozen_stays_and_what_is_thawed_moves(mode):
    model = adapted()
    model[0].A.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules="0"), mode=mode)
    if mode == "grad":
        regularizer.attach(optimizer)

    def step():
        optimizer.zero_grad()
        (loss_of(model) + (regularizer.value() if mode == "loss" else 0)).backward()
        optimizer.step()
        return gradients(model)

    def expected():
        twin = copy.deepcopy(model)
        twin.zero_grad()
        (loss_of(twin) + update(twin[0]).square().sum() / 2).backward()
        return gradients(twin)

    hoped = expected()
    assert "0.A" not in hoped
    assert_close(step(), hoped, 1e-10)
    model[0].A.requires_grad_(True)
    model[0].B.requires_grad_(False)
    model[0].B.grad = None
    hoped = expected()
    assert "0.B" not in hoped
    assert_close(step(), hoped, 1e-10)
    model[0].A.requires_grad_(False)
    assert [a.status for a in regularizer.entries if a.name == "0.update()"] == ["- frozen"]


def test_a_reference_is_the_effective_weight_at_the_start_and_is_saved():
    model = adapted()
    regularizer = Regularizer(model, Effective(L2SP(2.0), update, modules=LoRA))
    assert regularizer.value() == 0
    start = [w.detach().clone() for w in all_updates(model)]
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.3)
    expected = sum((w - s).square().sum() for w, s in zip(all_updates(model), start, strict=True))
    assert_close(regularizer.value(), expected)
    state = regularizer.state_dict()
    assert list(state["references"]) == ["0.update()", "2.update()"]
    other = Regularizer(model, Effective(L2SP(2.0), update, modules=LoRA))
    assert other.value() == 0
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_close(other.value(), expected)


@each_case
def test_loss_scaling_and_accumulation(case):
    make, effective, weights_of = case
    model = make().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    Regularizer(model, effective(L2(0.5)), mode="grad").attach(optimizer)
    x = batch().float()
    for part in x.split(8):
        scaler.scale(model(part).square().mean() / 2).backward()
    scaler.step(optimizer)
    scaler.update()
    twin = make().float()
    (twin(x).square().mean() + sum(w.square().sum() / 4 for w in weights_of(twin))).backward()
    after = {name: p - 0.1 * p.grad for name, p in twin.named_parameters() if p.grad is not None}
    assert_close({name: p for name, p in model.named_parameters() if name in after}, after, 1e-5)


def test_a_closure_minimizes_the_penalized_loss():
    def train(mode):
        model = two_layers()
        optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=8)
        regularizer = Regularizer(model, Effective(L2(0.5), product), mode=mode)
        if mode == "grad":
            regularizer.attach(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model) + (regularizer.value() if mode == "loss" else 0)
            loss.backward()
            return loss

        optimizer.step(closure)
        return dict(model.named_parameters())

    assert_close(train("grad"), train("loss"), 1e-9)


def test_an_l2_may_stand_beside_weight_decay_of_the_parameters():
    model = adapted()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    Regularizer(model, Effective(L2(1.0), update, modules=LoRA), mode="grad").attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.2
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex128])
def test_other_dtypes(dtype):
    model = adapted().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules="0"), mode="grad").attach(optimizer)
    expected = torch.autograd.grad(update(model[0]).abs().square().sum() / 2, [model[0].A, model[0].B])
    assert regularizer.value().dtype == (torch.float32 if dtype == torch.bfloat16 else torch.float64)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close([model[0].A.grad, model[0].B.grad], list(expected), 1e-1 if dtype == torch.bfloat16 else 1e-10)


def test_autocast_does_not_round_the_weight():
    model = two_layers().float()
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = regularizer.value()
    assert_bit_equal(value, regularizer.value())


def test_a_spoilt_weight_stays_visible():
    model = two_layers()
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    assert regularizer.value().isnan()
