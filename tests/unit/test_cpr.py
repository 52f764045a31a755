"""CPR: the bound on each weight's mean square, against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.cases import each_duplicate
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_compiles_twice_at_most,
    assert_copy_trains_apart,
    make_model,
    resume,
    train,
    weights_of,
)
from tests.optimizers import IMPLEMENTATIONS
from tests.unit.training import set_gradients
from torchreg.optim import AdamCPR, ConstrainedNorm

STEPS = 40
BOUNDS = [
    {"bound": "inflection"},
    {"bound": "warm_start", "warm_start": 7},
    {"bound": "initial", "factor": 1.5},
    {"bound": 0.5, "update_rate": 0.3},
]
each_bound = pytest.mark.parametrize("options", BOUNDS, ids=lambda options: str(options["bound"]))


class BoundedSGD(ConstrainedNorm, torch.optim.SGD):
    """The mixin with another base."""


def pushes(step: int) -> np.ndarray:
    """Gradients that make the weight grow: ever faster at first, then ever slower."""
    return -np.array([[1.0, 0.5, -0.2]]) / (1 + np.exp((step - 12) / 3.0))


def is_found(options: dict, seen: list[float]) -> bool:
    if options["bound"] == "warm_start":
        return len(seen) == options["warm_start"]
    return len(seen) > 2 and seen[-1] - seen[-2] < seen[-2] - seen[-3]


def numpy_sgd(options: dict, lr: float = 0.1) -> list[np.ndarray]:
    w = np.array([[0.3, -0.2, 0.1]])
    size = (w**2).mean()
    rate, bound, seen, multiplier = options.get("update_rate", 1.0), None, [], 0.0
    if options["bound"] == "initial":
        bound = options["factor"] * size
    elif not isinstance(options["bound"], str):
        bound = options["bound"]
    path = []
    for step in range(STEPS):
        w = w - lr * pushes(step)
        size = (w**2).mean()
        seen.append(size)
        if bound is not None:
            multiplier = max(0.0, multiplier + rate * (size - bound))
            w = (1 - 2 * multiplier) * w
        elif is_found(options, seen):
            bound = size
        path.append(w.copy())
    return path


@each_bound
def test_each_bound_is_its_formula(options):
    w = nn.Parameter(torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64))
    optimizer = BoundedSGD([w], lr=0.1, **options)
    multipliers = []
    for step, expected in enumerate(numpy_sgd(options)):
        w.grad = torch.from_numpy(pushes(step))
        optimizer.step()
        assert_close(w.detach(), torch.from_numpy(expected))
        multipliers.append(optimizer.param_groups[0]["constraints"][0, 0].item())
    assert max(multipliers) > 0  # it has acted


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
def test_what_is_within_its_bound_is_adams_to_the_bit(implementation):
    results = []
    for kind, options in ((AdamCPR, {"bound": 1e6}), (torch.optim.Adam, {})):
        model = make_model(dtype=torch.float32)
        results.append(train(model, kind(model.parameters(), lr=0.01, **options, **implementation), steps=50))
    assert_bit_equal(*results)


def test_the_bound_holds_in_the_end():
    model = make_model()
    bound = {p: 0.5 * p.detach().square().mean() for p in model.parameters() if p.ndim > 1}
    train(model, AdamCPR(model.parameters(), lr=1e-3, bound="initial", factor=0.5), steps=2000)
    for param, limit in bound.items():
        assert param.square().mean() <= 1.01 * limit


def test_biases_are_exempt_unless_they_are_asked_for():
    model, touched = make_model(), make_model()
    for net, options in ((model, {}), (touched, {"biases": True})):
        train(net, BoundedSGD(net.parameters(), lr=0.0, bound=1e-4, **options), steps=1)
    start = weights_of(make_model())
    assert_bit_equal(weights_of(model)["0.bias"], start["0.bias"])
    assert (weights_of(touched)["0.bias"].abs() < start["0.bias"].abs()).all()
    assert (weights_of(model)["0.weight"].abs() < start["0.weight"].abs()).all()


def test_weights_without_a_gradient_are_left_alone_and_their_bound_waits():
    still, moving = (nn.Parameter(torch.ones(1, 2)) for _ in range(2))
    optimizer = BoundedSGD([still, moving], lr=0.1, bound=0.5)
    for _ in range(3):
        moving.grad = torch.zeros(1, 2)
        optimizer.step()
    assert_bit_equal(still.detach(), torch.ones(1, 2))
    table = optimizer.param_groups[0]["constraints"]
    assert table[:, 4].tolist() == [0, 3]
    assert (moving.detach() < 1).all()


def test_each_group_has_its_own_bound():
    small, large = (nn.Parameter(torch.ones(1, 2)) for _ in range(2))
    optimizer = BoundedSGD([{"params": [small], "bound": 0.9}, {"params": [large]}], lr=0.1, bound=2.0)
    for param in (small, large):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close(small.detach(), torch.full((1, 2), 0.8), tolerance=1e-6)
    assert_bit_equal(large.detach(), torch.ones(1, 2))


def test_a_weight_far_beyond_its_bound_shrinks_to_zero_and_never_flips():
    w = nn.Parameter(torch.full((1, 2), 10.0))
    w.grad = torch.zeros(1, 2)
    BoundedSGD([w], lr=0.1, bound=0.1).step()
    assert_bit_equal(w.detach(), torch.zeros(1, 2))


@each_bound
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_resumes_from_a_file_to_the_bit(options, dtype):
    def setting():
        model = make_model(dtype=dtype)
        return model, AdamCPR(model.parameters(), lr=0.05, **options)

    halfway, resumed = setting(), setting()
    train(*halfway, steps=9)
    resume(resumed, halfway)
    assert_bit_equal(train(*resumed, steps=9), train(*halfway, steps=9))


@each_duplicate
def test_a_copy_takes_the_same_steps_on_its_own(duplicate):
    model = make_model()
    optimizer = AdamCPR(model.parameters(), lr=0.05, bound="warm_start", warm_start=2)
    train(model, optimizer, steps=4)
    assert_copy_trains_apart(duplicate, model, optimizer)


def test_a_checkpoint_of_torchs_adam_loads_and_the_bounds_are_this_ones():
    model = make_model()
    base = torch.optim.Adam(model.parameters(), lr=0.05)
    train(model, base, steps=3)
    optimizer = AdamCPR(model.parameters(), lr=0.05, bound=0.01)
    optimizer.load_state_dict(base.state_dict())
    train(model, optimizer, steps=200)
    assert model[0].weight.square().mean() < 0.012


def test_a_step_that_a_scaler_skips_changes_nothing():
    model = make_model(dtype=torch.float32)
    optimizer = AdamCPR(model.parameters(), lr=0.05, bound=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    train(model, optimizer, steps=2, scaler=scaler)
    before, table = weights_of(model), optimizer.param_groups[0]["constraints"].clone()
    optimizer.zero_grad()
    scaler.scale(sum(p.sum() for p in model.parameters()) * torch.inf).backward()
    scaler.step(optimizer)
    assert_bit_equal(weights_of(model), before)
    assert_bit_equal(optimizer.param_groups[0]["constraints"], table)


def test_a_closure_changes_nothing():
    results = []
    for closure in (True, False):
        model = make_model()
        results.append(train(model, AdamCPR(model.parameters(), lr=0.05, bound=0.01), steps=5, closure=closure))
    assert_bit_equal(*results)


@pytest.mark.parametrize(
    "w", [torch.zeros(2, 2), torch.zeros(0, 3), torch.full((2, 2), 1e30)], ids=["0", "none", "huge"]
)
def test_odd_weights_stay_numbers(w):
    param = nn.Parameter(w.clone())
    optimizer = BoundedSGD([param], lr=0.1, bound=0.5)
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert param.isfinite().all()


@each_bound
def test_a_compiled_step_is_not_compiled_anew(options, counter):
    model = make_model()
    optimizer = BoundedSGD(model.parameters(), lr=0.05, **options)
    step = torch.compile(lambda: optimizer.step(), backend=counter)
    assert_compiles_twice_at_most(step, lambda: set_gradients(model, 1.0), counter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bound": "none"},
            "AdamCPR: bound must be one of inflection, warm_start, initial or a number > 0, got 'none'",
        ),
        ({"bound": True}, "AdamCPR: bound must be one of .* got True"),
        ({"bound": -1.0}, "AdamCPR: bound must be a finite number > 0, got -1.0"),
        ({"factor": 0.0}, "AdamCPR: factor must be a finite number > 0, got 0.0"),
        ({"update_rate": float("nan")}, "AdamCPR: update_rate must be a finite number > 0, got nan"),
        ({"warm_start": 0}, "AdamCPR: warm_start must be a whole number >= 1, got 0"),
        ({"weight_decay": 0.1}, "AdamCPR: weight_decay must be 0, because the bound replaces it, got 0.1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_gets_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        AdamCPR([nn.Parameter(torch.ones(1, 1))], **options)
    assert "\n" not in str(caught.value)
