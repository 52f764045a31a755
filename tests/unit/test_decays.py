"""The forms of decoupled decay: L1, towards the start, cautious, scheduled; compiled, differentiated, complex."""

import copy
from functools import partial

import numpy as np
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
from tests.optimizers import (
    COUPLINGS,
    FORMS,
    each_coupling,
    each_decoupled,
    each_decoupled_or_made,
    each_form,
    each_kernel,
    undecayed,
)
from tests.unit.training import a_weight, one_step
from torchreg import L1
from torchreg.optim import SGDW, AdamW, Proximal, decoupled
from torchreg.schedules import cosine, linear


def weights(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def step(optimizer, gradient):
    (w,) = optimizer.param_groups[0]["params"]
    w.grad = torch.as_tensor(gradient, dtype=w.dtype).expand_as(w).clone()
    optimizer.step()
    return w.detach()


# -- what each does ---------------------------------------------------------------------------------------------------


@each_decoupled_or_made
def test_l1_leaves_exact_zeros_and_takes_the_same_from_all_others(ours, base, options):
    w = weights(1.0, -1.0, 0.05, -0.05, 0.0)
    optimizer = ours([w], **options, weight_decay=0.1, coupling="constant", decay="L1")
    assert_close(step(optimizer, 0.0), torch.tensor([0.9, -0.9, 0, 0, 0], dtype=torch.float64))
    assert not w[2:].any()


@each_decoupled_or_made
def test_towards_the_start_the_distance_shrinks_and_l1_makes_it_zero(ours, base, options):
    start = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    away = torch.tensor([0.5, -0.05, 0.5], dtype=torch.float64)
    for decay, remaining in (("L2", 0.9 * away), ("L1", torch.tensor([0.4, 0.0, 0.4], dtype=torch.float64))):
        w = nn.Parameter(start.clone())
        optimizer = ours([w], **options, weight_decay=0.1, coupling="constant", decay=decay, towards="start")
        w.data.add_(away)
        assert_close(step(optimizer, 0.0), start + remaining)
    assert w[1].item() == start[1].item()


def test_a_group_that_is_added_later_decays_towards_its_own_start():
    first, second = a_weight(1.0), a_weight(2.0)
    optimizer = SGDW([first], lr=0.1, weight_decay=0.5, coupling="constant", towards="start")
    first.data.fill_(3.0)
    second.data.fill_(4.0)
    optimizer.add_param_group({"params": [second]})
    second.data.fill_(6.0)
    one_step(optimizer)
    assert_close([first.item(), second.item()], [2.0, 5.0])


@pytest.mark.parametrize("decay", ["L2", "L1"])
@pytest.mark.parametrize("maximize", [False, True])
def test_cautious_decay_acts_where_the_update_moves_the_same_way_and_nowhere_else(decay, maximize):
    w = weights(1.0, 1.0, -1.0, -1.0, 1.0)
    optimizer = SGDW([w], lr=0.1, weight_decay=1.0, decay=decay, cautious=True, maximize=maximize)
    sign = -1 if maximize else 1
    moved = torch.tensor([0.95, 1.05, -1.05, -0.95, 1.0], dtype=torch.float64)
    decays = torch.tensor([0.1, 0.0, 0.0, -0.1, 0.1], dtype=torch.float64)  # also where nothing moves
    gradient = sign * torch.tensor([0.5, -0.5, 0.5, -0.5, 0.0], dtype=torch.float64)
    assert_close(step(optimizer, gradient), moved - decays)


def test_cautious_decay_of_tiny_weights_of_half_precision_looks_at_their_signs():
    w = weights(1e-4, dtype=torch.float16)
    optimizer = SGDW([w], lr=1.0, weight_decay=0.5, cautious=True)
    assert_close(step(optimizer, -1e-4).double(), torch.tensor([2e-4]).double(), tolerance=1e-6)  # moves away: no decay


def test_cautious_thresholds_are_as_exact_as_the_weights():
    optimizer = SGDW([weights(1.0)], lr=1.0, weight_decay=0.1, decay="L1", cautious=True)
    assert_close(step(optimizer, 0.0), torch.tensor([0.9], dtype=torch.float64))


def test_weights_that_the_threshold_towards_the_start_leaves_alone_keep_every_bit():
    start, moved = torch.rand(1000) * 0.1, torch.rand(1000)
    w = nn.Parameter(start.clone())
    optimizer = SGDW([w], lr=1.0, weight_decay=0.1, decay="L1", towards="start", cautious=True)
    w.data.copy_(moved)
    ahead = (moved > start).float() * 0.1  # leads away from the start
    expected = moved + ahead
    assert_bit_equal(step(optimizer, -ahead)[moved > start], expected[moved > start])


@each_form
@each_coupling
def test_complex_weights_decay_by_their_magnitudes(form, coupling):
    start, w0 = np.array([1.0 + 1.0j, -2.0j, 0.01 + 0.01j]), np.array([2.0 + 1.0j, 1.0 - 2.0j, 0.02 + 0.0j])
    gradient = np.array([1.0 - 1.0j, -1.0 - 1.0j, 0.0])
    w = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = SGDW([w], lr=0.5, weight_decay=0.2, coupling=coupling, **form)
    w.data.copy_(torch.from_numpy(w0))
    amount = 0.2 * {"lr": 0.5, "corrected": 0.5}.get(coupling, 1.0)
    target = start if form.get("towards") == "start" else 0
    if form.get("cautious"):
        amount = amount * ((gradient * (w0 - target).conj()).real >= 0)
    moved = w0 - 0.5 * gradient
    if form.get("decay") == "L1":
        size = np.abs(moved - target)
        expected = target + (moved - target) * np.maximum(1 - amount / np.where(size == 0, np.inf, size), 0)
    else:
        expected = moved - amount * (w0 - target)
    w.grad = torch.from_numpy(gradient)
    optimizer.step()
    assert_close(w.detach(), torch.from_numpy(expected))


# -- the schedule -----------------------------------------------------------------------------------------------------


@each_decoupled_or_made
def test_the_schedule_gets_the_number_of_steps_made_and_scales_each_groups_decay(ours, base, options):
    first, second = a_weight(), a_weight()
    optimizer = ours([first], **options, weight_decay=0.5, coupling="constant", decay_schedule=linear(steps=4))
    one_step(optimizer)
    optimizer.add_param_group({"params": [second], "weight_decay": 0.2})  # joins at the same step
    one_step(optimizer)
    assert_close([first.item(), second.item()], [0.5 * (1 - 0.75 * 0.5), 1 - 0.75 * 0.2])
    assert [group["decay_steps"] for group in optimizer.param_groups] == [2, 2]


@each_form
@each_coupling
def test_a_scheduled_scale_may_be_a_tensor(form, coupling):
    results = []
    for as_scale in (float, partial(torch.tensor, dtype=torch.float64)):
        for kind in (SGDW, AdamW):
            optimizer = kind(
                [w := weights(1.0, -2.0)],
                lr=0.1,
                weight_decay=0.1,
                coupling=coupling,
                **form,
                decay_schedule=lambda t, as_scale=as_scale: as_scale(1 / (t + 1)),
            )
            w.data.add_(1)
            for gradient in (1.0, -3.0):
                step(optimizer, gradient)
            results.append(w.detach())
    assert_close(results[:2], results[2:])


@pytest.mark.parametrize("nonsense", [-0.1, float("nan"), float("inf"), None, "half", torch.ones(2)], ids=str)
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_a_schedule_that_returns_nonsense_is_refused_before_anything_has_changed(kind, nonsense, closure):
    groups = [{"params": [w := a_weight()]}, {"params": [a_weight()]}]
    optimizer = kind(groups, lr=0.1, weight_decay=0.1, decay_schedule=lambda t: 1.0 if t < 2 else nonsense)
    optimizer.param_groups[1]["decay_steps"] = 1
    one_step(optimizer, 1.0)
    before, state = w.item(), str(optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"\A{kind.__name__}: decay_schedule[^\n]*finite number >= 0[^\n]*\Z"):
        optimizer.step((lambda: 0.0) if closure else None)
    assert w.item() == before
    assert str(optimizer.state_dict()) == state


# -- rates that are tensors, flags ------------------------------------------------------------------------------------


@each_form
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_a_learning_rate_may_be_a_tensor_of_one_element_for_weights_of_every_shape(kind, form, shape):
    results = []
    for lr in (0.125, torch.full(shape, 0.125)):
        groups = [
            {"params": [nn.Parameter(torch.full(size, 2.0)) for size in ((), (1,), (2, 3), (0,))], "coupling": coupling}
            for coupling in COUPLINGS
        ]
        optimizer = kind(groups, lr=lr, **form, weight_decay=0.25)
        params = [p for group in groups for p in group["params"]]
        for p in params:
            p.data.add_(1)
        for gradient in (1.0, -1.0):
            one_step(optimizer, gradient)
        results.append([p.detach() for p in params])
    assert_close(*results, tolerance=1e-6)


@each_decoupled_or_made
@each_form
def test_each_flag_of_the_base_is_taken(ours, base, options, form):
    for flag in {"capturable", "differentiable", "maximize"} & base([a_weight()]).defaults.keys():
        optimizer = ours([a_weight()], **options, **form, **{flag: True})
        assert optimizer.defaults[flag] is copy.deepcopy(optimizer).defaults[flag] is True


@each_decoupled
@each_form
def test_a_differentiable_step_has_the_derivatives_that_finite_differences_have(ours, base, options, form):
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    w = torch.tensor([1.53, -2.57, 0.71], dtype=torch.float64, requires_grad=True)

    def after(w, coupling):
        param = start.clone()
        optimizer = ours([param], **options, **form, coupling=coupling, weight_decay=0.07, differentiable=True)
        param.zero_().add_(w)  # now a function of w
        for value in (0.3, -0.4) if base is not torch.optim.Adamax else (0.3,):  # of whose steps torch derives one
            param.grad = torch.full_like(start, value)
            optimizer.step()
        return param.clone()

    for coupling in COUPLINGS:
        assert torch.autograd.gradcheck(partial(after, coupling=coupling), (w,))


# -- torch.compile ----------------------------------------------------------------------------------------------------


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


# -- compile=True -----------------------------------------------------------------------------------------------------


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


# -- every combination ------------------------------------------------------------------------------------------------

each_rate = pytest.mark.parametrize("rate", [float, partial(torch.tensor, dtype=torch.float64)], ids=["", "tensor"])


def after_one_step(twin, base_step, w, start, amount, decay="L2", towards="zero", cautious=False):
    """The formulas of the docstring, around a step of torch's own optimizer on a twin."""
    target = start if towards == "start" else torch.zeros_like(start)
    before_update = target + (w - target) * (1 - amount) if decay == "L2" and not cautious else w
    twin.data.copy_(before_update)
    base_step()
    moved = twin.detach().clone()
    if decay == "L2" and not cautious:
        return moved
    agrees = (w - moved) * (w - target) >= 0 if cautious else torch.ones_like(w, dtype=torch.bool)
    nearer = moved - amount * (w - target) if decay == "L2" else target + F.softshrink(moved - target, amount)
    return torch.where(agrees, nearer, moved)


@each_kernel
@each_form
@each_rate
def test_groups_with_and_without_decay_or_gradients_step_alike_at_any_rate(ours, base, options, form, rate):
    lr = options["lr"]
    with_rate = {**options, "lr": rate(lr)}
    try:
        undecayed(base, [a_weight()], **with_rate)
    except ValueError as error:
        pytest.skip(f"torch's own refuses it: {error}")
    start = torch.tensor([1.0, -1.0, 0.5, -0.02], dtype=torch.float64)
    kinds = [  # the weight decay, the coupling, the share that a step takes, whether there is a gradient
        (0.05, "lr", 0.05 * lr, True),
        (0.0, "lr", 0.0, True),
        (0.05, "independent", 0.05, True),
        (torch.tensor(0.05, dtype=torch.float64), "constant", 0.05, True),
        (0.05, "corrected", 0.05 * lr, False),
        (0.0, "constant", 0.0, False),
    ]
    for scaled in (False, True) if options.get("fused") else (False,):
        weights, twins = ([nn.Parameter(start.clone()) for _ in kinds] for _ in range(2))
        groups = [{"params": [w], "weight_decay": k[0], "coupling": k[1]} for w, k in zip(weights, kinds, strict=True)]
        optimizer = ours(groups, **with_rate, **form)
        bases = [undecayed(base, [twin], **options) for twin in twins]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        expected = [start.clone() + 0.25 for _ in kinds]
        for w in weights:
            w.data.add_(0.25)
        for t in range(3):
            gradient = torch.tensor([0.5, -0.25, -0.5, 0.125], dtype=torch.float64) * (1 if t < 2 else -2)
            for w, (*_, has_gradient) in zip(weights, kinds, strict=True):
                w.grad = None
                if has_gradient:
                    scaler.scale((w * gradient).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            for i, (_, _, amount, has_gradient) in enumerate(kinds):
                if has_gradient:
                    twins[i].grad = gradient.clone()
                    expected[i] = after_one_step(twins[i], bases[i].step, expected[i], start, amount, **form)
        tolerance = 1e-2 if base is torch.optim.Adafactor else 1e-6  # whose step depends on w before the decay
        assert_close([w.detach() for w in weights], expected, tolerance)


@each_rate
def test_a_gradient_that_comes_with_a_later_evaluation_of_the_closure_is_no_error(rate):
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            loss = closure()
            super().step()
            return loss

    first, second = a_weight(), a_weight()
    optimizer = decoupled(Twice)([first, second], lr=rate(0.1), weight_decay=0.5, cautious=True)
    evaluations = []

    def closure():
        evaluations.append(None)
        first.grad = torch.ones_like(first)
        second.grad = torch.ones_like(second) if len(evaluations) > 1 else None
        return 0.0

    optimizer.step(closure)
    assert_close([first.item(), second.item()], [0.85, 0.9])
