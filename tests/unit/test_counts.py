"""Exact counts: the nearest point that brute force, NumPy and torch's own pruning find, on one weight and on many."""

import copy
import pickle
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

from tests.helpers import assert_bit_equal, assert_close, make_data, make_model, resume, train, weights_of
from torchreg import L1, L2, Box, Heads, NofM, ParamInfo, Rank, Regularizer, Sparsest, Stacked, everything
from torchreg.optim import ProxAdam, ProxSGD

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


# -- Sparsest, together ---------------------------------------------------------------------------------------------


def all_of(model):
    return torch.cat([model[0].weight.detach().flatten(), model[2].weight.detach().flatten()])


def masked_by_hand(model, count):
    """The ``count`` largest of all weights stay, in NumPy."""
    flat = all_of(model)
    order = np.argsort(-flat.abs().numpy(), kind="stable")
    flat[torch.from_numpy(order[count:].copy())] = 0
    with torch.no_grad():
        first = model[0].weight.numel()
        model[0].weight.copy_(flat[:first].view_as(model[0].weight))
        model[2].weight.copy_(flat[first:].view_as(model[2].weight))


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_together_a_training_is_the_loop_written_by_hand(make_optimizer):
    ours, theirs = make_model(), make_model()
    optimizer = make_optimizer(ours.parameters(), lr=0.05)
    regularizer = Regularizer(ours, Sparsest(count=9, together=True), mode="prox").attach(optimizer)
    assert regularizer.value() == torch.inf
    train(ours, optimizer, steps=10)
    optimizer = make_optimizer(theirs.parameters(), lr=0.05)
    for _ in range(10):
        train(theirs, optimizer, steps=1)
        masked_by_hand(theirs, 9)
    assert_close(weights_of(ours), weights_of(theirs), tolerance=1e-12)
    assert all_of(ours).count_nonzero() == 9
    assert regularizer.value() == 0
    assert regularizer.terms() == {"Sparsest": torch.zeros((), dtype=torch.float64)}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_together_the_share_is_what_torchs_global_pruning_leaves(share):
    ours, theirs = make_model(), make_model()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    Regularizer(ours, Sparsest(share, together=True), mode="prox").attach(optimizer)
    train(ours, optimizer, steps=1)
    layers = [(theirs[0], "weight"), (theirs[2], "weight")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - share)
    for mine, (their, name) in zip((ours[0], ours[2]), layers, strict=True):
        assert_bit_equal(mine.weight.detach() + 0.0, getattr(their, name).detach() + 0.0)


def test_together_groups_of_all_weights_are_ordered_by_their_norms():
    model = make_model()
    layers = (model[0], model[2])
    before = {layer: layer.weight.detach().clone() for layer in layers}
    norms = sorted((row.norm().item() for w in before.values() for row in w), reverse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Sparsest(count=3, groups="output", together=True), mode="prox").attach(optimizer)
    train(model, optimizer, steps=1)
    for layer in layers:
        expected = torch.where(before[layer].norm(dim=1, keepdim=True) >= norms[2], before[layer], 0.0)
        assert_bit_equal(layer.weight.detach() + 0.0, expected + 0.0)


def test_together_the_outputs_of_a_transposed_convolution_are_its_second_dimension():
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 1, bias=False), nn.Linear(5, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 9.0, 0.0], [1.0, 0.0, 0.0]])[..., None])
        model[1].weight.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Sparsest(count=1, groups="output", together=True), mode="prox").attach(optimizer)
    model(torch.ones(1, 2, 5)).sum().backward()
    optimizer.step()
    assert model[0].weight.squeeze(-1).tolist() == [[0, 9, 0], [0, 0, 0]]
    assert not model[1].weight.any()


def test_together_ties_go_to_the_first_weights():
    model = nn.ParameterList([torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Sparsest(count=6, together=True), mode="prox", select=everything).attach(optimizer)
    for p in model:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.tolist() for p in model] == [[[1, 1], [1, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]


def test_together_frozen_weights_do_not_count_and_those_without_a_gradient_do_not_move():
    model = nn.ParameterList([torch.full((4,), 9.0), torch.full((4,), 3.0), torch.arange(4.0)])
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regularizer = Regularizer(model, Sparsest(count=4, together=True), mode="prox", select=everything).attach(optimizer)
    model[2].grad = torch.zeros(4)
    optimizer.step()
    assert model[0].tolist() == [9] * 4
    assert model[1].tolist() == [3] * 4
    assert model[2].tolist() == [0] * 4  # 3.0 is the last of five equal ones
    model[2].grad = torch.tensor([0.0, 0.0, 0.0, -5.0])
    optimizer.step()
    assert model[2].tolist() == [0, 0, 0, 5]
    assert regularizer.value() == torch.inf
    model[1].grad = torch.zeros(4)
    optimizer.step()
    assert model[1].tolist() == [3, 3, 3, 0]
    assert regularizer.value() == 0


def test_together_with_a_penalty_of_another_pattern():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    rules = {"0.*": L1(0.25), "*": Sparsest(count=3, together=True)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, rules, mode="prox").attach(optimizer)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert sum(model[i].weight.count_nonzero() for i in (1, 2)) == 3
    assert_close(regularizer.value(), 0.25 * model[0].weight.abs().sum())
    assert regularizer.terms().keys() == {"L1", "Sparsest"}
    regularizer.value().backward()


def test_together_a_spoilt_weight_stays_visible():
    model = nn.ParameterList([torch.ones(2, 2), torch.ones(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regularizer = Regularizer(model, Sparsest(count=1, together=True), mode="prox").attach(optimizer)
    for p in model:
        p.grad = torch.zeros_like(p)
    model[1].grad[0, 1] = torch.nan
    optimizer.step()
    assert model[1][0, 1].isnan()
    assert regularizer.value().isnan()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_together_a_copy_acts_on_its_own_model(duplicate):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, Sparsest(count=5, together=True), mode="prox")
    model, optimizer, regularizer = duplicate((model, optimizer, regularizer))
    regularizer.attach(optimizer)
    train(model, optimizer, steps=2)
    assert all_of(model).count_nonzero() == 5


def test_together_training_resumes_to_the_bit():
    def setting():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return model, optimizer, Regularizer(model, Sparsest(0.2, together=True), mode="prox").attach(optimizer)

    whole, broken, resumed = setting(), setting(), setting()
    train(*whole[:2], steps=6)
    train(*broken[:2], steps=3)
    resume(resumed, broken)
    train(*resumed[:2], steps=3)
    assert_bit_equal(weights_of(resumed[0]), weights_of(whole[0]))


def test_together_a_compiled_step_is_the_eager_one():
    found = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Regularizer(model, Sparsest(count=7, together=True), mode="prox").attach(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if is_compiled else optimizer.step
        x, y = make_data()
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            step()
        found.append(weights_of(model))
    assert_close(*found, tolerance=1e-12)


def test_together_what_cannot_be_is_refused_in_one_line():
    constraint = Sparsest(0.5, together=True)
    model = make_model()
    with pytest.raises(ValueError, match=r"together must not be part of a sum, got .*: make one Regularizer for each"):
        Regularizer(model, L2(0.1) + constraint, mode="prox")
    first, second = (torch.optim.SGD(model[i].parameters()) for i in (0, 2))
    with pytest.raises(ValueError, match="acts in the steps of one optimizer, got 2: make a Regularizer for each"):
        Regularizer(model, constraint, mode="prox").attach(first, second)
    with pytest.raises(ValueError, match=r"cannot act on a stack of models: use it on each of its members"):
        Regularizer(Stacked([make_model(), make_model()]), constraint, mode="prox")
    for make in (ProxSGD, ProxAdam):
        with pytest.raises(ValueError, match=f"{make.__name__}: .* one parameter at a time, .* use a Regularizer"):
            make(model.parameters(), constraint)


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


# -- Rank and Box ---------------------------------------------------------------------------------------------------


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
