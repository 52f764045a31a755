"""The largest singular value, followed from step to step."""

import copy
import gc
import pickle

import pytest
import torch

from tests.helpers import assert_bit_equal, assert_close
from torchreg.functional import leading_triples, low_rank_threshold, singular_value_threshold, tracking
from torchreg.functional.tracking import _starts
from torchreg.penalties import Nuclear, SpectralNorm

ROWS, COLUMNS = 150, 140
BULK = [1.0 - 0.004 * i for i in range(COLUMNS - 4)]


def matrix_with(*leading, dtype=torch.float64):
    """A matrix with these singular values and many smaller ones."""
    sigma = torch.tensor([*leading, *BULK], dtype=torch.float64)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    left = torch.linalg.qr(torch.randn(ROWS, len(sigma), dtype=wide)).Q
    right = torch.linalg.qr(torch.randn(COLUMNS, len(sigma), dtype=wide)).Q
    return ((left * sigma) @ right.mH).to(dtype)


def exact_gradient(w):
    left, sigma, right = torch.linalg.svd(w, full_matrices=False)
    many = int((sigma >= sigma[0] * (1 - 1e-6)).sum())
    return sigma[0] / many * left[:, :many] @ right[:many]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("leading", [(3.0, 2.0), (2.0, 1.9, 1.8, 1.7), (2.0, 2.0, 0.5)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_the_triples_are_those_of_a_decomposition(leading, dtype, turned):
    w = matrix_with(*leading, dtype=dtype)
    w = w.mH if turned else w
    left, sigma, right = leading_triples(w, w)
    precision = torch.finfo(dtype).eps
    assert_close(sigma.double(), torch.full((leading.count(leading[0]),), leading[0]).double(), 100 * precision)
    assert_close(w.mH @ left, right.mH * sigma, 100 * precision)
    wide = w.to(torch.complex128 if dtype.is_complex else torch.float64)
    mean = ((left * sigma) @ right / len(sigma)).to(wide.dtype)
    assert_close(mean, exact_gradient(wide), 20 * precision**0.5)  # vectors have the root of the precision of values


@pytest.mark.parametrize("speed", [0.05, 0.5])
def test_a_singular_value_that_overtakes_is_found(speed):
    # At first it is smaller than all that are followed, and it has no part in their vectors.
    sigma = torch.tensor([2.0, *BULK, 0.0], dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, len(sigma), dtype=torch.float64)).Q for n in (ROWS, COLUMNS))
    w = torch.empty(ROWS, COLUMNS, dtype=torch.float64)
    for _ in range(80):
        w.copy_((left * sigma) @ right.T)
        found = leading_triples(w, w)
        assert found is not None
        assert_close(found[1][-1], sigma.max(), tolerance=1e-9)
        sigma[-1] += speed


def test_what_is_followed_takes_fewer_rounds(monkeypatch):
    w = matrix_with(3.0, 2.0)
    rounds = []
    original = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: rounds.append(1) or original(matrix))
    leading_triples(w, w)
    cold = len(rounds)
    w += 1e-6 * torch.randn_like(w)
    leading_triples(w, w)
    assert len(rounds) - cold < cold / 2


@pytest.mark.parametrize(
    "w",
    [
        torch.randn(128, 200),
        torch.zeros(200, 200),
        torch.randn(200, 200).index_fill(1, torch.tensor([3]), torch.nan),
        torch.randn(200, 200).index_fill(1, torch.tensor([3]), torch.inf),
        1e30 * torch.randn(200, 200),
        1e-30 * torch.randn(200, 200),
        torch.eye(200),
        torch.empty(0, 200),
    ],
    ids=["small", "zero", "nan", "inf", "huge", "tiny", "orthogonal", "empty"],
)
def test_what_cannot_be_followed_is_left_to_a_decomposition(w):
    assert leading_triples(w, w) is None


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (140, 75, 2), (140, 150)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
def test_in_a_step_the_gradient_of_the_spectral_norm_is_as_outside_of_one(shape, dtype, scale):
    w = matrix_with(3.0, 2.0, dtype=torch.float64)
    w = (w if shape[0] == ROWS else w.T.reshape(shape)).to(dtype)
    penalty, grad = SpectralNorm(0.5), torch.randn(shape).to(dtype)
    expected, tolerance = penalty.gradient(w).double() * 0.3, 4 * torch.finfo(dtype).eps ** 0.5
    with torch.no_grad():
        assert_close(penalty._add_gradient_(grad.clone(), w, scale).double() - grad.double(), expected, tolerance)
        turned = grad.transpose(0, 1).contiguous().transpose(0, 1)
        assert_close(penalty._add_gradient_(turned, w, scale).double() - grad.double(), expected, tolerance)
        moved = w.clone()
        assert_close(w.double() - penalty._descend_(moved, scale).double(), expected, tolerance)


def test_what_is_kept_is_in_no_copy_and_dies_with_the_weight():
    gc.collect()
    w = torch.nn.Parameter(matrix_with(3.0, 2.0))
    state = torch.get_rng_state()
    with torch.no_grad():
        SpectralNorm(1.0)._add_gradient_(torch.zeros_like(w), w)
    assert_bit_equal(torch.get_rng_state(), state)
    assert w in _starts
    assert copy.deepcopy(w) not in _starts
    assert pickle.loads(pickle.dumps(w)).__dict__ == {}
    before = len(_starts)
    del w
    gc.collect()
    assert len(_starts) == before - 1


# -- the singular value threshold -------------------------------------------------------------------------------------


@pytest.fixture
def decompositions(monkeypatch):
    """A list that grows by one for each decomposition of a whole matrix."""
    made = []
    monkeypatch.setattr(tracking, "svd", lambda matrix: made.append(1) or torch.linalg.svd(matrix, full_matrices=False))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_a_low_rank_is_thresholded_without_a_decomposition(dtype, decompositions):
    w = matrix_with(5.0, 4.0, 3.0, dtype=dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for _ in range(20):
        expected = singular_value_threshold(w.to(wide), 1.2)
        w.copy_(low_rank_threshold(w, w, 1.2))
        largest = torch.linalg.matrix_norm(expected, 2)
        assert (w - expected).norm() <= 16 * torch.finfo(dtype).eps * largest
        w.mul_(1.5).add_(1e-3 * torch.randn_like(w))
    assert len(decompositions) == 1


@pytest.mark.parametrize("growth", [0.02, 0.2, 1.7])
@pytest.mark.parametrize("is_by_chance", [True, False])
def test_a_direction_that_rises_above_the_threshold_is_kept(growth, is_by_chance, decompositions, monkeypatch):
    left, right = (
        torch.linalg.qr(torch.randn(ROWS, 60).double()).Q,
        torch.linalg.qr(torch.randn(COLUMNS, 60).double()).Q,
    )
    if not is_by_chance:  # then no vector that is followed has a part of the new direction
        noise, new = tracking._noise, right[:, -1:]

        def without(matrix, count, draw):
            drawn = noise(matrix, count, draw)
            return drawn if count == tracking._PROBES else drawn - new @ (new.mT @ drawn)

        monkeypatch.setattr(tracking, "_noise", without)
    sigma = torch.cat([torch.tensor([5.0, 4.0]), torch.linspace(0.9, 0.1, 57), torch.zeros(1)]).double()
    w = torch.empty(ROWS, COLUMNS, dtype=torch.float64)
    for _ in range(20):
        w.copy_((left * sigma) @ right.T)
        assert_close(low_rank_threshold(w, w, 1.0), (left * (sigma - 1).clamp(min=0)) @ right.T, tolerance=1e-9)
        sigma[-1] += growth
    assert len(decompositions) < 5


@pytest.mark.parametrize("kind", [torch.nan, torch.inf])
def test_the_threshold_of_what_is_not_finite_is_left_to_others(kind):
    w = matrix_with(5.0)
    low_rank_threshold(w, w, 1.2)
    w[2, 3] = kind
    assert low_rank_threshold(w, w, 1.2) is None
    with torch.no_grad():
        assert not Nuclear(1.0)._prox_(w, 1.2).isfinite().any()


@pytest.mark.parametrize("most", [1e37, 1e38])
def test_so_is_the_threshold_of_a_singular_value_that_overflows(most):
    w = torch.ones(200, 200) + 0.01 * torch.randn(200, 200)
    assert low_rank_threshold(w, w, 5.0) is not None
    w.mul_(most / w.abs().max())
    assert low_rank_threshold(w, w, 5.0) is None


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (140, 75, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [0.0, 0.6, torch.tensor(0.6), 6.0], ids=repr)
def test_in_a_step_the_prox_of_the_nuclear_norm_is_as_outside_of_one(shape, dtype, step):
    w = matrix_with(5.0, 4.0)
    w = (w if shape[0] == ROWS else w.T.reshape(shape)).to(dtype)
    with torch.no_grad():
        for _ in range(3):
            expected = Nuclear(2.0).prox(w.double(), step)
            assert_close(Nuclear(2.0)._prox_(w, step).double(), expected, 8 * torch.finfo(dtype).eps)
            w.mul_(1.4)
