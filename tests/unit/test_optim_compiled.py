"""Compiled steps with decoupled decay: those of ``torch.compile``, and the kernel of ``AdamW(compile=True)``."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchreg.optim.compiled as kernels_of_adam
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_compiles_twice_at_most,
    make_data,
    make_model,
    train,
    weights_of,
)
from tests.optimizers import COUPLINGS, FORMS, each_form
from tests.unit.training import a_weight, step, weights
from torchreg import L1
from torchreg.optim import SGDW, AdamW, Proximal
from torchreg.schedules import cosine, linear

# -- torch.compile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGDW, AdamW])
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_a_compiled_step_is_the_eager_one_and_a_scheduled_decay_does_not_compile_it_anew(kind, tensor, counter):
    (x, y), runs = make_data(), []
    for compiled in (True, False):
        model = make_model(widths=(6, 7, 6, 5, 3))
        groups = [
            {"params": [param], "coupling": COUPLINGS[i % 4], **form}
            for i, (param, form) in enumerate(zip(model.parameters(), FORMS.values(), strict=True))
        ]
        schedule = (lambda t: torch.tensor(1 / (t + 1), dtype=torch.float64)) if tensor else cosine(steps=10)
        optimizer = kind(groups, lr=0.01, weight_decay=0.1, decay_schedule=schedule)

        def backward(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()

        if compiled:
            step = torch.compile(lambda optimizer=optimizer: optimizer.step(), backend=counter)
            assert_compiles_twice_at_most(step, backward, counter)
        else:
            train(model, optimizer, steps=4)
        runs.append(weights_of(model))
    assert_close(*runs, tolerance=1e-6)


# -- compile=True -------------------------------------------------------------------------------------------------


@each_form
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsgrad": True, "coupling": "constant"},
        {"maximize": True, "fused": True},
        {"lr": torch.tensor(0.01, dtype=torch.float64)},
    ],
    ids=str,
)
def test_the_compiled_kernel_makes_the_usual_step(form, options, monkeypatch):
    monkeypatch.setattr(kernels_of_adam, "_FROM", 10)  # so that biases take the usual step
    ways = {}
    for compile in (False, True):
        model = make_model()
        optimizer = AdamW(
            model.parameters(), **{"lr": 0.01, **options}, weight_decay=0.1, decay_schedule=linear(10), **form,
            compile=compile,
        )  # fmt: skip
        train(model, optimizer, steps=12, criterion=lambda out, y: F.mse_loss(out.clamp(-9, 9), y))
        ways[compile] = weights_of(model), optimizer
    comes_after = "cautious" in form or form.get("decay") == "L1"
    matrices = {param for param in model.parameters() if param.ndim == 2}
    assert set(ways[True][1]._kernels) == (matrices if comes_after else set())
    assert set(ways[False][1]._kernels) == set()
    assert_close(ways[False][0], ways[True][0])


def test_a_kernel_is_told_of_weights_without_a_gradient_of_zeros_and_of_a_decay_that_ends(monkeypatch):
    monkeypatch.setattr(kernels_of_adam, "_FROM", 1)
    results = []
    for compile in (False, True):
        first, second = (weights(0.5, -0.5, 0.0, 0.002) for _ in range(2))
        optimizer = AdamW([first, second], lr=0.1, weight_decay=0.1, cautious=True, compile=compile)
        for t in range(4):
            first.grad = torch.tensor([0.0, 0.0, 0.0, float(t)], dtype=torch.float64)
            second.grad = None if t < 2 else torch.ones_like(second)
            optimizer.param_groups[0]["weight_decay"] = 0.1 * (t != 2)
            optimizer.step()
        results.append([first.detach(), second.detach()])
    assert_close(*results)
    assert not torch.equal(results[0][0][:2].abs(), torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("begins", [True, False], ids=["traced from the first step", "traced later"])
def test_a_step_with_kernels_of_its_own_is_not_traced(begins, monkeypatch):
    monkeypatch.setattr(kernels_of_adam, "_FROM", 1)
    results = []
    for traced in (False, True):
        w = weights(0.5, -0.5, 0.0, 0.002)
        optimizer = AdamW([w], lr=0.1, weight_decay=0.1, cautious=True, compile=True)
        step_of = torch.compile(lambda optimizer=optimizer: optimizer.step(), backend="eager")
        for t, decay in enumerate((0.1, 0.5, 0.0, 0.3)):
            w.grad = torch.tensor([1.0, -1.0, 0.5, float(t)], dtype=torch.float64)
            optimizer.param_groups[0]["weight_decay"] = decay
            (step_of if traced and (begins or t) else optimizer.step)()
        results.append(w.detach())
    assert_close(*results)


def test_a_mixin_of_a_user_acts_after_the_kernel(monkeypatch):
    class Thresholded(Proximal, AdamW):
        def _take_proximal_step_(self, penalty, param, group, old):
            param.copy_(penalty.prox(param, group["lr"] * group["scale"]))

    monkeypatch.setattr(kernels_of_adam, "_FROM", 1)
    results = []
    for compile in (False, True):
        w = nn.Parameter(torch.tensor([[0.5, -0.5, 0.02, 1.0]], dtype=torch.float64))
        optimizer = Thresholded([w], L1(0.5), lr=0.05, weight_decay=0.3, cautious=True, compile=compile)
        for _ in range(3):
            w.grad = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
            optimizer.step()
        optimizer.fix_support()
        w.grad = torch.ones_like(w)
        optimizer.step()
        results.append(w.detach())
    assert_close(*results)
    assert results[1][0, 2] == 0


@pytest.mark.parametrize("compile", [False, True])
@each_form
def test_the_start_of_an_option_that_is_set_later_is_before_the_step(form, compile, monkeypatch):
    monkeypatch.setattr(kernels_of_adam, "_FROM", 1)
    w = weights(1.0, -2.0, 3.0, 0.5)
    optimizer = AdamW([w], lr=0.1, weight_decay=0.5, **{**form, "towards": "zero"}, compile=compile)
    step(optimizer, 1.0)
    before = w.detach().clone()
    optimizer.param_groups[0]["towards"] = "start"
    step(optimizer, 1.0)
    assert_bit_equal(optimizer._start(w), before)


def test_strides_of_weights_gradients_and_moments_may_differ(monkeypatch):
    monkeypatch.setattr(kernels_of_adam, "_FROM", 1)
    start = torch.arange(24.0, dtype=torch.float64).view(1, 2, 3, 4).sub(12).div(10)
    gradient = start.transpose(2, 3).contiguous().transpose(2, 3)
    results = []
    for compile in (False, True):
        params = [
            nn.Parameter(start.clone(memory_format=layout)) for layout in (torch.channels_last, torch.contiguous_format)
        ]
        made = partial(AdamW, lr=0.1, weight_decay=0.1, cautious=True, compile=compile)
        first, second = (made([param]) for param in params)
        params[0].grad = gradient
        first.step()
        second.load_state_dict(first.state_dict())
        params[1].data.copy_(params[0])
        assert not second.state[params[1]]["exp_avg"].is_contiguous()
        params[1].grad = -gradient
        second.step()
        results.append(params[1].detach())
    assert_close(*results)


def test_a_compiled_step_cannot_be_differentiated():
    with pytest.raises(ValueError, match=r"\AAdamW: compile=True needs differentiable=False, got True\Z"):
        AdamW([a_weight()], compile=True, differentiable=True)
