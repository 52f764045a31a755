"""Constraints as penalties: their algebra, their optima, and what they do in a training."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch import Tensor, nn

import torchreg.penalties
from tests.cases import each_constraint
from tests.formulas import lengths
from tests.helpers import FEATURES, assert_bit_equal, assert_close, make_data, make_model, train, weights_of
from torchreg import L1, L2, Regularizer, everything
from torchreg.penalties.constraints import L1Ball, L2Ball, LinfBall, MaxNorm, NonNegative, Simplex, UnitNorm

# -- as penalties -------------------------------------------------------------------------------------------------


@pytest.mark.shows("prox")
@each_constraint
def test_the_prox_is_the_projection_whatever_the_step(case):
    w = 3 * torch.randn(3, 4, dtype=torch.float64)
    for step in (0.0, 0.1, torch.tensor(7.0)):
        assert_bit_equal(case.constraint.prox(w, step), case.constraint.project(w))


@pytest.mark.shows("gradient")
@each_constraint
def test_the_gradient_is_zero_and_the_value_has_none(case):
    w = torch.randn(3, 4, requires_grad=True)
    assert_bit_equal(case.constraint.gradient(w.detach()), torch.zeros(3, 4))
    assert not case.constraint.value(w).requires_grad


@pytest.mark.shows("algebra")
@each_constraint
def test_constraints_survive_copies_and_their_repr_is_the_call(case):
    constraint = case.constraint
    names = dict(vars(torchreg.penalties))
    for other in (copy.deepcopy(constraint), pickle.loads(pickle.dumps(constraint)), eval(repr(constraint), names)):
        assert other == constraint
        assert hash(other) == hash(constraint)
        assert type(other) is type(constraint)


def test_constraints_of_another_kind_bound_or_groups_are_unequal():
    assert len({MaxNorm(1), MaxNorm(2), MaxNorm(1, groups="input"), L2Ball(1, groups="output"), NonNegative()}) == 5
    assert MaxNorm(1) == MaxNorm(1.0)
    with pytest.raises(FrozenInstanceError):
        MaxNorm(1.0).max_norm = 2.0


@pytest.mark.parametrize("bad", [0, -1.0, torch.inf, torch.nan])
@pytest.mark.parametrize(
    ("make", "name"),
    [(MaxNorm, "max_norm"), (L1Ball, "radius"), (L2Ball, "radius"), (LinfBall, "radius"), (Simplex, "total")],
)
def test_bounds_must_be_positive_and_finite(make, name, bad):
    with pytest.raises(ValueError, match=f"^{make.__name__}: {name} must be positive and finite, got {bad}"):
        make(bad)
    with pytest.raises(TypeError, match=f"^{make.__name__}: {name} must be a number, got 'one'"):
        make("one")


@pytest.mark.shows("algebra")
@each_constraint
def test_a_constraint_has_no_strength_to_multiply(case):
    for multiply in (lambda c: 0.5 * c, lambda c: c * 2, lambda c: 0.5 * (L2(1.0) + c)):
        with pytest.raises(TypeError, match=f"^{type(case.constraint).__name__}: a constraint has no strength"):
            multiply(case.constraint)


def test_a_ridge_and_a_constraint_have_a_proximal_operator_together():
    w = 3 * torch.randn(3, 4, dtype=torch.float64)
    both = L2(0.5) + MaxNorm(1.0)
    assert_close(both.prox(w, 0.2), torch.renorm(w / 1.1, 2, 0, 1.0), tolerance=1e-6)


# -- optimality ---------------------------------------------------------------------------------------------------


def least_squares(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ w - y) ** 2).mean() / 2


def gradient_at(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    w = w.clone().requires_grad_()
    least_squares(w, x, y).backward()
    return w.grad


def test_scikit_learns_lasso_is_the_optimum_in_the_l1_ball():
    x, y = make_data()
    w = torch.from_numpy(Lasso(alpha=0.1, fit_intercept=False, tol=1e-14).fit(x.numpy(), y[:, 0].numpy()).coef_)
    constraint = L1Ball(w.abs().sum().item())
    assert 0 < w.count_nonzero() < FEATURES
    assert constraint.optimality(w, gradient_at(w, x, y[:, 0])) < 1e-10
    assert constraint.optimality(0.9 * w, gradient_at(0.9 * w, x, y[:, 0])) > 1e-3


def test_scipys_nonnegative_least_squares_is_the_optimum_among_the_nonnegative():
    x, y = make_data()
    w = torch.from_numpy(nnls(x.numpy(), y[:, 0].numpy())[0])
    assert 0 < w.count_nonzero() < FEATURES
    assert NonNegative().optimality(w, gradient_at(w, x, y[:, 0])) < 1e-10
    assert NonNegative().optimality(w + 0.01, gradient_at(w + 0.01, x, y[:, 0])) > 1e-3


def test_eigenvectors_are_the_stationary_points_of_a_quadratic_form_on_the_sphere():
    a = torch.randn(4, 4, dtype=torch.float64)
    a = a + a.T + 8 * torch.eye(4, dtype=torch.float64)  # a step along the whole gradient would pass the center
    values, vectors = torch.linalg.eigh(a)
    assert values.max() > 2
    for w in vectors.T:
        assert UnitNorm("tensor").optimality(w, a @ w) < 1e-10
    between = F.normalize(vectors[:, 0] + vectors[:, 1], dim=0)
    assert UnitNorm("tensor").optimality(between, a @ between) > 1e-3


def test_at_an_optimum_inside_nothing_but_the_gradient_counts():
    w, gradient = torch.full((2, 2), 0.1), torch.full((2, 2), 0.02)
    for constraint in (MaxNorm(9.0), NonNegative(), L1Ball(9.0), L2Ball(9.0), LinfBall(9.0)):
        assert_close(constraint.optimality(w, gradient), gradient.norm(), tolerance=1e-6)


# -- in a training ------------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.1),
}
each_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def trained_by_hand(make_optimizer: Callable, act: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """A model whose weights the user's loop itself changes after each of 20 steps."""
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    for _ in range(20):
        train(model, optimizer, steps=1)
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight.copy_(act(layer.weight))
    return model


@each_optimizer
def test_a_training_with_max_norm_is_the_loop_with_renorm_written_by_hand(make_optimizer):
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    Regularizer(model, MaxNorm(0.5), mode="prox").attach(optimizer)
    train(model, optimizer, steps=20)

    free = []  # how long the vectors got before each projection

    def renorm(w: Tensor) -> Tensor:
        free.append(lengths(w).max())
        return torch.renorm(w, 2, 0, 0.5)

    assert_close(weights_of(model), weights_of(trained_by_hand(make_optimizer, renorm)), tolerance=1e-5)
    assert max(free) > 0.6
    for layer in (model[0], model[2]):
        assert lengths(layer.weight).max() <= 0.5 * (1 + 1e-12)


@pytest.mark.shows("prox step")
@each_constraint
@each_optimizer
def test_after_every_training_the_weights_are_inside(case, make_optimizer):
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(10)
    regularizer = Regularizer(model, case.constraint, mode="prox").attach(optimizer)
    assert regularizer.value() == torch.inf
    train(model, optimizer, steps=5)
    assert regularizer.value() == 0
    for layer in (model[0], model[2]):
        assert case.excess(layer.weight.detach()).max() <= 1e-12


def test_projected_gradient_descent_in_the_l1_ball_finds_scikit_learns_lasso():
    x, y = make_data()
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14).fit(x.numpy(), y[:, 0].numpy()).coef_
    model = nn.Linear(FEATURES, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    Regularizer(model, L1Ball(float(np.abs(expected).sum())), mode="prox").attach(optimizer)
    for _ in range(500):
        optimizer.zero_grad()
        least_squares(model.weight[0], x, y[:, 0]).backward()
        optimizer.step()
    assert_close(model.weight.detach()[0], torch.from_numpy(expected), tolerance=1e-8)
    assert_bit_equal(model.weight[0] == 0, torch.from_numpy(expected) == 0)


def test_a_lasso_and_a_constraint_are_two_regularizers():
    model = make_model()
    make_optimizer = partial(torch.optim.SGD, lr=0.5)
    optimizer = make_optimizer(model.parameters())
    Regularizer(model, L1(0.01), mode="prox").attach(optimizer)
    Regularizer(model, LinfBall(0.1), mode="prox").attach(optimizer)
    train(model, optimizer, steps=20)

    expected = trained_by_hand(make_optimizer, lambda w: F.hardtanh(F.softshrink(w, 0.005), -0.1, 0.1))
    assert_close(weights_of(model), weights_of(expected))
    assert (model[0].weight == 0).any()
    assert (model[2].weight.abs() == 0.1).any()


def test_biases_are_constrained_only_when_asked():
    for select, free in [({}, True), ({"select": everything}, False)]:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        Regularizer(model, LinfBall(0.01), mode="prox", **select).attach(optimizer)
        train(model, optimizer, steps=1)
        assert (model[0].bias.abs().max() > 0.01) == free


@pytest.mark.shows("algebra")
@each_constraint
@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled"])
def test_a_constraint_acts_in_mode_prox_alone(case, mode):
    for penalty in (case.constraint, {"*": case.constraint}, L2(1.0) + case.constraint):
        with pytest.raises(ValueError, match="mode 'prox'"):
            Regularizer(make_model(), penalty, mode=mode)
