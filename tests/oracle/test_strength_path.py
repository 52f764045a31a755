"""Paths of linear models against scikit-learn's, at every strength, and the strength that cross-validation chooses."""

import numpy as np
import pytest
import torch
from sklearn import datasets, linear_model, model_selection, preprocessing
from torch import nn

from torchreg import L1, L2, ElasticNet, GroupLasso
from torchreg.tuning import best, one_standard_error, strength_max, strength_path

TOLERANCE = 1e-5  # of coefficients, to their size


def half_square(outputs, targets):
    return (outputs - targets).square().mean() / 2


def diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    return preprocessing.scale(x), y / y.std()


def wide():
    """Many more features than examples, few of which count."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 200))
    return x, x[:, :5] @ np.array([3.0, -2.0, 1.5, 1.0, -1.0]) + draw.standard_normal(40)


def cancer():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return preprocessing.scale(x), y


def tensors(x, y):
    targets = torch.tensor(y) if y.dtype.kind == "i" else torch.tensor(y)[:, None]
    return torch.tensor(x), targets


def path_of(x, y, penalty, strengths=None, outputs=1, **options):
    train = tensors(x, y)
    if y.dtype.kind != "i":
        options = {"criterion": half_square, **options}
    options = {"tolerance": 1e-9, "keep": True, "verbose": False, "valid": train, **options}
    make = lambda: nn.Linear(x.shape[1], outputs)  # noqa: E731
    return strength_path(make, penalty, train, strengths=strengths, **options)


def coefficients(path):
    return np.stack([point.models[0].weight.detach()[0].numpy() for point in path], axis=1)


@pytest.mark.parametrize("problem", [diabetes, wide])
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_the_path_is_that_of_scikit_learn_at_every_strength(problem, l1_ratio):
    x, y = problem()
    alphas, expected, gaps = linear_model.enet_path(
        x - x.mean(0), y - y.mean(), l1_ratio=l1_ratio, alphas=50, eps=1e-3, tol=1e-14, max_iter=10**6
    )
    path = path_of(x, y, ElasticNet(1.0, l1_ratio=l1_ratio), alphas)
    found = coefficients(path)
    assert abs(found - expected).max() < TOLERANCE * max(1, abs(expected).max())
    assert ((found == 0) == (abs(expected) < 1e-9)).mean() > 0.999
    assert all(point.optimality < 1e-8 for point in path)
    assert gaps.max() < 1e-8  # the oracle has converged too


def test_the_gap_to_the_dual_certifies_the_minimum():
    x, y = wide()
    for point in path_of(x, y, L1(1.0), count=12):
        weight, bias = (part.detach().numpy() for part in point.models[0].parameters())
        rest = y - x @ weight[0] - bias
        feasible = rest * min(1.0, point.strength * len(y) / abs(x.T @ rest).max())
        feasible -= feasible.mean()  # the bias's condition
        primal = rest @ rest / 2 / len(y) + point.strength * abs(weight).sum()
        dual = (y @ feasible - feasible @ feasible / 2) / len(y)
        assert 0 <= primal - dual + 1e-12 < 1e-8


def test_the_logistic_lasso_is_that_of_scikit_learn():
    x, y = cancer()
    strengths = [0.1, 0.03, 0.01]
    path = path_of(x, y.astype(np.int64), L1(1.0), strengths, outputs=1, criterion=binary, tolerance=1e-8)
    for point, found in zip(path, coefficients(path).T, strict=True):
        oracle = linear_model.LogisticRegression(
            l1_ratio=1.0, C=1 / (point.strength * len(y)), solver="saga", tol=1e-10, max_iter=200_000, random_state=0
        ).fit(x, y)
        assert abs(found - oracle.coef_[0]).max() < TOLERANCE * abs(oracle.coef_).max()
        assert abs(point.models[0].bias.item() - oracle.intercept_[0]) < TOLERANCE * 10
        assert point.optimality < 1e-7


def binary(outputs, targets):
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype))


@pytest.mark.parametrize("problem", [diabetes, wide])
def test_at_the_largest_strength_everything_is_zero_and_just_below_it_is_not(problem):
    x, y = problem()
    found = strength_max(nn.Linear(x.shape[1], 1), L1(1.0), tensors(x, y), criterion=half_square)
    assert found.exact
    assert found.strength == pytest.approx(abs(x.T @ (y - y.mean())).max() / len(y), rel=1e-12)
    path = path_of(x, y, L1(1.0), count=2, ratio=0.999)
    assert path[0].zeros == 1
    assert path[1].zeros < 1
    model, train = nn.Linear(x.shape[1], 1), tensors(x, y)
    elastic = strength_max(model, ElasticNet(2.0, l1_ratio=0.5), train, criterion=half_square)
    assert elastic.strength == pytest.approx(found.strength, rel=1e-12)
    summed = strength_max(model, L1(0.5) + L2(3.0), train, criterion=half_square)
    assert summed.strength == pytest.approx(2 * found.strength, rel=1e-9)


def test_the_largest_strength_is_taken_at_the_fitted_bias_of_a_classifier():
    x, y = cancer()
    found = strength_max(nn.Linear(x.shape[1], 1), L1(1.0), tensors(x, y), criterion=binary)
    assert found.strength == pytest.approx(abs(x.T @ (y - y.mean())).max() / len(y), rel=1e-9)
    path = path_of(x, y, L1(1.0), count=2, ratio=0.999, criterion=binary)
    assert [point.zeros == 1 for point in path] == [True, False]


def test_whole_groups_are_zero_at_the_largest_strength_of_a_group_lasso():
    x, y = cancer()
    train = torch.tensor(x), torch.tensor(y)
    path = strength_path(
        lambda: nn.Linear(x.shape[1], 2),
        GroupLasso(1.0, groups="input"),
        train,
        train,
        count=2,
        ratio=0.99,
        verbose=False,
    )
    assert [point.zeros == 1 for point in path] == [True, False]


def test_cross_validation_picks_the_strength_that_lasso_cv_picks():
    x, y = diabetes()
    folds = list(model_selection.KFold(5, shuffle=True, random_state=1).split(x))
    oracle = linear_model.LassoCV(alphas=40, cv=folds, tol=1e-12, max_iter=10**6).fit(x, y)
    path = path_of(x, y, L1(1.0), oracle.alphas_, valid=None, folds=folds, keep=False, tolerance=1e-7)
    errors = oracle.mse_path_.mean(1) / 2
    assert [point.valid_loss.mean for point in path] == pytest.approx(errors, rel=1e-6)
    assert best(path).strength == oracle.alpha_
    spread = (oracle.mse_path_ / 2).std(1, ddof=1) / 5**0.5
    assert [point.valid_loss.se for point in path] == pytest.approx(spread, rel=1e-5)
    within = errors <= errors.min() + spread[errors.argmin()]
    assert one_standard_error(path).strength == oracle.alphas_[within].max() > oracle.alpha_


@pytest.fixture(scope="module")
def cold():
    return path_of(*diabetes(), L1(1.0), count=6)


@pytest.mark.parametrize(
    "options",
    [
        {"warm": True},
        *({"executor": executor, "jobs": 2} for executor in ("stacked", "processes", "one after another")),
    ],
    ids=["warm", "stacked", "processes", "one after another"],
)
def test_a_warm_path_and_a_path_by_any_executor_is_the_cold_one(options, cold):
    path = path_of(*diabetes(), L1(1.0), count=6, **options)
    assert path.executor == options.get("executor", path.executor)
    assert coefficients(path) == pytest.approx(coefficients(cold), abs=1e-6)
