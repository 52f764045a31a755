"""Penalties on singular values and on Gram matrices."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq, minimize
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from torchreg.penalties import (
    SRIP,
    ConvolutionNorm,
    DoubleSoftOrthogonality,
    Nuclear,
    SoftOrthogonality,
    SpectralNorm,
)
from torchreg.selection.parameters import ParamInfo

PROXIMAL = [Nuclear(0.3), SpectralNorm(0.5)]
PENALTIES = [*PROXIMAL, SRIP(0.4), SoftOrthogonality(0.2), DoubleSoftOrthogonality(0.2)]
each_proximal = pytest.mark.parametrize("penalty", PROXIMAL, ids=repr)
each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
each_shape = pytest.mark.parametrize("shape", [(3, 4), (4, 3), (3, 3), (4, 1), (1, 4)], ids=str)
numbers = st.floats(-9, 9, allow_subnormal=False) | st.sampled_from([0.0, 1.0])
weights = arrays(float, (3, 4), elements=numbers).map(torch.from_numpy)


def formula(penalty, w):
    """The value, by other means than singular values where there are some."""
    s, gram = penalty.strength, w @ w.mH
    identity = torch.eye(len(w), dtype=w.dtype)
    if isinstance(penalty, Nuclear):
        return s * torch.linalg.matrix_norm(w, "nuc")
    if isinstance(penalty, SpectralNorm):
        return s / 2 * torch.linalg.eigvalsh(gram)[-1]
    if isinstance(penalty, SRIP):
        smaller = gram if len(w) <= w.shape[1] else w.mH @ w
        return s * (torch.linalg.eigvalsh(smaller) - 1).abs().amax()
    value = s * (gram - identity).abs().square().sum()
    if isinstance(penalty, DoubleSoftOrthogonality):
        value = value + s * (w.mH @ w - torch.eye(w.shape[1], dtype=w.dtype)).abs().square().sum()
    return value


def objective(penalty, u, w, step):
    return (u - w).abs().square().sum() / 2 + step * formula(penalty, u)


def matrix_with(sigma, rows=4, columns=3):
    """A matrix with these singular values, and else by chance."""
    left = torch.linalg.qr(torch.randn(rows, len(sigma), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(sigma), dtype=torch.float64)).Q
    return left @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right.T


def slope_along(function, w, direction, h=1e-6):
    return (function(w + h * direction) - function(w - h * direction)) / (2 * h)


@each_penalty
@each_shape
def test_the_value_is_its_formula_and_its_gradient_that_of_autograd(penalty, shape):
    w = torch.randn(shape, dtype=torch.float64)
    assert_close(penalty.value(w), formula(penalty, w), tolerance=1e-10)
    for function in (penalty.value, lambda w: formula(penalty, w)):
        leaf = w.clone().requires_grad_()
        function(leaf).backward()
        assert_close(penalty.gradient(w), leaf.grad, tolerance=1e-9)


@each_penalty
@pytest.mark.parametrize("sigma", [(2.0, 2.0, 0.5), (3.0, 0.4, 0.4), (1.5, 1.5, 1.5)], ids=str)
def test_where_singular_values_repeat_the_gradient_is_the_mean_slope_of_both_sides(penalty, sigma):
    w, direction = matrix_with(sigma), torch.randn(4, 3, dtype=torch.float64)
    gradient = penalty.gradient(w)
    assert gradient.isfinite().all()
    if isinstance(penalty, SpectralNorm | SRIP):
        # Not differentiable: the directions that rotate the leading vectors are held against the definition.
        left, _, right = torch.linalg.svd(w, full_matrices=False)
        many = sum(abs(s * s - 1) == max(abs(t * t - 1) for t in sigma) for s in sigma)
        mean = left[:, :many] @ right[:many] / many * sigma[0]
        factor = penalty.strength * (2 if isinstance(penalty, SRIP) else 1)
        assert_close(gradient, factor * mean, tolerance=1e-9)
    else:
        slope = slope_along(lambda w: formula(penalty, w), w, direction)
        assert_close((gradient * direction).sum(), slope, tolerance=1e-6)


@each_penalty
@pytest.mark.parametrize("shape", [(3, 4), (4, 3)], ids=str)
def test_the_value_is_differentiable_twice_where_singular_values_differ(penalty, shape):
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty.value, w)
    assert torch.autograd.gradgradcheck(penalty.value, w)


@each_penalty
def test_a_weight_of_zeros_has_gradient_zero(penalty):
    w = torch.zeros(3, 4, requires_grad=True)
    penalty.value(w).backward()
    assert_bit_equal(w.grad + 0.0, torch.zeros(3, 4))
    assert_bit_equal(penalty.gradient(w.detach()) + 0.0, torch.zeros(3, 4))


def test_the_nuclear_gradient_is_zero_on_the_null_space():
    w = matrix_with((2.0, 1.0))
    left, _, right = torch.linalg.svd(w)
    inside = left.T @ Nuclear(1.0).gradient(w) @ right.T
    expected = torch.zeros(4, 3, dtype=torch.float64)
    expected[0, 0] = expected[1, 1] = 1.0
    assert_close(inside, expected)


@each_proximal
@pytest.mark.parametrize("step", [0.5, 3.0])
def test_no_search_finds_a_lower_point_than_prox(penalty, step):
    w = torch.randn(3, 2, dtype=torch.float64)

    def value(parts):
        return objective(penalty, torch.from_numpy(parts).view(3, 2), w, step).item()

    best = penalty.prox(w, step).flatten()
    for start in (best, w.flatten(), torch.zeros(6)):
        assert value(best.numpy()) <= minimize(value, start, method="Powell", options={"ftol": 1e-15}).fun + 1e-12


def test_the_nuclear_prox_lowers_the_rank():
    shrunk = Nuclear(1.0).prox(matrix_with((3.0, 2.0, 0.5)), 1.0)
    assert_close(torch.linalg.svdvals(shrunk).tolist(), [2.0, 1.0, 0.0])
    assert_bit_equal(Nuclear(1.0).prox(matrix_with((3.0, 2.0, 0.5)), 4.0) + 0.0, torch.zeros(4, 3, dtype=torch.float64))


def test_the_prox_of_the_spectral_norm_cuts_the_largest_only():
    shrunk = SpectralNorm(1.0).prox(matrix_with((3.0, 2.0, 0.5)), 1.0)  # (3 + 2) / (2 + 1)
    assert_close(torch.linalg.svdvals(shrunk).tolist(), [5 / 3, 5 / 3, 0.5])


@each_proximal
@pytest.mark.parametrize("sigma", [(2.0, 1.0), (2.0, 2.0, 0.5), (2.0, 2.0, 2.0), (0.0,)], ids=str)
def test_optimality_is_the_distance_to_the_nearest_subgradient(penalty, sigma):
    # It is how fast the proximal gradient method would leave the point: the limit of small steps.
    w, gradient, h = matrix_with(sigma), torch.randn(4, 3, dtype=torch.float64), 1e-6
    moved = (penalty.prox(w - h * gradient, h) - w) / h
    assert_close(penalty.optimality(w, gradient), moved.norm(), tolerance=1e-5)


@each_penalty
def test_a_point_whose_gradients_cancel_is_optimal_for_the_smooth_ones(penalty):
    w = torch.randn(4, 3, dtype=torch.float64)
    assert penalty.optimality(w, -penalty.gradient(w)) <= 1e-12
    assert_close(penalty.optimality(w, 0 * w), penalty.gradient(w).norm(), tolerance=1e-9)


def test_strength_max_of_the_nuclear_norm_is_the_least_strength_at_which_zero_stays():
    gradient = torch.randn(4, 3, dtype=torch.float64)
    zero = torch.zeros_like(gradient)
    most = brentq(lambda s: Nuclear(s).optimality(zero, gradient).item() - 1e-13, 0, 100, xtol=1e-14)
    assert_close(Nuclear(1.0).strength_max(gradient).item(), most, tolerance=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES[1:], ids=repr)
def test_no_strength_of_the_others_empties_a_model(penalty):
    assert penalty.strength_max(torch.ones(2, 2)) == torch.inf


def test_an_orthogonal_weight_is_a_minimum_of_the_orthogonalities():
    rows = matrix_with((1.0, 1.0, 1.0), rows=3, columns=4)
    for penalty in (SRIP(1.0), SoftOrthogonality(1.0)):
        assert_close(penalty.value(rows).item(), 0.0)
        assert_close(penalty.gradient(rows), torch.zeros_like(rows))
        assert_close(penalty.gradient(rows.T), torch.zeros_like(rows.T))
    assert_close(SRIP(1.0).value(rows.T).item(), 0.0)  # it looks at the columns
    assert_close(SoftOrthogonality(1.0).value(rows.T).item(), 1.0)  # four rows of three numbers cannot be orthogonal
    assert_close(DoubleSoftOrthogonality(1.0).value(rows).item(), 1.0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_what_an_empty_weight_lacks_of_orthogonality_is_counted(shape):
    for penalty in PENALTIES[3:]:
        if shape[0] or isinstance(penalty, DoubleSoftOrthogonality):
            assert_close(penalty.value(torch.zeros(shape)), formula(penalty, torch.zeros(shape)))


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)], ids=str)
def test_the_gradient_of_double_soft_orthogonality_is_twice_that_of_the_single_one(shape):
    w = torch.randn(shape, dtype=torch.float64)
    assert_close(DoubleSoftOrthogonality(0.3).gradient(w), SoftOrthogonality(0.6).gradient(w))


@each_penalty
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_double_precision_rounded(penalty, dtype):
    w = torch.randn(4, 3).to(dtype)
    wide, tolerance = w.double(), 4 * torch.finfo(dtype).eps
    assert_close(penalty.value(w), penalty.value(wide).to(dtype), tolerance)
    assert_close(penalty.gradient(w), penalty.gradient(wide).to(dtype), 4 * tolerance)
    assert_close(penalty.strength_max(w).item(), penalty.strength_max(wide).item(), tolerance)
    if penalty in PROXIMAL:
        assert_close(penalty.prox(w, 0.5), penalty.prox(wide, 0.5).to(dtype), tolerance)


@each_penalty
def test_complex_weights_are_matrices_like_any_other(penalty):
    w = torch.randn(4, 3, dtype=torch.complex128)
    assert_close(penalty.value(w), formula(penalty, w), tolerance=1e-10)
    leaf = w.clone().requires_grad_()
    formula(penalty, leaf).backward()
    assert_close(penalty.gradient(w), leaf.grad, tolerance=1e-9)
    if penalty in PROXIMAL:
        u = penalty.prox(w, 0.5)
        assert penalty.optimality(u, (u - w) / 0.5) <= 1e-12
        assert_bit_equal(penalty.prox(w, 0.0), w)


@each_penalty
@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 3), (3, 0), (2, 3, 2), (2, 3, 1, 2)], ids=str)
def test_every_shape_is_a_matrix(penalty, shape):
    w = torch.randn(shape, dtype=torch.float64)
    matrix = w.flatten(1) if len(shape) > 1 else w.reshape(-1, 1)
    assert_close(penalty.value(w), penalty.value(matrix))
    assert_close(penalty.gradient(w), penalty.gradient(matrix).reshape(shape))
    assert penalty.strength_max(w).shape == penalty.optimality(w, w).shape == ()
    if penalty in PROXIMAL:
        assert_close(penalty.prox(w, 0.1), penalty.prox(matrix, 0.1).reshape(shape))


@pytest.mark.parametrize(
    ("module", "dim"),
    [
        (nn.Linear(3, 4), None),
        (nn.Conv2d(3, 4, 2), None),
        (nn.ConvTranspose2d(3, 4, 2), 1),
        (nn.Embedding(5, 3), 1),
    ],
    ids=lambda value: type(value).__name__,
)
@each_penalty
def test_the_rows_are_the_modules_outputs(penalty, module, dim):
    bound = penalty.bind(ParamInfo("layer.weight", module.weight, module))
    assert bound == replace(penalty, dim=dim)
    assert replace(penalty, dim=0).bind(ParamInfo("layer.weight", module.weight, module)).dim == 0
    w = module.weight.detach()
    assert_close(bound.value(w), penalty.value(w.movedim(dim or 0, 0)))
    assert_close(bound.gradient(w), penalty.gradient(w.movedim(dim or 0, 0)).movedim(0, dim or 0), tolerance=1e-5)


@each_penalty
def test_penalties_are_values(penalty):
    assert copy.deepcopy(penalty) == pickle.loads(pickle.dumps(penalty)) == penalty
    assert 2 * penalty == penalty + penalty == replace(penalty, strength=2 * penalty.strength)
    assert replace(penalty, dim=1) != penalty
    assert repr(replace(penalty, dim=1)) == f"{type(penalty).__name__}({penalty.strength}, dim=1)"
    assert repr(penalty) == f"{type(penalty).__name__}({penalty.strength})"


# -- convolutions as operators on images ------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 2, 3, padding="same", padding_mode="circular", bias=False), (5,)),
    "2d": (nn.Conv2d(2, 3, (3, 1), padding="same", padding_mode="circular", bias=False), (4, 3)),
    "2d-even": (nn.Conv2d(2, 2, 2, padding="same", padding_mode="circular", bias=False), (4, 4)),
    "2d-grouped": (nn.Conv2d(4, 2, 3, padding="same", padding_mode="circular", groups=2, bias=False), (3, 4)),
    "3d": (nn.Conv3d(1, 2, 3, padding="same", padding_mode="circular", bias=False), (3, 3, 3)),
}
each_convolution = pytest.mark.parametrize(("module", "size"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())


def operator(module, size):
    """The matrix that the module multiplies an image with, column by column."""
    pixels = torch.Size((module.in_channels, *size))
    images = torch.eye(pixels.numel(), dtype=torch.float64).view(-1, *pixels)
    return module.double()(images).flatten(1).T


@each_convolution
def test_the_norm_is_that_of_the_module_as_a_matrix_on_images(module, size):
    norm = torch.linalg.matrix_norm(operator(module, size), 2)
    penalty = ConvolutionNorm(0.6, size).bind(ParamInfo("conv.weight", module.weight, module))
    (expected,) = torch.autograd.grad(0.3 * norm**2, module.weight)
    assert_close(penalty.value(module.weight), 0.3 * norm**2, tolerance=1e-10)
    (found,) = torch.autograd.grad(penalty.value(module.weight), module.weight)
    assert_close(penalty.gradient(module.weight.detach()), found, tolerance=1e-10)
    assert_close(found, expected, tolerance=1e-6)


@each_convolution
def test_the_gradient_is_the_slope_of_the_value(module, size):
    penalty = ConvolutionNorm(0.6, size).bind(ParamInfo("conv.weight", module.weight, module))
    w = module.weight.detach().double()
    direction = torch.randn_like(w)
    slope = slope_along(penalty.value, w, direction)
    assert_close((penalty.gradient(w) * direction).sum(), slope, tolerance=1e-6)


def test_the_norm_of_a_transposed_convolution_is_that_of_the_convolution():
    w = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    module = nn.ConvTranspose2d(3, 2, 2)
    penalty = ConvolutionNorm(1.0, (4, 4))
    assert penalty.bind(ParamInfo("up.weight", module.weight, module)) == penalty
    assert_close(penalty.value(w), penalty.value(w.transpose(0, 1)))


def test_a_kernel_of_one_pixel_has_the_spectral_norm():
    w = torch.randn(4, 3, dtype=torch.float64)
    kernel = w.view(4, 3, 1, 1)
    assert_close(ConvolutionNorm(0.7, (5, 5)).value(kernel), SpectralNorm(0.7).value(w))
    assert_close(ConvolutionNorm(0.7, (5, 5)).gradient(kernel).view(4, 3), SpectralNorm(0.7).gradient(w))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_the_norm_of_a_convolution_exists_in_every_precision(dtype):
    w = torch.randn(3, 2, 2, 2).to(dtype)
    wide = w.to(torch.complex128 if dtype.is_complex else torch.float64)
    penalty, tolerance = ConvolutionNorm(0.7, (4, 4)), 16 * torch.finfo(dtype).eps
    assert_close(penalty.value(w).double(), penalty.value(wide), tolerance)
    assert_close(penalty.gradient(w), penalty.gradient(wide).to(dtype), tolerance)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (3, 0, 2, 2)], ids=str)
def test_a_convolution_without_channels_has_norm_zero(shape):
    w = torch.randn(shape)
    assert ConvolutionNorm(1.0, (4, 4)).value(w) == 0
    assert ConvolutionNorm(1.0, (4, 4)).gradient(w).shape == shape


def test_the_size_of_images_is_kept_as_numbers():
    assert ConvolutionNorm(1.0, [4, 4]) == ConvolutionNorm(1.0, (4, 4)) != ConvolutionNorm(1.0, (4, 5))
    assert repr(ConvolutionNorm(1.0, [4, 4])) == "ConvolutionNorm(1.0, input_size=(4, 4))"
    assert 2 * ConvolutionNorm(1.0, (4, 4)) == ConvolutionNorm(2.0, (4, 4))


@pytest.mark.parametrize("input_size", [4, (4, 0), (4.0, 4.0), (True, 4), "44", None])
def test_a_size_that_is_none_is_refused(input_size):
    with pytest.raises(TypeError, match="ConvolutionNorm: input_size must be whole numbers >= 1"):
        ConvolutionNorm(1.0, input_size)


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3), (2, 2, 5, 1), (2, 2, 1, 1, 1)], ids=str)
def test_a_kernel_that_does_not_fit_the_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"ConvolutionNorm: the weight must be a kernel .* \(4, 4\), got shape"):
        ConvolutionNorm(1.0, (4, 4)).value(torch.ones(shape))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), "must be a convolution's, layer.weight is in Linear"),
        (nn.Conv2d(2, 2, 2, dilation=2), "must not be dilated, layer.weight is"),
        (nn.Conv1d(2, 2, 2), r"must be a kernel .* got shape \(2, 2, 2\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_module_that_is_no_such_convolution_is_refused(module, message):
    with pytest.raises(ValueError, match=f"ConvolutionNorm: .*{message}"):
        ConvolutionNorm(1.0, (4, 4)).bind(ParamInfo("layer.weight", module.weight, module))


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="Nuclear: dim must be a whole number or None, got 'output'"):
        Nuclear(1.0, dim="output")
    with pytest.raises(ValueError, match=r"SRIP: 2 must be a dimension of the weight, got one of shape \(2, 2\)"):
        SRIP(1.0, dim=2).value(torch.ones(2, 2))
    with pytest.raises(ValueError, match="ConvolutionNorm: groups must be a whole number >= 1 or None, got 0"):
        ConvolutionNorm(1.0, (4, 4), groups=0)
    with pytest.raises(ValueError, match="SpectralNorm: strength must be finite and >= 0, got -1"):
        SpectralNorm(-1)
