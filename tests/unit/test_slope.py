"""SLOPE and what it is made of: isotonic regressions that scikit-learn agrees with, also contrived and large ones."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import norm
from sklearn.isotonic import isotonic_regression

from tests.helpers import assert_bit_equal, assert_close, make_data
from torchreg import L1, SLOPE, Regularizer
from torchreg import functional as f


def by_scikit_learn(y):
    return torch.from_numpy(isotonic_regression(y.double().numpy(), increasing=False).copy())


def thresholds(size, q):
    return torch.from_numpy(norm.isf(np.arange(1, size + 1) * q / (2 * size)))


VECTORS = {
    "noise": torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "trend": torch.linspace(3, 0, 3000, dtype=torch.float64)
    + torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "ascending": torch.arange(500, dtype=torch.float64),
    "descending": -torch.arange(500, dtype=torch.float64),
    "equal": torch.full((500,), 0.1, dtype=torch.float64),
    "one that merges all others one by one": torch.cat([-torch.arange(400, dtype=torch.float64), torch.tensor([1e9])]),
    "such ones after each other": torch.cat(
        [torch.tensor([-1.0, -2.0, -3.0, 7.0]) * 4.0**k for k in range(40)]
    ).double(),
    "one": torch.ones(1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_isotonic_regression_is_scikit_learns(name):
    y = VECTORS[name]
    found = f.isotonic(y)
    assert_close(found / (1 + y.abs().sum()), by_scikit_learn(y) / (1 + y.abs().sum()))
    assert_close(found.sum(), y.sum(), tolerance=1e-9)
    for piece in (y.flip(0), y.float()):
        scale = 1 + piece.double().abs().sum()
        tolerance = 1e-12 if piece.dtype == torch.float64 else 1e-6
        assert_close(f.isotonic(piece).double() / scale, by_scikit_learn(piece) / scale, tolerance=tolerance)


def test_of_nothing_it_is_nothing():
    assert f.isotonic(torch.ones(0)).shape == (0,)
    assert SLOPE(0.1).prox(torch.ones(0, 3), 1.0).shape == (0, 3)


def test_parts_of_their_own_are_regressed_on_their_own():
    draw = torch.Generator().manual_seed(0)
    for rows, width in [(7, 5), (3, 400)]:
        y = torch.randn(rows, width, dtype=torch.float64, generator=draw)
        y[:, -1] += 1e6 * torch.arange(rows)  # so that parts would merge, one after another
        apart = torch.zeros(rows, width, dtype=torch.bool)
        apart[:, 0] = True
        expected = torch.cat([by_scikit_learn(row) for row in y])
        assert_close(f.isotonic(y.flatten(), apart.flatten()[1:]) / 1e6, expected / 1e6, tolerance=1e-12)


def test_the_isotonic_regression_is_differentiable():
    y = torch.randn(12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f.isotonic, y)


@pytest.mark.parametrize("size", [1, 2, 30, 2000])
@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("q", [0.01, 0.5, 0.99])
def test_the_prox_is_made_of_scikit_learns_isotonic_regression(size, strength, q):
    w = torch.randn(size, dtype=torch.float64)
    order = w.abs().argsort(descending=True)
    expected = torch.zeros_like(w)
    expected[order] = by_scikit_learn(w.abs()[order] - 0.5 * strength * thresholds(size, q)).clamp(min=0)
    found = SLOPE(strength, q=q).prox(w, 0.5)
    assert_close(found, w.sgn() * expected)
    assert_bit_equal(found == 0, expected == 0)


def test_the_prox_of_a_million_weights():
    w = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    size = w.abs().double()
    order = size.argsort(descending=True)
    expected = torch.zeros_like(size)
    expected[order] = by_scikit_learn(size[order] - 0.9 * thresholds(len(w), 0.9)).clamp(min=0)
    found = SLOPE(0.9, q=0.9).prox(w, 1.0)
    assert_close(found.double(), w.sgn() * expected, tolerance=1e-6)
    assert len(found.abs().unique()) < 1 + found.count_nonzero()  # some have become equal


def test_the_value_is_the_largest_over_all_orders():
    w = torch.randn(5, dtype=torch.float64)
    each = 0.7 * thresholds(5, 0.3)
    expected = max((w.abs()[list(order)] * each).sum() for order in permutations(range(5)))
    assert_close(SLOPE(0.7, q=0.3).value(w), expected)


def test_the_distance_to_the_subdifferential_is_the_one_that_a_solver_finds():
    # With ties, zeros and both: the subgradients are the mixtures of the orders, signs and all.
    each = 0.7 * thresholds(4, 0.3)
    for w in ([1.0, -1.0, 0.0, 0.0], [2.0, 2.0, -2.0, 0.5], [0.0, 0.0, 0.0, 3.0], [0.0] * 4, [3.0, 1.0, -2.0, 0.5]):
        w = torch.tensor(w, dtype=torch.float64)
        corners = []
        for order in permutations(range(4)):
            if (w.abs()[list(order)].diff() <= 0).all():
                for signs in range(16):
                    sign = torch.tensor([1.0 if signs >> i & 1 else -1.0 for i in range(4)], dtype=torch.float64)
                    sign = torch.where(w == 0, sign, w.sgn())
                    corner = torch.zeros(4, dtype=torch.float64)
                    corner[list(order)] = each
                    corners.append(corner * sign)
        corners = torch.stack(corners).unique(dim=0)
        for scale in (0.1, 1.0, 5.0):
            gradient = scale * torch.randn(4, dtype=torch.float64)
            # The least norm of a mixture of points: for a multiple t of weights that add up to 1, with the norm d, the
            # least of (t d)^2 + (t - 1)^2 is d^2 / (1 + d^2), which rises with d.
            points = torch.cat([(corners + gradient).T, torch.ones(1, len(corners), dtype=torch.float64)])
            mix, _ = nnls(points.numpy(), np.array([0.0] * 4 + [1.0]))
            found = (points[:4] @ torch.from_numpy(mix / mix.sum())).norm()
            assert_close(SLOPE(0.7, q=0.3).optimality(w, gradient), found, tolerance=1e-9)


def test_a_training_ends_where_nothing_pulls():
    x, y = make_data()
    model = torch.nn.Linear(x.shape[1], 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    penalty = SLOPE(0.1, q=0.5)
    Regularizer(model, penalty, mode="prox").attach(optimizer)
    for _ in range(2000):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y[:, 0]).square().mean() / 2).backward()
        optimizer.step()
    assert penalty.optimality(model.weight.detach(), model.weight.grad) < 1e-10
    assert 0 < (model.weight == 0).sum() < model.weight.numel()


def test_of_one_weight_it_is_the_lasso():
    w = torch.randn(1, dtype=torch.float64)
    strength = norm.isf(0.15)
    assert_close(SLOPE(2.0, q=0.3).value(w), L1(2.0 * strength).value(w))
    assert_close(SLOPE(2.0, q=0.3).prox(w, 0.1), L1(2.0 * strength).prox(w, 0.1))


def test_complex_weights_keep_their_phase():
    w = torch.randn(6, 3, dtype=torch.complex128)
    penalty = SLOPE(0.4, q=0.6)
    assert_close(penalty.value(w), penalty.value(w.abs()))
    assert_close(penalty.prox(w, 1.0), torch.polar(penalty.prox(w.abs(), 1.0), w.angle()))
    assert_close(penalty.optimality(w, -penalty.gradient(w)).item(), 0.0)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, torch.nan])
def test_a_wrong_rate_gets_one_line(bad):
    with pytest.raises(ValueError, match=rf"\ASLOPE: q must be in \(0, 1\), got {bad}\Z"):
        SLOPE(0.1, q=bad)
