"""The formulas on plain tensors. Drop masks are in test_dropout.py."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import assert_bit_equal, assert_close
from torchreg.functional import axpy_, half_square, l1_norm, row_lengths, shrink, soft_threshold

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = torch.tensor([-3.0, -1.0, -0.5, -0.0, 0.0, 1e-30, 0.5, 1.0, 1.0 + 1e-7, 3.0, torch.inf, -torch.inf])


@pytest.mark.parametrize("threshold", [0.0, 1e-7, 0.5, 1.0, 1e30])
def test_soft_threshold_is_torchs_softshrink(threshold):
    for w in (SPECIAL, torch.randn(7, 5), torch.randn(7, 5).T.double()):
        assert_close(soft_threshold(w, threshold), F.softshrink(w, threshold), tolerance=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_threshold_makes_exact_zeros_of_all_within_the_threshold(dtype):
    w = torch.linspace(-2, 2, 41, dtype=dtype)
    assert_bit_equal(soft_threshold(w, 1.0) == 0, w.abs() <= 1.0)
    assert_bit_equal(soft_threshold(w, torch.tensor(1.0)) == 0, w.abs() <= 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_threshold_given_as_tensor_equals_the_number_and_keeps_the_dtype(dtype):
    w = torch.randn(4, 3, dtype=dtype)
    assert_bit_equal(soft_threshold(w, torch.tensor(0.5)), soft_threshold(w, 0.5))


def test_a_threshold_broadcasts():
    w = torch.randn(3, 4, dtype=torch.float64)
    t = torch.tensor([[0.1], [0.5], [2.0]], dtype=torch.float64)
    expected = torch.stack([F.softshrink(row, lambd) for row, lambd in zip(w, (0.1, 0.5, 2.0), strict=True)])
    assert_close(soft_threshold(w, t), expected, tolerance=0)


@pytest.mark.parametrize("function", [soft_threshold, shrink])
@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_threshold_zero_is_the_identity_even_at_zero(function, zero):
    finite = SPECIAL[SPECIAL.isfinite()]
    assert_close(function(finite, zero), finite, tolerance=0)


@pytest.mark.parametrize("function", [soft_threshold, shrink])
@pytest.mark.parametrize("amount", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_nan_stays_visible_and_the_empty_stays_empty(function, amount):
    assert function(torch.tensor([torch.nan]), amount).isnan().all()
    assert function(torch.empty(0, 3), amount).shape == (0, 3)


def test_shrink_solves_its_optimality_condition():
    w = torch.randn(100, dtype=torch.float64)
    u = shrink(w, 0.7)
    assert_close(u - w + 0.7 * u, torch.zeros_like(w))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 2, 2)])
def test_norms_are_those_of_linalg(shape):
    w = torch.randn(shape, dtype=torch.float64)
    assert_close(l1_norm(w), torch.linalg.vector_norm(w, ord=1))
    assert_close(half_square(w), torch.linalg.vector_norm(w) ** 2 / 2)


def test_norms_of_complex_weights_are_those_of_their_magnitudes():
    w = torch.randn(5, 4, dtype=torch.complex128)
    assert_close(l1_norm(w), torch.linalg.vector_norm(w, ord=1))
    assert_close(half_square(w), torch.linalg.vector_norm(w) ** 2 / 2)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3000), (1, 2_200_000), (600, 1000), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_lengths_in_one_pass_are_those_of_linalg(shape, turned, dtype):
    rows = torch.full(shape, 0.3).to(dtype)  # equal, so that what rounding loses is not made up for elsewhere
    if turned:
        rows = rows.t().contiguous().t()
    exact = rows.to(torch.complex128 if dtype.is_complex else torch.float64)
    lengths = row_lengths(rows)
    assert lengths.dtype == torch.float32
    assert_close(lengths.double(), torch.linalg.vector_norm(exact, dim=1, keepdim=True), tolerance=3e-6)


@pytest.mark.parametrize("norm", [l1_norm, half_square])
def test_norms_at_zero_have_a_zero_gradient(norm):
    w = torch.zeros(3, requires_grad=True)
    norm(w).backward()
    assert_bit_equal(w.grad, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_do_not_stall(dtype):
    # Summed one by one in half precision, 1 + 1 + ... stops growing at 2048 (float16) or 256 (bfloat16).
    w = torch.ones(8192, dtype=dtype)
    assert l1_norm(w).item() == 8192
    assert half_square(w).item() == 4096


def test_axpy_is_torchs_addition_in_place():
    y, x = torch.randn(2, 50)
    assert_bit_equal(axpy_(y.clone(), x, 0.3), y.add(x, alpha=0.3))
    assert_close(axpy_(y.clone(), x, torch.tensor(0.3)), y + 0.3 * x, tolerance=1e-6)
    assert axpy_(y, x, 1.0) is y
