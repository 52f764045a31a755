"""Trained to the end, a linear model under our penalties is scikit-learn's Lasso, Ridge and ElasticNet."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from torch import nn

from tests.helpers import assert_close
from torchreg import L1, L2, Regularizer, adaptive

FEATURES, TARGET = load_diabetes(return_X_y=True)
FEATURES = FEATURES / FEATURES.std(axis=0)  # centered already
COUNT = len(TARGET)
X, Y = torch.from_numpy(FEATURES), torch.from_numpy(TARGET)[:, None]

# scikit-learn minimizes 1/(2n) |y - Xw - b|^2 + alpha (r |w|_1 + (1 - r)/2 |w|^2) for Lasso (r = 1) and ElasticNet,
# but |y - Xw - b|^2 + alpha |w|^2 for Ridge, which is 2n times ours at a strength of alpha / n.
TIGHT = {"tol": 1e-14, "max_iter": 1_000_000}
CASES = {
    "Lasso": (L1(3.0), Lasso(alpha=3.0, **TIGHT)),
    "Lasso, strong": (L1(20.0), Lasso(alpha=20.0, **TIGHT)),
    "ElasticNet": (L1(2.0) + L2(0.5), ElasticNet(alpha=2.5, l1_ratio=0.8, **TIGHT)),
    "Ridge": (L2(0.1), Ridge(alpha=0.1 * COUNT)),
}
each_case = pytest.mark.parametrize(("penalty", "judge"), CASES.values(), ids=CASES.keys())


def half_mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(prediction, target) / 2


def trained_by_proximal_steps(penalty) -> nn.Linear:
    design = np.column_stack([FEATURES, np.ones(COUNT)])
    lipschitz = np.linalg.eigvalsh(design.T @ design / COUNT)[-1]
    model = nn.Linear(X.shape[1], 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / lipschitz)
    Regularizer(model, penalty, mode="prox").attach(optimizer)
    for _ in range(2_000):
        optimizer.zero_grad()
        half_mse(model(X), Y).backward()
        optimizer.step()
    return model


def trained_by_lbfgs(penalty, mode: str) -> nn.Linear:
    model = nn.Linear(X.shape[1], 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    regularizer = Regularizer(model, penalty, mode=mode)
    criterion = regularizer.penalize(half_mse) if mode == "loss" else half_mse
    if mode != "loss":
        regularizer.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(X), Y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def assert_same_solution(model: nn.Linear, judge) -> None:
    judge.fit(FEATURES, TARGET)
    assert_close(model.weight.detach()[0], torch.from_numpy(judge.coef_), tolerance=1e-6)
    assert_close(model.bias.item(), float(judge.intercept_), tolerance=1e-6)
    assert np.array_equal(model.weight.detach().numpy()[0] == 0, judge.coef_ == 0)


@each_case
def test_proximal_training_reaches_scikit_learn(penalty, judge):
    model = trained_by_proximal_steps(penalty)
    assert_same_solution(model, judge)
    assert_optimal(model, penalty)


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_lbfgs_on_the_penalized_loss_reaches_ridge(mode):
    penalty, judge = CASES["Ridge"]
    assert_same_solution(trained_by_lbfgs(penalty, mode), judge)


def test_the_lasso_cases_are_not_trivial():
    zeros = [np.sum(judge.fit(FEATURES, TARGET).coef_ == 0) for _, judge in CASES.values()]
    assert 0 < zeros[0] < zeros[1] < X.shape[1]
    assert zeros[2] > 0 == zeros[3]


def assert_optimal(model: nn.Linear, penalty, tolerance: float = 1e-6) -> None:
    """The Karush-Kuhn-Tucker conditions: the loss's gradient is balanced by the penalty's, or within its kink."""
    w, residual = model.weight.detach().numpy()[0], (model(X) - Y).detach().numpy()[:, 0]
    strengths = {type(term): term.strength for term in penalty.terms}
    gradient = FEATURES.T @ residual / COUNT + strengths.get(L2, 0.0) * w
    kink = strengths.get(L1, 0.0)
    assert abs(residual.mean()) < tolerance  # the bias is not penalized
    assert np.all(np.abs(gradient + kink * np.sign(w))[w != 0] < tolerance)
    assert np.all(np.abs(gradient)[w == 0] <= kink + tolerance)


def test_the_optimality_check_fails_off_the_optimum():
    penalty, judge = CASES["Lasso"]
    judge.fit(FEATURES, TARGET)
    for index, change in ((np.argmax(judge.coef_), 1e-4), (np.argmin(np.abs(judge.coef_)), 1e-4)):
        model = nn.Linear(X.shape[1], 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(judge.coef_))
            model.bias.fill_(judge.intercept_)
            assert_optimal(model, penalty)
            model.weight[0, index] += change
        with pytest.raises(AssertionError):
            assert_optimal(model, penalty)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_adaptive_lasso_is_the_lasso_of_rescaled_features(power):
    fitted = nn.Linear(X.shape[1], 1, dtype=torch.float64)
    start = np.linalg.lstsq(FEATURES, TARGET - TARGET.mean(), rcond=None)[0]
    fitted.weight.data.copy_(torch.from_numpy(start))
    factors = np.abs(start) ** -power
    judge = Lasso(alpha=3.0 / np.median(factors), **TIGHT).fit(FEATURES / factors, TARGET)
    penalty = L1(3.0 / np.median(factors), weights=adaptive(fitted, power=power))
    model = trained_by_proximal_steps(penalty)
    assert_close(model.weight[0].detach(), torch.from_numpy(judge.coef_ / factors), tolerance=1e-8)
    assert (model.weight == 0).sum() == (judge.coef_ == 0).sum() > 0
    assert_close(model.bias.item(), judge.intercept_, tolerance=1e-8)
