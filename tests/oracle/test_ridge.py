"""Ridge heads in closed form against scikit-learn's, refits, hat matrices written out, and densities of SciPy's."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import helmert
from scipy.stats import multivariate_normal
from sklearn.linear_model import BayesianRidge, Ridge, RidgeCV
from torch import nn

from tests.helpers import assert_close
from torchreg import L2, Regularizer
from torchreg.tuning import (
    best,
    evidence,
    generalized_cv,
    leave_one_out,
    one_standard_error,
    ridge_path,
    strength_path,
)

DRAW = np.random.default_rng(0)
STRENGTHS = [3.0, 0.3, 0.03, 1e-3]


def problem(examples, features, outputs=1):
    """Features far from 0 and of different sizes, one of which two others add up to."""
    x = DRAW.standard_normal((examples, features)) * np.linspace(0.3, 2, features) + 5
    x[:, -1] = x[:, 0] + x[:, 1]
    w = DRAW.standard_normal((features, outputs)) * (np.arange(features) < 4)[:, None]
    return x, x @ w / 2 + DRAW.standard_normal((examples, outputs)) - 7


PROBLEMS = {
    "tall": problem(40, 6),
    "tall, three outputs": problem(50, 7, 3),
    "wide": problem(12, 30),
    "wide, three outputs": problem(12, 30, 3),
    "square": problem(10, 9),  # with a bias as many features as directions
    "squarer": problem(10, 10, 2),
    "almost square": problem(11, 9),
    "two examples": problem(2, 3),
}


@pytest.fixture(params=PROBLEMS)
def data(request):
    return PROBLEMS[request.param]


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def bias(request):
    return request.param


def path_of(x, y, bias, strengths=STRENGTHS):
    head = nn.Linear(x.shape[1], y.shape[1], bias=bias).double()
    return ridge_path(head, (torch.tensor(x), torch.tensor(y)), strengths=strengths)


def alpha_of(strength, y):
    return strength * y.size / 2


def hat(x, alpha, bias):
    """The matrix from targets to outputs, from the normal equations with the bias as a column."""
    if bias:
        x = np.column_stack([np.ones(len(x)), x - x.mean(0)])
    shrunk = alpha * np.eye(x.shape[1])
    shrunk[0, 0] *= not bias
    return x @ np.linalg.solve(x.T @ x + shrunk, x.T)


def fitted(x, y, alpha, bias):
    return Ridge(alpha, fit_intercept=bias, solver="svd").fit(x, y)


def test_the_head_is_scikit_learns_ridge(data, bias):
    x, y = data
    path = path_of(x, y, bias)
    for point in path:
        oracle, state = fitted(x, y, alpha_of(point.strength, y), bias), path.state_at(point.strength)
        assert state["weight"].numpy() == pytest.approx(np.atleast_2d(oracle.coef_), rel=1e-10, abs=1e-11)
        if bias:
            assert state["bias"].numpy() == pytest.approx(np.atleast_1d(oracle.intercept_), rel=1e-10, abs=1e-10)
        assert state.keys() == ({"weight", "bias"} if bias else {"weight"})
        assert point.norm == pytest.approx(np.linalg.norm(oracle.coef_), rel=1e-10)
        error = np.square(oracle.predict(x).reshape(y.shape) - y).mean()
        assert point.train_loss == pytest.approx(error, rel=1e-9)


def test_at_the_solution_the_gradient_of_torchs_loss_and_the_penalty_is_zero(data, bias):
    x, y = map(torch.tensor, data)
    head = nn.Linear(x.shape[1], y.shape[1], bias=bias).double()
    path = ridge_path(head, (x, y), strengths=STRENGTHS)
    for point in path:
        head.load_state_dict(path.state_at(point.strength))
        head.zero_grad()
        (F.mse_loss(head(x), y) + Regularizer(head, L2(point.strength), mode="loss").value()).backward()
        assert all(param.grad.abs().max() < 1e-10 for param in head.parameters())


def test_left_out_losses_are_those_of_refits_without_each_example(data, bias):
    x, y = data
    if len(x) < 3:
        pytest.skip("scikit-learn fits no bias to one example")
    for point in path_of(x, y, bias):
        alpha, losses = alpha_of(point.strength, y), []
        for i in range(len(x)):
            kept = np.arange(len(x)) != i
            outputs = fitted(x[kept], y[kept], alpha, bias).predict(x[i : i + 1])
            losses.append(np.square(outputs.reshape(-1) - y[i]).mean())
        assert point.valid_loss.mean == pytest.approx(np.mean(losses), rel=1e-9)
        assert point.valid_loss.se == pytest.approx(np.std(losses, ddof=1) / len(x) ** 0.5, rel=1e-9)
        assert point.valid_error.mean == pytest.approx(np.mean(losses) ** 0.5, rel=1e-9)


def test_leave_one_out_chooses_what_ridge_cv_chooses(data, bias):
    x, y = data
    strengths = np.geomspace(100, 1e-5, 40)
    path = path_of(x, y, bias, strengths)
    oracle = RidgeCV(alpha_of(strengths, y), fit_intercept=bias, store_cv_results=True).fit(x, y)
    losses = oracle.cv_results_.reshape(-1, len(strengths)).mean(0)
    assert [point.valid_loss.mean for point in path] == pytest.approx(losses, rel=1e-6)
    if len(x) > 2:  # of two examples each is predicted by the other's target, at any strength
        assert alpha_of(leave_one_out(path).strength, y) == pytest.approx(oracle.alpha_)
        assert leave_one_out(path) == leave_one_out(path, "error") == best(path)
    assert one_standard_error(path).strength >= best(path).strength


def test_folds_of_one_example_in_a_strength_path_give_the_same(bias):
    x, y = map(torch.tensor, PROBLEMS["tall, three outputs"])
    x = x - x.mean(0)
    make = lambda: nn.Linear(7, 3, bias=bias)  # noqa: E731
    n, strengths = len(x), [1.0, 0.1]
    in_folds = [strength * n / (n - 1) for strength in strengths]  # the mean loss of n - 1 examples
    trained = strength_path(
        make, L2(1.0), (x, y), folds=n, strengths=in_folds, tolerance=1e-9, executor="stacked", verbose=False
    )
    for point, other in zip(ridge_path(make().double(), (x, y), strengths=strengths), trained, strict=True):
        assert_close(tuple(point.valid_loss), tuple(other.valid_loss), 1e-8)


def test_degrees_of_freedom_and_gcv_are_those_of_the_hat_matrix(data, bias):
    x, y = data
    path = path_of(x, y, bias)
    scores = []
    for point in path:
        matrix = hat(x, alpha_of(point.strength, y), bias)
        free = np.trace(matrix)
        scores.append(len(x) * np.square(y - matrix @ y).sum() / (len(x) - free) ** 2 / y.shape[1])
        assert point.degrees_of_freedom == pytest.approx(free, rel=1e-9)
        assert point.gcv == pytest.approx(scores[-1], rel=1e-6)  # n - tr H is a small difference in the oracle
    if len(x) > 2:
        assert generalized_cv(path).strength == STRENGTHS[int(np.argmin(scores))]


def contrasts(x, y, bias):
    """The examples as a flat prior of the bias leaves them: n - 1 differences that are orthogonal to the mean."""
    turn = helmert(len(x)) if bias else np.eye(len(x))
    return turn @ x, turn @ y


def test_log_evidence_is_the_density_of_the_targets(data, bias):
    x, y = data
    if len(x) < 3 and bias:
        pytest.skip("one number")
    inner, targets = contrasts(x, y, bias)
    for point in path_of(x, y, bias):
        prior = point.noise / alpha_of(point.strength, y)
        covariance = point.noise * np.eye(len(inner)) + prior * inner @ inner.T
        density = sum(multivariate_normal(cov=covariance).logpdf(column) for column in targets.T)
        assert point.log_evidence == pytest.approx(density, rel=1e-8)


@pytest.mark.parametrize("shape", [(40, 6, 1), (30, 4, 3), (25, 40, 1), (20, 60, 3)], ids=str)
def test_the_evidence_is_largest_where_bayesian_ridge_says(shape, bias):
    examples, features, outputs = shape
    draw = np.random.default_rng(2)
    x = draw.standard_normal((examples, features)) * np.geomspace(3, 0.05, features) + 2 * bias
    y = x @ draw.standard_normal((features, outputs)) + draw.standard_normal((examples, outputs))
    inner, targets = contrasts(x, y, bias)
    options = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0, "tol": 1e-15, "max_iter": 100_000}
    oracle = BayesianRidge(fit_intercept=False, compute_score=True, **options)
    oracle.fit(np.kron(np.eye(outputs), inner), targets.T.reshape(-1))  # outputs with the same two variances
    path = path_of(x, y, bias)
    point = evidence(path)
    assert 1 / point.noise == pytest.approx(oracle.alpha_, rel=1e-8)
    assert alpha_of(point.strength, y) / point.noise == pytest.approx(oracle.lambda_, rel=1e-8)
    assert point.log_evidence == pytest.approx(oracle.scores_[-1], rel=1e-10)
    assert path.state_at(point.strength)["weight"].numpy().reshape(-1) == pytest.approx(oracle.coef_, rel=1e-7)
    assert point.log_evidence > max(other.log_evidence for other in path)


def test_the_evidence_is_at_the_fixed_point_of_mackay(bias):
    x, y = PROBLEMS["tall"]
    point = evidence(path_of(x, y, bias))
    determined = point.degrees_of_freedom - bias
    residuals = point.train_loss * y.size
    assert point.noise == pytest.approx(residuals / (len(x) - bias - determined), rel=1e-9)
    assert point.noise / alpha_of(point.strength, y) == pytest.approx(point.norm**2 / determined, rel=1e-9)


def test_the_default_strengths_begin_at_ten_times_the_largest_curvature():
    x, y = map(torch.tensor, PROBLEMS["tall, three outputs"])
    head = nn.Linear(7, 3).double()
    path = ridge_path(head, (x, y))
    curvature = torch.autograd.functional.hessian(
        lambda w: F.mse_loss(F.linear(x - x.mean(0), w), y), head.weight.detach()
    )
    largest = torch.linalg.eigvalsh(curvature.reshape(21, 21)).max().item()
    assert path[0].strength == pytest.approx(10 * largest, rel=1e-10)
    assert path[-1].strength == pytest.approx(10 * largest * 1e-8, rel=1e-10)
    assert len(path) == 30


def test_ten_thousand_features_in_single_precision():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 10_000, generator=draw)
    y = x[:, :40].sum(1, keepdim=True) + torch.randn(60, 1, generator=draw)
    path = ridge_path(nn.Linear(10_000, 1), (x, y), strengths=[30.0])
    oracle = Ridge(alpha_of(30.0, y.numpy()), solver="svd").fit(x.double().numpy(), y.double().numpy())
    state = path.state_at(30.0)
    assert state["weight"].dtype == torch.float32
    assert state["weight"].numpy() == pytest.approx(oracle.coef_.reshape(1, -1), rel=1e-5, abs=1e-9)
    assert math.isclose(path[0].norm, np.linalg.norm(oracle.coef_), rel_tol=1e-9)
