"""The four modes against autograd, against torch's own weight decay, and against no regularization at all."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from tests.cases import each_case_and_mode, each_case_and_step_mode, each_mode, each_penalty, each_silent
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_differs,
    engaged,
    make_data,
    make_model,
    train,
    weights_of,
)
from tests.optimizers import OPTIMIZERS, each_optimizer
from torchreg import L2, Regularizer, everything

DECAY = 0.1
WEIGHTS = ("0.weight", "2.weight")

PLAIN = {name: OPTIMIZERS[name] for name in ("SGD-momentum", "SGD-nesterov", "AdamW-single", "AdamW-fused")}
each_plain = pytest.mark.parametrize("make_optimizer", PLAIN.values(), ids=PLAIN.keys())


def regularized(make_optimizer, penalty, mode, steps, *, dtype=torch.float64, **options):
    """The weights after training in a mode, loss included."""
    model = make_model(dtype=dtype)
    optimizer = make_optimizer(model.parameters())
    criterion = engaged(Regularizer(model, penalty, mode=mode, **options), optimizer)
    return train(model, optimizer, steps, criterion=criterion)


@cache
def unregularized(make_optimizer, steps, dtype=torch.float64):
    """The weights after the same training without any regularization."""
    model = make_model(dtype=dtype)
    return train(model, make_optimizer(model.parameters()), steps)


# -- against autograd ---------------------------------------------------------------------------------------------


@pytest.mark.shows(None)
@each_penalty
@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_the_gradient_is_autograds_of_the_written_out_loss(case, mode):
    (x, y), ours, reference = make_data(), make_model(), make_model()
    regularizer = Regularizer(ours, case.penalty, mode=mode)
    loss = F.mse_loss(ours(x), y)
    if mode == "loss":
        (loss + regularizer.value()).backward()
    else:
        with regularizer.attach(optimizer := torch.optim.SGD(ours.parameters(), lr=0.0)):
            loss.backward()
            optimizer.step()
    (F.mse_loss(reference(x), y) + sum(case.formula(reference.get_parameter(name)) for name in WEIGHTS)).backward()
    assert_close([p.grad for p in ours.parameters()], [p.grad for p in reference.parameters()])


@pytest.mark.shows("grad")
@each_penalty
@each_optimizer
def test_mode_grad_is_mode_loss(case, make_optimizer):
    by_loss, by_gradient = (regularized(make_optimizer, case.penalty, mode, steps=8) for mode in ("loss", "grad"))
    assert_close(by_gradient, by_loss)


# -- each mode written out on plain SGD ---------------------------------------------------------------------------


def gradient_of(formula, w):
    return torch.autograd.grad(formula(w := w.detach().requires_grad_()), w)[0]


def proximal_point(formula, v, step):
    """Minimizes 1/2 |u - v|^2 + step R(u) for separable R: a grid and 0, then golden section; knows nothing of R."""

    def objective(u):
        costs = torch.stack([formula(element) for element in u.flatten().split(1)])
        return (u - v).square() / 2 + step * costs.view_as(v)

    spacing = v.abs().clamp(min=0.5) / 20
    points = [torch.zeros_like(v), *(v + k * spacing for k in range(-25, 26))]
    costs = torch.stack([objective(u) for u in points])
    best = torch.stack(points).gather(0, costs.argmin(0, keepdim=True))[0]
    low, high, ratio = best - spacing, best + spacing, (5**0.5 - 1) / 2
    for _ in range(60):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        lower = objective(a) < objective(b)
        low, high = torch.where(lower, low, a), torch.where(lower, b, high)
    found = (low + high) / 2
    return torch.where(objective(torch.zeros_like(v)) <= objective(found), torch.zeros_like(v), found)


@pytest.mark.shows(None)
@each_case_and_step_mode
def test_one_step_of_sgd_is_the_formula_of_its_mode(case, mode):
    (x, y), model, lr = make_data(), make_model(), 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    Regularizer(model, case.penalty, mode=mode).attach(optimizer)
    F.mse_loss(model(x), y).backward()
    expected = {}
    for name, w in model.named_parameters():
        stepped = w.detach() - lr * w.grad
        if name not in WEIGHTS:
            expected[name] = stepped
        elif mode == "prox" and case.penalty.is_separable:
            expected[name] = proximal_point(case.formula, stepped, lr)
        elif mode == "prox":
            expected[name] = case.penalty.prox(stepped, lr)  # tests/property shows that it is the minimum
        else:
            expected[name] = stepped - lr * gradient_of(case.formula, w)
    optimizer.step()
    # A search by comparison of values finds the minimum to about the root of their precision, 1e-8.
    assert_close(weights_of(model), expected, tolerance=1e-7 if mode == "prox" else 1e-12)


# -- against torch's weight decay ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.05}),
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "fused": True}),
        (torch.optim.RMSprop, {"lr": 0.01}),
        (torch.optim.Adagrad, {"lr": 0.01}),
    ],
    ids=str,
)
def test_l2_in_mode_grad_is_torchs_coupled_weight_decay(kind, options):
    model = make_model()
    reference = train(model, kind(model.parameters(), **options, weight_decay=DECAY), steps=20)
    ours = regularized(lambda ps: kind(ps, **options), L2(DECAY), "grad", steps=20, select=everything)
    assert_close(ours, reference)


def adamw(params, decay, **options):
    return torch.optim.AdamW(params, lr=0.01, weight_decay=decay, **options)


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"amsgrad": True}], ids=str
)
def test_l2_in_mode_decoupled_is_torchs_adamw(options):
    model = make_model()
    reference = train(model, adamw(model.parameters(), DECAY, **options), steps=50)
    ours = regularized(lambda ps: adamw(ps, 0, **options), L2(DECAY), "decoupled", steps=50, select=everything)
    assert_close(ours, reference)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l2_in_mode_decoupled_is_torchs_adamw_to_the_bit(options, dtype):
    model = make_model(dtype=dtype)
    reference = train(model, adamw(model.parameters(), DECAY, **options), steps=50)
    ours = regularized(
        lambda ps: adamw(ps, 0, **options), L2(DECAY), "decoupled", steps=50, select=everything, dtype=dtype
    )
    assert_bit_equal(ours, reference)


# -- a regularizer that does nothing, or that was removed, changes nothing -----------------------------------------


@each_silent
@each_mode
@each_plain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strength_zero_is_no_regularization_to_the_bit(penalty, mode, make_optimizer, dtype):
    plain = unregularized(make_optimizer, 50, dtype)
    assert_bit_equal(regularized(make_optimizer, penalty, mode, steps=50, dtype=dtype), plain)


@pytest.mark.shows("removal")
@each_case_and_step_mode
@each_plain
def test_attached_and_removed_is_never_attached_to_the_bit(case, mode, make_optimizer):
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    Regularizer(model, case.penalty, mode=mode).attach(optimizer).remove()
    assert_bit_equal(train(model, optimizer, steps=8), unregularized(make_optimizer, 8))


@pytest.mark.shows("removal")
@each_case_and_step_mode
@each_plain
def test_after_removal_the_next_steps_are_those_of_an_optimizer_that_never_was_attached(case, mode, make_optimizer):
    model, fresh = make_model(), make_model()
    optimizer, other = make_optimizer(model.parameters()), make_optimizer(fresh.parameters())
    with Regularizer(model, case.penalty, mode=mode).attach(optimizer):
        train(model, optimizer, steps=4)
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading alone would share the moments
    before = weights_of(model)
    after = train(model, optimizer, steps=4)
    assert_bit_equal(after, train(fresh, other, steps=4))
    assert_differs(after, before)


@pytest.mark.shows(None)
@each_case_and_mode
@each_optimizer
def test_training_with_a_penalty_lowers_it(case, mode, make_optimizer):
    runs = regularized(make_optimizer, case.penalty, mode, steps=30), unregularized(make_optimizer, 30)
    with_it, without = (sum(case.formula(run[name]) for name in WEIGHTS) for run in runs)
    assert with_it < 0.99 * without
