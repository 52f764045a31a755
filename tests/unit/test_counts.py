"""Exact counts of one weight: the nearest point that brute force, NumPy and torch's own pruning find."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from tests.helpers import assert_bit_equal, assert_close, make_model
from torchreg import Heads, NofM, ParamInfo, Regularizer, Sparsest

UNEQUAL = torch.tensor([[7, 0, 0], [0, 1, 0], [2, 0, 3]])


def subsets(groups, most):
    for number in range(most + 1):
        yield from combinations(groups, number)


def nearest(w, index, most):
    """The nearest point with at most so many groups that are not zero, among all there are."""
    candidates = [torch.where(torch.isin(index, torch.tensor(kept)), w, 0.0) for kept in subsets(index.unique(), most)]
    return min(candidates, key=lambda u: (u - w).square().sum().item())


# -- Sparsest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9])
def test_the_largest_weights_are_the_nearest_of_all_subsets(count):
    w = torch.randn(3, 3, dtype=torch.float64)
    index = torch.arange(9).view(3, 3)
    assert_bit_equal(Sparsest(count=count).project(w) + 0.0, nearest(w, index, count) + 0.0)


@pytest.mark.parametrize(
    ("groups", "index"),
    [
        ("output", torch.arange(3)[:, None].expand(3, 3)),
        ("input", torch.arange(3).expand(3, 3)),
        ("tensor", torch.zeros(3, 3)),
        (1, torch.arange(3).expand(3, 3)),
        (Heads(3), torch.arange(3)[:, None].expand(3, 3)),
        (UNEQUAL, UNEQUAL),
    ],
    ids=["output", "input", "tensor", "1", "heads", "unequal"],
)
def test_the_largest_groups_are_the_nearest_of_all_subsets(groups, index):
    for count in range(1, len(index.unique()) + 1):
        w = torch.randn(3, 3, dtype=torch.float64)
        constraint = Sparsest(count=count, groups=groups)
        assert_bit_equal(constraint.project(w) + 0.0, nearest(w, index, count) + 0.0)
        assert constraint.value(constraint.project(w)) == 0
        if count < len(index.unique()):
            assert constraint.value(w) == torch.inf


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8, 0.999, 1.0])
def test_the_share_is_what_torchs_pruning_leaves(share):
    layer = nn.Linear(13, 8, dtype=torch.float64)
    w = layer.weight.detach().clone()
    prune.l1_unstructured(layer, "weight", amount=1 - share)
    assert_bit_equal(Sparsest(share).project(w) + 0.0, layer.weight.detach() + 0.0)
    layer = nn.Linear(13, 8, dtype=torch.float64)
    w = layer.weight.detach().clone()
    prune.ln_structured(layer, "weight", amount=2, n=2, dim=1)
    assert_bit_equal(Sparsest(count=11, groups="input").project(w) + 0.0, layer.weight.detach() + 0.0)


def test_of_equal_weights_the_first_stay_and_never_more_than_the_count():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        w = torch.tensor([1.0, -1.0, 2.0, 1.0, -1.0, 0.0], dtype=dtype)
        for count in range(1, 7):
            projected = Sparsest(count=count).project(w)
            assert projected.count_nonzero() == min(count, 5)
            assert_bit_equal(projected, Sparsest(count=count).project(projected))
        assert Sparsest(count=3).project(w).tolist() == [1, -1, 2, 0, 0, 0]
    assert Sparsest(count=500).project(torch.ones(1000)).count_nonzero() == 500
    assert Sparsest(count=2, groups="output").project(torch.ones(4, 2)).any(1).tolist() == [True, True, False, False]


def test_a_small_weight_too_many_is_outside():
    w = torch.tensor([1.0, 0.0, 1e-30])
    assert Sparsest(count=1).value(w) == torch.inf  # no rounding makes a weight
    assert Sparsest(count=2).value(w) == 0
    assert Sparsest(count=1, groups="output").value(w[:, None]) == torch.inf


def test_complex_weights_are_ordered_by_their_size():
    w = torch.tensor([3 + 4j, 1j, -4.9, 0.1])
    assert Sparsest(count=2).project(w).tolist() == [3 + 4j, 0, -4.900000095367432, 0]


def test_at_least_one_stays():
    assert Sparsest(0.001).project(torch.tensor([1.0, 3.0, -2.0])).tolist() == [0, 3, 0]


def test_in_a_step_zeros_may_come_back():
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Regularizer(model, Sparsest(count=1), mode="prox").attach(optimizer)
    for gradient in ([0.0, 0.0, 9.0], [0.0, -99.0, 0.0]):
        model.weight.grad = torch.tensor([gradient])
        optimizer.step()
    assert (model.weight != 0).tolist() == [[False, True, False]]


def test_iterative_hard_thresholding_finds_the_sparse_signal():
    draw = np.random.default_rng(0)
    a = draw.standard_normal((80, 100)) / 80**0.5
    signal = np.zeros(100)
    signal[draw.choice(100, 4, replace=False)] = [2.0, -1.5, 1.5, -1.0]
    x, step = np.zeros(100), 0.5  # Blumensath and Davies, 2009, with NumPy
    for _ in range(300):
        x = x + step * a.T @ (a @ (signal - x))
        x[np.argsort(-np.abs(x))[4:]] = 0

    model = nn.Linear(100, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=step)
    Regularizer(model, Sparsest(count=4), mode="prox").attach(optimizer)
    inputs, targets = torch.from_numpy(a), torch.from_numpy(a @ signal)
    for _ in range(300):
        optimizer.zero_grad()
        ((model(inputs)[:, 0] - targets).square().sum() / 2).backward()
        optimizer.step()
    found = model.weight.detach()[0]
    assert_close(found, torch.from_numpy(x), tolerance=1e-12)
    assert_close(found, torch.from_numpy(signal), tolerance=1e-6)
    assert Sparsest(count=4).optimality(found, inputs.T @ (inputs @ found - targets)) < 1e-6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either share or count must be given, got neither"),
        ({"share": 0.5, "count": 3}, ValueError, "either share or count must be given, got share=0.5 and count=3"),
        ({"share": 0.0}, ValueError, r"share must be in \(0, 1\], the share that stays, got 0.0"),
        ({"share": 1.5}, ValueError, r"share must be in \(0, 1\], the share that stays, got 1.5"),
        ({"share": torch.nan}, ValueError, r"share must be in \(0, 1\], the share that stays, got nan"),
        ({"share": "half"}, TypeError, "share must be a number, got 'half'"),
        ({"count": 0}, ValueError, "count must be a whole number >= 1, got 0"),
        ({"count": 2.0}, ValueError, "count must be a whole number >= 1, got 2.0"),
        ({"count": 2, "groups": "rows"}, ValueError, "groups must be .*, got 'rows'"),
        ({"count": 2, "together": 1}, TypeError, "together must be True or False, got 1"),
    ],
    ids=str,
)
def test_bad_input_of_sparsest_gets_one_line(options, error, message):
    with pytest.raises(error, match=rf"\ASparsest: {message}\Z"):
        Sparsest(**options)


def test_a_count_above_the_size_gets_one_line():
    w = torch.ones(2, 3)
    for constraint, what in ((Sparsest(count=7), "weights"), (Sparsest(count=3, groups="output"), "groups 'output'")):
        with pytest.raises(
            ValueError, match=rf"\ASparsest: count must be at most the number of {what}, got .*shape \(2"
        ):
            constraint.project(w)
        with pytest.raises(
            ValueError, match=rf"\ASparsest: count must be at most the number of {what}, .*of shape \(2"
        ):
            constraint.value(w)
    model = make_model()
    with pytest.raises(ValueError, match=r"\ASparsest: .* got 1000 for the \d+ of 0.weight: use share, or narrow"):
        Regularizer(model, Sparsest(count=1000), mode="prox")
    with pytest.raises(ValueError, match=r"\ASparsest: .* got 1000 for the \d+ of 0.weight, 2.weight: use share"):
        Regularizer(model, Sparsest(count=1000, together=True), mode="prox")


# -- NofM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (4, 4), (3, 6)])
def test_in_each_run_the_largest_stay(n, m):
    w = torch.randn(3, 12, dtype=torch.float64)
    projected = NofM(n, m).project(w)
    for row, start in product(range(3), range(0, 12, m)):
        run = w[row, start : start + m]
        assert_bit_equal(projected[row, start : start + m] + 0.0, nearest(run, torch.arange(m), n) + 0.0)
    assert NofM(n, m).value(projected) == 0
    assert NofM(n, m).value(w) == (0 if n == m else torch.inf)


def test_the_pattern_is_the_one_that_torch_compresses_without_a_loss():
    w = torch.randn(64, 128).half()
    sparse = NofM(2, 4).project(w)
    assert_bit_equal(
        sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(sparse)), sparse
    )
    lost = sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(w))
    assert not torch.equal(lost, w)
    tied = NofM(2, 4).project(torch.ones(64, 128).half())
    assert_bit_equal(tied, torch.tensor([1.0, 1.0, 0.0, 0.0]).half().repeat(64, 32))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torch_computes_with_the_pattern():
    w = NofM(2, 4).project(torch.randn(128, 128, device="cuda").half())
    x = torch.randn(64, 128, device="cuda").half()
    found = nn.functional.linear(x, torch.sparse.to_sparse_semi_structured(w))
    assert_close(found, nn.functional.linear(x, w), tolerance=1e-2)


def test_a_convolution_is_the_matrix_of_its_filters_and_a_transposed_one_of_its_outputs():
    w = torch.randn(4, 2, 2, 2)
    assert_bit_equal(NofM(2, 4).project(w), NofM(2, 4).project(w.flatten(1)).view_as(w))
    layer = nn.ConvTranspose2d(4, 3, 1)
    bound = NofM(1, 2).bind(ParamInfo("weight", layer.weight, layer))
    expected = NofM(1, 2).project(layer.weight.detach().flatten(1).T.contiguous()).T
    assert_bit_equal(bound.project(layer.weight.detach()).flatten(1), expected)
    assert_bit_equal(NofM(1, 2, dim=1).project(layer.weight.detach()).flatten(1), expected)


def test_after_a_training_every_weight_has_the_pattern():
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    Regularizer(model, NofM(2, 4), mode="prox").attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(9, 8, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    for layer in (model[0], model[2]):
        assert (layer.weight.view(-1, 4).count_nonzero(dim=1) == 2).all()


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [
        (0, 4, "n must be a whole number >= 1, got 0"),
        (2.0, 4, "n must be a whole number >= 1, got 2.0"),
        (2, None, "m must be a whole number >= 1, got None"),
        (5, 4, "n must be at most m, got 5 of 4"),
    ],
)
def test_bad_numbers_of_n_of_m_get_one_line(n, m, message):
    with pytest.raises(ValueError, match=rf"\ANofM: {message}\Z"):
        NofM(n, m)


def test_a_row_that_does_not_divide_gets_one_line():
    with pytest.raises(ValueError, match=r"\ANofM: rows must divide into runs of 4, got rows of length 6 in a"):
        NofM(2, 4).project(torch.ones(3, 6))
    with pytest.raises(ValueError, match=r"\ANofM: .* runs of 7, got rows of length .* in 0.weight: narrow select\Z"):
        Regularizer(make_model(), NofM(2, 7), mode="prox")
    with pytest.raises(TypeError, match="dim must be a whole number or None"):
        NofM(2, 4, dim=0.5)
