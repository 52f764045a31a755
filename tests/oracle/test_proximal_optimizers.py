"""ProxSGD and ProxAdam end where scikit-learn does, with a certificate, and step as their formulas do in NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.helpers import assert_bit_equal, assert_close, make_model, train
from tests.optimizers import COUPLINGS, IMPLEMENTATIONS
from torchreg import L1, ElasticNet, GroupLasso, MaxNorm, Nuclear, Regularizer, SparseGroupLasso
from torchreg.optim import ProxAdam, ProxSGD

OPTIMIZERS = {
    "SGD": partial(ProxSGD, lr=0.1),
    "momentum": partial(ProxSGD, lr=0.02, momentum=0.9),
    "dampening": partial(ProxSGD, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": partial(ProxSGD, lr=0.02, momentum=0.9, nesterov=True),
    "Adam": partial(ProxAdam, lr=0.01),
    "amsgrad": partial(ProxAdam, lr=0.01, amsgrad=True),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(x), (y - y.mean()) / y.std()


def wide():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 100))
    return x, x[:, :4] @ np.array([2.0, -1.5, 1.0, 0.7]) + 0.1 * draw.standard_normal(40) + 0.3


def squares(model, x, y):
    return F.mse_loss(model(x).squeeze(1), y) / 2


def logistic(model, x, y):
    return F.binary_cross_entropy_with_logits(model(x).squeeze(1), y)


def solve(make, penalty, x, y, loss, steps):
    """The layer in the end, and how far it is from a stationary point of loss + penalty."""
    x, y = torch.from_numpy(x), torch.from_numpy(np.asarray(y, dtype=np.float64))
    model = nn.Linear(x.shape[1], 1, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = make(model.parameters(), penalty)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step < steps / 2 else 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad()
    loss(model, x, y).backward()
    return model, penalty.optimality(model.weight.detach(), model.weight.grad).item()


def assert_solves(model, gap, coefficients, bias):
    weight = model.weight.detach().numpy()[0]
    assert gap <= 1e-7
    assert np.abs(weight - coefficients).max() <= 1e-6
    assert abs(model.bias.item() - bias) <= 1e-6
    assert ((weight == 0) == (coefficients == 0)).all()
    assert (weight == 0).any()


@each_optimizer
def test_the_lasso_is_scikit_learns(make):
    x, y = diabetes()
    found = solve(make, L1(0.05), x, y, squares, 1000)
    oracle = Lasso(alpha=0.05, tol=1e-14, max_iter=100_000).fit(x, y)
    assert_solves(*found, oracle.coef_, oracle.intercept_)


@each_optimizer
def test_the_elastic_net_is_scikit_learns(make):
    x, y = diabetes()
    found = solve(make, ElasticNet(0.1, l1_ratio=0.7), x, y, squares, 1000)
    oracle = SklearnElasticNet(alpha=0.1, l1_ratio=0.7, tol=1e-14, max_iter=100_000).fit(x, y)
    assert_solves(*found, oracle.coef_, oracle.intercept_)


@pytest.mark.parametrize("make", [OPTIMIZERS["nesterov"], OPTIMIZERS["Adam"]], ids=["SGD", "Adam"])
def test_the_lasso_of_more_features_than_examples_is_scikit_learns(make):
    x, y = wide()
    found = solve(make, L1(0.2), x, y, squares, 3000)
    oracle = Lasso(alpha=0.2, tol=1e-14, max_iter=100_000).fit(x, y)
    assert_solves(*found, oracle.coef_, oracle.intercept_)


@pytest.mark.parametrize(
    "make",
    [partial(ProxSGD, lr=0.3, momentum=0.9, nesterov=True), partial(ProxAdam, lr=0.2)],
    ids=["SGD", "Adam"],
)
def test_logistic_regression_with_l1_is_scikit_learns(make):
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    strength = 0.05
    found = solve(make, L1(strength), x, y, logistic, 2500)
    oracle = LogisticRegression(l1_ratio=1, C=1 / (strength * len(y)), solver="saga", tol=1e-12, max_iter=100_000).fit(
        x, y
    )
    assert_solves(*found, oracle.coef_[0], oracle.intercept_[0])


@pytest.mark.parametrize(
    "make",
    [partial(torch.optim.SGD, lr=0.02, momentum=0.9), partial(torch.optim.Adam, lr=0.01)],
    ids=["SGD", "Adam"],
)
def test_a_regularizer_that_does_not_know_the_metric_solves_another_problem(make):
    x, y = map(torch.from_numpy, diabetes())
    model = nn.Linear(10, 1, dtype=torch.float64)
    optimizer = make(model.parameters())
    Regularizer(model, L1(0.05), mode="prox").attach(optimizer)
    for _ in range(1500):
        optimizer.zero_grad()
        squares(model, x, y).backward()
        optimizer.step()
    assert L1(0.05).optimality(model.weight.detach(), model.weight.grad) > 0.05


@pytest.mark.parametrize(
    "penalty",
    [
        GroupLasso(0.02, groups=torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3]])),
        SparseGroupLasso(0.05, l1_ratio=0.5, groups=torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3]])),
        Nuclear(0.2),
        MaxNorm(0.3),
    ],
    ids=lambda penalty: type(penalty).__name__,
)
@pytest.mark.parametrize("make", [OPTIMIZERS["momentum"], OPTIMIZERS["Adam"]], ids=["SGD", "Adam"])
def test_other_penalties_end_at_a_certified_stationary_point(make, penalty):
    x, y = diabetes()
    _, gap = solve(make, penalty, x, y, squares, 1500)
    assert gap <= 1e-6


# -- single steps -------------------------------------------------------------------------------------------------

CURVATURE = np.diag([1.0, 2.0, 3.0]) + 0.1
START = np.array([1.0, -2.0, 0.5])
RATE, STRENGTH, DECAY, STEPS = 0.05, 0.4, 0.02, 40


def soft(w, threshold):
    return np.sign(w) * np.maximum(np.abs(w) - threshold, 0)


def kept(coupling, lr):
    return 1 - DECAY * {"lr": lr, "independent": lr / RATE, "constant": 1, "corrected": lr * lr / RATE}[coupling]


def numpy_sgd(rates, coupling, momentum=0.0, dampening=0.0, nesterov=False):
    w, buffer = START.copy(), None
    total = (1 - dampening) / (1 - momentum) if momentum else 1.0
    for lr in rates:
        gradient = CURVATURE @ w
        buffer = gradient if buffer is None else momentum * buffer + (1 - dampening) * gradient
        direction = gradient + momentum * buffer if nesterov else buffer if momentum else gradient
        w = soft(kept(coupling, lr) * w - lr * direction, lr * total * STRENGTH)
    return w


def numpy_adam(rates, coupling, amsgrad=False):
    w, first, second, largest = START.copy(), np.zeros(3), np.zeros(3), np.zeros(3)
    for step, lr in enumerate(rates, start=1):
        gradient = CURVATURE @ w
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        largest = np.maximum(largest, second) if amsgrad else second
        metric = np.sqrt(largest / (1 - 0.999**step)) + 1e-8
        w = soft(kept(coupling, lr) * w - lr * first / (1 - 0.9**step) / metric, lr * STRENGTH / metric)
    return w


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
@pytest.mark.parametrize(
    ("kind", "reference", "options"),
    [
        (ProxSGD, numpy_sgd, {}),
        (ProxSGD, numpy_sgd, {"momentum": 0.9, "dampening": 0.3}),
        (ProxSGD, numpy_sgd, {"momentum": 0.8, "nesterov": True}),
        (ProxAdam, numpy_adam, {}),
        (ProxAdam, numpy_adam, {"amsgrad": True}),
    ],
    ids=["SGD", "momentum", "nesterov", "Adam", "amsgrad"],
)
def test_each_step_is_its_formula_under_a_schedule(kind, reference, options, implementation, coupling):
    w = nn.Parameter(torch.from_numpy(START.copy())[None])
    optimizer = kind([w], L1(STRENGTH), lr=RATE, weight_decay=DECAY, coupling=coupling, **options, **implementation)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        w.grad = w.detach() @ torch.from_numpy(CURVATURE).T
        optimizer.step()
        scheduler.step()
    assert_close(w.detach()[0], torch.from_numpy(reference(rates, coupling, **options)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "base", "options"),
    [(ProxSGD, torch.optim.SGD, {"momentum": 0.9}), (ProxAdam, torch.optim.Adam, {})],
    ids=["SGD", "Adam"],
)
def test_a_penalty_of_strength_zero_leaves_the_base_to_the_bit(kind, base, options, implementation, dtype):
    results = []
    for make in (partial(kind, penalty=L1(0.0)), base):
        model = make_model(dtype=dtype)
        results.append(train(model, make(model.parameters(), lr=0.01, **options, **implementation), steps=40))
    assert_bit_equal(*results)
