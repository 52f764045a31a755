"""ProxSGD and ProxAdam beside the formula: whom they penalize, what they save, the kernel, and what they refuse."""

import copy
import warnings

import pytest
import torch
from torch import nn

import torchreg.optim.compiled as compiled
from tests.cases import NoProx, each_duplicate
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_copy_trains_apart,
    make_model,
    resume,
    train,
    weights_of,
)
from tests.unit.training import a_weight, one_step
from torchreg import L1, L2, L2SP, MCP, ElasticNet, GroupLasso, Huber
from torchreg.optim import ProxAdam, ProxSGD
from torchreg.steps.kernels import at_unit_strength

MAKERS = {
    "SGD": lambda params, penalty, **options: ProxSGD(params, penalty, lr=0.05, momentum=0.9, **options),
    "Adam": lambda params, penalty, **options: ProxAdam(params, penalty, lr=0.01, **options),
}
each_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


# -- who is penalized ---------------------------------------------------------------------------------------------


@each_kind
def test_biases_are_exempt_unless_they_are_asked_for(make):
    exempt, asked = make_model(), make_model()
    train(exempt, make(exempt.parameters(), L1(50.0)), steps=3)
    train(asked, make(asked.parameters(), L1(50.0), biases=True), steps=3)
    assert not exempt[0].weight.any()
    assert exempt[0].bias.all()
    assert not asked[0].bias.any()


@each_kind
def test_what_has_no_gradient_stays(make):
    still, moving = (nn.Parameter(torch.ones(1, 2)) for _ in range(2))
    optimizer = make([still, moving], L1(100.0))
    moving.grad = torch.full((1, 2), 0.01)
    optimizer.step()
    assert_bit_equal(still.detach(), torch.ones(1, 2))
    assert not moving.any()


@each_kind
def test_each_group_has_its_own_scale_which_may_be_a_tensor(make):
    results = []
    for scale in (3.0, torch.tensor(3.0, dtype=torch.float64)):
        model = make_model()
        groups = [{"params": model[0].parameters(), "scale": scale}, {"params": model[2].parameters(), "scale": 0.0}]
        results.append(train(model, make(groups, L1(0.05)), steps=20))
        assert (model[0].weight == 0).any()
        assert model[2].weight.all()
    assert_close(*results)


@each_kind
def test_a_group_that_is_added_is_penalized(make):
    optimizer = make([nn.Parameter(torch.ones(1, 2))], L1(100.0))
    late = nn.Parameter(torch.ones(1, 2))
    optimizer.add_param_group({"params": [late]})
    one_step(optimizer, 0.01)
    assert not late.any()
    assert optimizer.penalized[1] is late


def test_complex_weights_are_thresholded_by_their_modulus():
    w = nn.Parameter(torch.tensor([[3 + 4j, 0.3 + 0.4j]]))
    optimizer = ProxSGD([w], L1(10.0), lr=0.1)
    one_step(optimizer)
    assert_close(w.detach(), torch.tensor([[2.4 + 3.2j, 0]]), tolerance=1e-6)


# -- the support --------------------------------------------------------------------------------------------------


@each_kind
def test_a_fixed_support_stays_and_the_rest_is_fitted_without_the_penalty(make):
    model = make_model()
    optimizer = make(model.parameters(), L1(0.05))
    train(model, optimizer, steps=60)
    masks = {p: p.detach() != 0 for p in optimizer.penalized}
    assert any((~mask).any() for mask in masks.values())
    optimizer.fix_support()
    twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, steps=20)
    base = torch.optim.SGD if isinstance(optimizer, ProxSGD) else torch.optim.Adam
    reference, saved = twin[0], twin[1].state_dict()
    by_hand = base(reference.parameters())
    by_hand.load_state_dict(saved)
    for _ in range(20):
        train(reference, by_hand, steps=1)
        with torch.no_grad():
            for weight, mask in zip((reference[0].weight, reference[2].weight), masks.values(), strict=True):
                weight.mul_(mask)
    assert_close(weights_of(model), weights_of(reference))


# -- saving and copying -------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("fixed", [False, True])
def test_training_resumes_from_a_file_to_the_bit(make, fixed):
    def setting():
        model = make_model()
        return model, make(model.parameters(), L1(0.05), weight_decay=0.1)

    halfway, resumed = setting(), setting()
    train(*halfway, steps=15)
    if fixed:
        halfway[1].fix_support()
    resume(resumed, halfway)
    assert_bit_equal(train(*resumed, steps=10), train(*halfway, steps=10))


@each_kind
@each_duplicate
def test_a_copy_takes_the_same_steps_on_its_own(make, duplicate):
    model = make_model()
    optimizer = make(model.parameters(), L1(0.05) + L2(0.1))
    train(model, optimizer, steps=5)
    assert_copy_trains_apart(duplicate, model, optimizer)


@pytest.mark.parametrize("fused", [True, False])
@each_kind
def test_a_step_that_a_scaler_skips_changes_nothing(make, fused):
    model = make_model(dtype=torch.float32)
    optimizer = make(model.parameters(), L1(0.05), fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    if isinstance(optimizer, ProxSGD):  # torch's fused SGD goes on from memory it never wrote if it skips the first
        train(model, optimizer, steps=1, scaler=scaler)
        optimizer.zero_grad()
    before = weights_of(model)
    scaler.scale(sum(p.sum() for p in model.parameters()) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_bit_equal(weights_of(model), before)
    train(model, optimizer, steps=40, scaler=scaler)
    assert (model[0].weight == 0).any()


@pytest.mark.parametrize(("kind", "dtype"), [("SGD", torch.float16), ("SGD", torch.bfloat16), ("Adam", torch.bfloat16)])
def test_half_precision_makes_zeros_too(kind, dtype):  # Adam in float16 is torch's own NaN: its eps is 0 there
    model = make_model(dtype=dtype)
    train(model, MAKERS[kind](model.parameters(), L1(0.2)), steps=40)
    assert (model[0].weight == 0).any()
    assert model[0].weight.isfinite().all()


@each_kind
def test_a_learning_rate_of_zero_moves_nothing(make):
    model = make_model()
    optimizer = make(model.parameters(), L1(0.05))
    optimizer.param_groups[0]["lr"] = 0.0
    before = weights_of(model)
    assert_bit_equal(train(model, optimizer, steps=3), before)


@each_kind
@pytest.mark.parametrize("penalty", [L1(0.3), GroupLasso(0.2)], ids=repr)
def test_a_differentiable_step_has_the_derivatives_that_finite_differences_have(make, penalty):
    def step(w, gradient):
        weight = w.clone()
        optimizer = make([weight], penalty, differentiable=True)
        weight.grad = gradient
        optimizer.step()
        return weight

    w = torch.tensor([[1.0, -0.5, 0.7]], dtype=torch.float64, requires_grad=True)
    gradient = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: step(w, gradient), (w,))


# -- the kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "options"),
    [
        (L1(0.05), {"weight_decay": 0.1, "coupling": "constant"}),
        (L1(0.02) + L2(0.1), {"amsgrad": True}),
        (MCP(0.05), {"maximize": True}),
        (Huber(0.1, delta=0.1), {"fused": True}),
        (L1(0.05), {"weight_decay": 0.1, "cautious": True}),
    ],
    ids=repr,
)
def test_the_compiled_step_is_the_usual_one(penalty, options, monkeypatch):
    monkeypatch.setattr(compiled, "_FROM", 4)
    results = []
    for compile in (False, True):
        model = make_model()
        optimizer = ProxAdam(model.parameters(), penalty, lr=0.01, compile=compile, **options)
        train(model, optimizer, steps=30, criterion=lambda out, y: nn.functional.mse_loss(out.clamp(-9, 9), y))
        results.append(weights_of(model))
    assert optimizer._kernels.keys() >= set(optimizer.penalized)
    assert_close(*results)


def test_half_precision_steps_as_usual(monkeypatch):
    monkeypatch.setattr(compiled, "_FROM", 4)
    results = []
    for compile in (False, True):
        model = make_model(dtype=torch.bfloat16)
        results.append(train(model, ProxAdam(model.parameters(), L1(0.05), lr=0.01, compile=compile), steps=5))
    assert_bit_equal(*results)


@pytest.mark.parametrize(
    ("penalty", "unit", "strength"),
    [
        (L1(0.07), L1(1.0), 0.07),
        (L1(0.2) + L2(0.4), L1(1.0) + L2(2.0), 0.2),
        (MCP(0.3), MCP(0.3), 1.0),
        (L1(0.0), L1(0.0), 1.0),
    ],
    ids=repr,
)
def test_strengths_share_a_kernel_where_strength_is_a_factor(penalty, unit, strength):
    assert at_unit_strength(penalty) == (unit, strength)


def test_without_a_compiler_it_says_so_once_and_steps_as_usual(monkeypatch, no_compiler):
    monkeypatch.setattr(compiled, "_FROM", 4)
    results, said = [], []
    for compile in (False, True):
        model = make_model()
        optimizer = ProxAdam(model.parameters(), MCP(0.0625), lr=0.01, compile=compile)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(train(model, optimizer, steps=5))
        said += caught
    assert_bit_equal(*results)
    assert [str(warning.message) for warning in said] == [
        "ProxAdam: compile=True needs a C++ compiler, stepping without: no compiler here"
    ]


def test_a_penalty_without_a_kernel_is_named_once_and_steps_as_usual(monkeypatch):
    monkeypatch.setattr(compiled, "_FROM", 4)
    results, said = [], []
    for compile in (False, True):
        model = make_model()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = {"weight_decay": 0.1, "cautious": True}
            optimizer = ProxAdam(model.parameters(), GroupLasso(0.05), lr=0.01, compile=compile, **options)
            train(model, optimizer, steps=5)
        results.append(weights_of(model))
        said += caught
    assert_close(*results)
    assert [str(warning.message) for warning in said] == [
        "ProxAdam: compile=True makes kernels of penalties that are a sum over single weights, and the usual steps for "
        "GroupLasso(0.05, groups='output')"
    ]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: ProxSGD([w], NoProx()), "ProxSGD: penalty must be one with a proximal operator"),
        (lambda w: ProxAdam([w], 1e-3), "ProxAdam: penalty must be one with a proximal operator, .* got 0.001"),
        (
            lambda w: ProxAdam([w]),
            r"ProxAdam: penalty must be one with a proximal operator, such as L1\(1e-4\), got None",
        ),
        (lambda w: ProxSGD([w], lr=0.1), r"ProxSGD: penalty must be one with a proximal operator, .*, got None"),
        (
            lambda w: ProxSGD([w], nn.Linear(2, 2)),
            "ProxSGD: penalty must be one with a proximal operator, .* got a Linear$",
        ),
        (
            lambda w: ProxSGD([w], ElasticNet(0.1), weight_decay=0.1),
            r"ProxSGD: weights would decay twice, by ElasticNet",
        ),
        (
            lambda w: ProxAdam([w], L1(1.0) + L2(0.5), weight_decay=torch.tensor(0.1)),
            r"ProxAdam: .* twice, by L2\(0.5\)",
        ),
        (lambda w: ProxSGD([a_weight()], L1(1.0)), "ProxSGD: a parameter must have two or more dimensions"),
        (lambda w: ProxSGD([w], L1(1.0), momentum=1.0), "ProxSGD: momentum must be below 1, .* got 1.0"),
        (lambda w: ProxSGD([w], L1(1.0), momentum=0.9, dampening=1.0), "ProxSGD: dampening must be below 1"),
        (lambda w: ProxAdam([w], L2(1.0), weight_decay=0.1), r"ProxAdam: weights would decay twice, by L2\(1.0\)"),
        (
            lambda w: ProxAdam([w], L2SP(1.0)),
            r"ProxAdam: penalty must have a reference, got L2SP\(1.0\)",
        ),
        (lambda w: ProxAdam([w], L1(1.0), scale=-1.0), "ProxAdam: scale must be a finite number >= 0"),
        (lambda w: ProxAdam([w.to(torch.complex64)], L1(1.0)), "ProxAdam: parameters must be real"),
    ],
)
def test_what_cannot_work_gets_one_line(make, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        make(torch.ones(2, 2))
    assert "\n" not in str(caught.value)


@each_kind
@pytest.mark.parametrize("penalty", [L2(0.1), ElasticNet(0.1), L1(0.1) + L2(0.2)], ids=repr)
@pytest.mark.parametrize("decay", [0.1, torch.tensor(0.1)], ids=str)
def test_weights_that_would_decay_twice_are_refused_whenever_the_decay_comes(make, penalty, decay):
    def optimizer(penalty=penalty, **options):
        return make([nn.Parameter(torch.ones(2, 2))], penalty, **options)

    refused = pytest.raises(ValueError, match=r"\A\w+: weights would decay twice, by [^\n]*\Z")
    with refused:
        optimizer(weight_decay=decay)
    late = optimizer()
    with refused:
        late.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "weight_decay": decay})
    one_step(late)
    scheduled, loaded = optimizer(), optimizer()
    scheduled.param_groups[0]["weight_decay"] = decay
    loaded.load_state_dict(optimizer(penalty=L1(0.1), weight_decay=decay).state_dict())
    for it in (scheduled, loaded):
        with refused:
            one_step(it)
        assert_bit_equal(it.penalized[0].detach(), torch.ones(2, 2))
        it.fix_support()  # ends the penalty
        one_step(it)
    one_step(optimizer(penalty=L1(0.1), weight_decay=decay))
    one_step(optimizer(penalty=ElasticNet(0.1, l1_ratio=1.0), weight_decay=decay))


def test_a_group_that_is_refused_is_not_left_behind():
    optimizer = ProxSGD([nn.Parameter(torch.ones(1, 2))], L1(1.0))
    with pytest.raises(ValueError, match="scale must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1, 2))], "scale": float("nan")})
    assert len(optimizer.param_groups) == len(optimizer.penalized) == 1
    grouped = ProxSGD([nn.Parameter(torch.ones(2, 2))], GroupLasso(1.0, groups=torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="groups must be an index"):
        grouped.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))]})
    assert len(grouped.param_groups) == len(grouped.penalized) == 1
