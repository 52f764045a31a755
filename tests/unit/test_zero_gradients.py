"""ProxAdam and weights whose gradients have all been exactly zero, which have no metric of their own."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn import functional as F

import torchreg.optim.compiled as compiled
from tests.cases import CONSTRAINTS, PENALTIES
from tests.helpers import assert_bit_equal, assert_close, through_a_file
from torchreg import L1, MCP, GroupLasso, NonNegative, Nuclear, SparseGroupLasso
from torchreg.optim import ProxAdam, ProxSGD
from torchreg.penalties import ProximalPenalty

WAYS = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"lr": torch.tensor(0.05, dtype=torch.float64)},
    "kernel": {"compile": True},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
GRADIENTS = [  # of a 4 x 3 weight: rows and single elements come one after another, the last row never does
    [[0.3, -0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    [[0.1, 0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]],
    [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.1, -0.3], [0.0, 0.0, 0.0]],
    [[0.2, -0.1, 0.3], [0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.0, 0.0, 0.0]],
]
START = np.random.default_rng(0).standard_normal((4, 3))


@pytest.fixture(autouse=True)
def every_weight_is_for_the_kernel(monkeypatch):
    monkeypatch.setattr(compiled, "_FROM", 1)


def metrics(amsgrad=False, betas=(0.9, 0.999), eps=1e-8):
    """The direction and the metric of each step, as the docstring has them, in NumPy."""
    m, v, largest = (np.zeros_like(START) for _ in range(3))
    for t, g in enumerate(np.array(GRADIENTS), start=1):
        before = (largest if amsgrad else v).max()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v)
        second = (largest if amsgrad else v).copy()
        correction = 1 - betas[1] ** t
        metric = np.sqrt(second / correction) + eps
        move = m / (1 - betas[0] ** t) / metric
        metric[second == 0] = np.sqrt(before / correction) + eps if before else np.inf
        yield move, metric


def run(penalty, way, steps=4, **options):
    w = nn.Parameter(torch.from_numpy(START.copy()))
    optimizer = ProxAdam([w], penalty, **{"lr": 0.05, **options, **way})
    for gradient in GRADIENTS[:steps]:
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return w.detach(), optimizer


@each_way
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
def test_each_step_is_its_formula_for_weights_with_and_without_a_metric(way, amsgrad):
    expected = START.copy()
    for t, (move, metric) in enumerate(metrics(amsgrad), start=1):
        w = expected - 0.05 * move
        expected = np.sign(w) * np.maximum(np.abs(w) - 0.05 * 0.02 / metric, 0)
        actual, _ = run(L1(0.02), way, steps=t, amsgrad=amsgrad)
        assert_close(actual, torch.from_numpy(expected))
    assert 0 < abs(expected[3, 0]) < abs(START[3, 0])  # shrinks, and is not made zero


@each_way
@pytest.mark.parametrize("penalty", [L1(0.1), MCP(0.3)], ids=repr)
def test_all_ways_agree_for_other_penalties(way, penalty):
    assert_close(run(penalty, way)[0], run(penalty, {"foreach": False})[0])


@pytest.mark.parametrize("way", [WAYS["single"], WAYS["fused"]], ids=["single", "fused"])
@pytest.mark.parametrize("penalty", [GroupLasso(0.02), SparseGroupLasso(0.04, l1_ratio=0.5)], ids=repr)
def test_rows_that_are_partly_without_a_metric_are_the_minimum(way, penalty):
    previous = START.copy()
    for t, (move, metric) in enumerate(metrics(), start=1):
        w, d = torch.from_numpy(previous - 0.05 * move), torch.from_numpy(metric)
        actual, _ = run(penalty, way, steps=t)
        held = d == torch.inf
        assert_bit_equal(actual[held], w[held])
        u = actual.clone().requires_grad_()
        (objective,) = torch.autograd.grad(penalty.value(u) + ((u - w)[~held].square() * d[~held]).sum() / 0.1, u)
        assert actual.all()  # so that the objective has a derivative, which is zero at the minimum
        assert_close(objective[~held], torch.zeros_like(objective[~held]), tolerance=1e-8)
        previous = actual.numpy()


PROXIMAL = {case.name: case.penalty for case in PENALTIES if isinstance(case.penalty, ProximalPenalty)}
PROXIMAL |= {case.name: case.constraint for case in CONSTRAINTS}


@pytest.mark.parametrize("penalty", PROXIMAL.values(), ids=PROXIMAL.keys())
@pytest.mark.parametrize("way", [WAYS["single"], WAYS["fused"]], ids=["single", "fused"])
def test_no_penalty_touches_a_tensor_without_any_gradient(penalty, way):
    try:
        w = nn.Parameter(penalty.prox(torch.from_numpy(START.copy()).abs(), 0.0).clone())
        optimizer = ProxAdam([w], penalty, lr=0.1, **way)
    except ValueError as error:
        pytest.skip(str(error))  # what needs a reference or a module
    before = w.detach().clone()
    for _ in range(3):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert_close(w.detach(), before)


UNSEEN = {
    "Embedding": lambda: (nn.Embedding(100, 4), torch.arange(8)),
    "EmbeddingBag": lambda: (nn.EmbeddingBag(100, 4), torch.arange(8)[None]),
    "dead inputs": lambda: (nn.Linear(9, 4), torch.cat([torch.zeros(8, 5), torch.ones(8, 4)], 1)),
    "dead units": lambda: (nn.Sequential(nn.Linear(3, 6), Cut(), nn.Linear(6, 4)), torch.randn(8, 3)),
    "dead channels": lambda: (nn.Conv2d(3, 4, 2), torch.cat([torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)], 1)),
    "masked head": lambda: (Ignored(), torch.randn(8, 4)),
}


class Cut(nn.Module):
    def forward(self, x):
        return x * torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])


class Ignored(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x) + 0 * self.unused(x)


def quadratic(model, x):
    return (model(x) - 1).square().mean()


@pytest.mark.parametrize("make_model", UNSEEN.values(), ids=UNSEEN.keys())
@pytest.mark.parametrize("penalty", [L1(1e-4), GroupLasso(1e-4), Nuclear(1e-4)], ids=repr)
@each_way
def test_what_a_batch_does_not_reach_is_not_wiped(make_model, penalty, way):
    if way.get("compile") and not penalty.is_uniform:
        return
    way = {**way, "lr": 1e-3} if "lr" not in way else {"lr": torch.tensor(1e-3)}
    torch.manual_seed(0)
    model, x = make_model()
    optimizer = ProxAdam(model.parameters(), penalty, **way)
    quadratic(model, x).backward()
    unseen = {p: p.grad == 0 for p in optimizer.penalized}
    before = {p: p.detach().clone() for p in unseen}
    assert any(mask.any() for mask in unseen.values())
    for _ in range(100):
        optimizer.step()
        optimizer.zero_grad()
        quadratic(model, x).backward()
    for p, mask in unseen.items():
        moved = (p.detach() - before[p]).abs()
        assert p.detach()[mask & (before[p] != 0)].all()
        assert (moved[mask] <= 0.1).all()  # at most a hundred of Adam's steps


@each_way
@pytest.mark.parametrize("penalty", [L1(0.3), MCP(0.3)], ids=repr)
def test_a_stationary_point_with_rows_without_gradients_stays(way, penalty):
    minimum = torch.tensor([[2.0, -3.0, 0.1], [0.0, 0.0, 0.0], [0.0, 0.2, 5.0]], dtype=torch.float64)
    w = nn.Parameter(penalty.prox(minimum, 1.0).clone())
    assert penalty.optimality(w.detach(), w.detach() - minimum) < 1e-12
    at_start = w.detach().clone()
    optimizer = ProxAdam([w], penalty, **{"lr": 0.05, **way})
    for _ in range(30):
        w.grad = w.detach() - minimum
        optimizer.step()
    assert_close(w.detach(), at_start, tolerance=1e-7)
    assert_bit_equal(w.detach() == 0, at_start == 0)


def test_constant_features_end_at_zero_as_in_scikit_learn():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((50, 6))
    x[:, 3] = 0.0  # has no gradient, ever
    y = x @ np.array([1.0, -2.0, 0.0, 4.0, 0.5, 0.0])
    layer = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(layer.weight)
    optimizer = ProxAdam(layer.parameters(), L1(0.1), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 300 else 0.1)
    for _ in range(600):
        optimizer.zero_grad()
        (F.mse_loss(layer(torch.from_numpy(x)).squeeze(1), torch.from_numpy(y)) / 2).backward()
        optimizer.step()
        scheduler.step()
    oracle = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y)
    assert np.abs(layer.weight.detach().numpy()[0] - oracle.coef_).max() < 1e-6
    assert layer.weight[0, 3] == 0


@each_way
def test_copies_and_resumed_optimizers_go_on_to_the_bit(way):
    whole, _ = run(L1(0.02), way)
    w, optimizer = run(L1(0.02), way, steps=2)
    (param,) = optimizer.penalized
    twin = nn.Parameter(w.clone())
    resumed = ProxAdam([twin], L1(0.02), **{"lr": 0.05, **way})
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    copied = copy.deepcopy(optimizer)
    for it in (optimizer, resumed, copied):
        (param,) = it.penalized
        for gradient in GRADIENTS[2:]:
            param.grad = torch.tensor(gradient, dtype=torch.float64)
            it.step()
        assert_bit_equal(param.detach(), whole)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_does_not_count_as_one_without_gradients(fused):
    w = nn.Parameter(torch.ones(2, 3))
    optimizer = ProxAdam([w], L1(0.1), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (torch.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((w[0] * factor).sum()).backward()
        before = w.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        if factor == torch.inf:
            assert_bit_equal(w.detach(), before)
    assert 0.9 < w[1].min() < 1  # shrinks as slowly as the other row


def test_a_projection_holds_without_gradients_too():
    w = nn.Parameter(torch.tensor([[-1.0, 2.0]]))
    optimizer = ProxAdam([w], NonNegative(), lr=0.1)
    w.grad = torch.zeros(1, 2)
    optimizer.step()
    assert_bit_equal(w.detach(), torch.tensor([[0.0, 2.0]]))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_under_sgd_weights_without_gradients_have_the_step_of_all_others(momentum, dampening):
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = ProxSGD([w], L1(0.1), lr=0.1, momentum=momentum, dampening=dampening)
    w.grad = torch.tensor([[0.3, 0.3], [0.0, 0.0]])
    optimizer.step()
    step = 0.1 * (1 - dampening) / (1 - momentum) if momentum else 0.1
    assert_close(w[1].detach(), torch.full((2,), 1 - step * 0.1), tolerance=1e-6)
