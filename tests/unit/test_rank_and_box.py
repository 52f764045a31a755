"""The nearest matrix of low rank is NumPy's truncated singular value decomposition, the box its clip."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, make_model
from torchreg import Box, ParamInfo, Rank, Regularizer


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_nearest_matrix_of_that_rank_is_numpys_truncated_svd(shape, rank):
    w = torch.randn(shape, dtype=torch.float64)
    left, sigma, right = np.linalg.svd(w.flatten(1).numpy(), full_matrices=False)
    expected = torch.from_numpy((left[:, :rank] * sigma[:rank]) @ right[:rank]).view(shape)
    projected = Rank(rank).project(w)
    assert_close(projected, expected, tolerance=1e-12)
    assert np.linalg.matrix_rank(projected.flatten(1).numpy()) == rank
    assert Rank(rank).value(projected) == 0
    if rank < min(w.flatten(1).shape):
        assert Rank(rank).value(w) == torch.inf
    assert_bit_equal(Rank(rank).project(projected), projected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_rounding_does_not_count_as_rank(dtype):
    w = torch.randn(40, 30, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    projected = Rank(3).project(w)
    assert Rank(3).value(projected) == 0
    assert Rank(2).value(projected) == torch.inf
    assert_bit_equal(Rank(3).project(projected).real, projected.real)


def test_the_rank_of_a_transposed_convolution_is_that_of_its_outputs():
    layer = nn.ConvTranspose2d(4, 3, 2, dtype=torch.float64)
    bound = Rank(1).bind(ParamInfo("weight", layer.weight, layer))
    matrix = bound.project(layer.weight.detach()).transpose(0, 1).flatten(1)
    assert np.linalg.matrix_rank(matrix.numpy()) == 1


def test_a_rank_above_the_smaller_side_gets_one_line():
    with pytest.raises(ValueError, match=r"\ARank: rank must be at most the smaller side of the matrix \(2, 5\)"):
        Rank(3).project(torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"\ARank: .* got 50 for 0.weight: narrow select\Z"):
        Regularizer(make_model(), Rank(50), mode="prox")
    for bad in (0, 1.0, True):
        with pytest.raises(ValueError, match=rf"\ARank: rank must be a whole number >= 1, got {bad}\Z"):
            Rank(bad)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 1.0), (None, 0.3), (0.2, None), (0.25, 0.25), (-2, -1)])
def test_the_box_is_numpys_clip(low, high):
    w = torch.randn(5, 4, dtype=torch.float64)
    assert_bit_equal(Box(low, high).project(w), torch.from_numpy(np.clip(w.numpy(), low, high)))
    assert Box(low, high).value(w) == torch.inf
    assert Box(low, high).value(Box(low, high).project(w)) == 0
    assert eval(repr(Box(low, high))) == Box(low, high)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"low": 1.0, "high": 0.5}, ValueError, "low must not be above high, got 1.0 and 0.5"),
        ({}, ValueError, "low or high must be a number, got None for both"),
        ({"low": -torch.inf}, ValueError, "low must be finite, or None for no bound, got -inf"),
        ({"high": torch.nan}, ValueError, "high must be finite, or None for no bound, got nan"),
        ({"low": "0"}, TypeError, "low must be a number, got '0'"),
    ],
    ids=str,
)
def test_bad_bounds_of_the_box_get_one_line(options, error, message):
    with pytest.raises(error, match=rf"\ABox: {message}\Z"):
        Box(**options)


def test_complex_weights_have_no_box():
    with pytest.raises(TypeError, match="weights must be real, because complex ones have no order"):
        Box(0.0, 1.0).project(torch.ones(2, dtype=torch.complex64))
