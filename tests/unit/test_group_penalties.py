"""The group lasso, the sparse group lasso and the exclusive lasso."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq, minimize
from torch import nn

from tests.cases import grouped
from tests.formulas import INDEX, UNEQUAL, grouped_value
from tests.helpers import assert_bit_equal, assert_close
from torchreg import Constraint, GroupMCP, GroupSCAD, L1Ball, L2Ball, MaxNorm, Simplex, UnitNorm
from torchreg import functional as f
from torchreg.penalties.groups import ExclusiveLasso, GroupLasso, SparseGroupLasso
from torchreg.penalties.partition import Heads
from torchreg.selection.parameters import ParamInfo

KINDS = [case.penalty for case in grouped("output")]
GROUPS = ("output", "input", "tensor", Heads(2), UNEQUAL, INDEX)
PENALTIES = [case.penalty for groups in GROUPS for case in grouped(groups)]
each_kind = pytest.mark.parametrize("penalty", KINDS, ids=repr)
each_unequal = pytest.mark.parametrize("penalty", PENALTIES[-6:], ids=repr)  # in groups of unequal sizes
each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
weights = arrays(float, (4, 3), elements=st.floats(-9, 9, allow_subnormal=False) | st.just(0.0)).map(torch.from_numpy)


def objective(penalty, u, w, step):
    return (u - w).abs().square().sum() / 2 + step * grouped_value(penalty, u)


def sparse_weight(dtype=torch.float64):
    """A weight with a group of zeros and single zeros, whatever the partition."""
    w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w[INDEX == 5] = 0.0
    w[:, 1] = 0.0
    w[0, 0] = 0.0
    return w.to(dtype)


@each_penalty
def test_the_value_is_differentiable_twice_where_no_group_is_zero(penalty):
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty.value, w)
    assert torch.autograd.gradgradcheck(penalty.value, w)


@each_penalty
@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_prox_is_the_minimum_that_a_search_finds(penalty, step):
    w = sparse_weight() * 2
    # In the parts u = a - b, a and b >= 0, the kinks of the elements are gone; those of the groups are smoothed.
    a = torch.cat([w.clamp(min=0), (-w).clamp(min=0)]).flatten()

    def smooth(parts):
        a = torch.from_numpy(parts).view(8, 3).requires_grad_()
        loss = (a[:4] - a[4:] - w).square().sum() / 2 + step * formula_of_parts(penalty, a[:4] + a[4:])
        (grad,) = torch.autograd.grad(loss, a)
        return loss.item(), grad.flatten().numpy()

    found = minimize(smooth, a.numpy(), jac=True, bounds=[(0, None)] * 24, options={"ftol": 1e-14, "gtol": 1e-9})
    u = torch.from_numpy(found.x).view(8, 3)
    if step <= 1 or not isinstance(penalty, GroupMCP | GroupSCAD):  # whose objective then has local minima too
        assert_close(penalty.prox(w, step), u[:4] - u[4:], tolerance=1e-3)
    assert objective(penalty, penalty.prox(w, step), w, step) <= objective(penalty, u[:4] - u[4:], w, step) + 1e-12


def formula_of_parts(penalty, size):
    return grouped_value(penalty, (size.square() + 1e-12).sqrt())


@each_unequal
@given(w=weights, tiny=st.sampled_from([1.0, 1e-200, 1e-300]))
def test_prox_with_step_zero_is_the_identity_for_tiny_weights_too(penalty, w, tiny):
    for step in (0.0, torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)):
        assert_bit_equal(penalty.prox(w * tiny, step) + 0.0, w * tiny + 0.0)


def test_equal_groups_are_penalized_equally_and_without_nan():
    w = torch.ones(4, 3, dtype=torch.float64)
    for result in (GroupLasso(0.1).gradient(w), GroupLasso(0.1).prox(w, 1.0), GroupLasso(0.1).gradient(0 * w)):
        assert result.isfinite().all()
        assert (result == result[0, 0]).all()


@pytest.mark.parametrize("groups", ["output", INDEX], ids=["output", "index"])
def test_whole_groups_become_exactly_zero(groups):
    w = torch.where(INDEX == 5, 0.1, 9.0)
    shrunk = GroupLasso(1.0, groups=groups).prox(w, 1.0)
    assert_bit_equal(shrunk == 0, INDEX == 5)


def test_the_sparse_group_lasso_makes_zeros_in_groups_that_stay():
    shrunk = SparseGroupLasso(1.0).prox(torch.tensor([[9.0, 0.4, -0.4], [0.6, 0.6, 0.6]]), 1.0)
    assert_bit_equal(shrunk != 0, torch.tensor([[True, False, False], [False, False, False]]))


def test_the_exclusive_lasso_makes_zeros_in_groups_and_empties_none():
    shrunk = ExclusiveLasso(10.0).prox(torch.tensor([[9.0, 0.4, -0.4], [1e-3, -2e-3, 0.0]]), 100.0)
    assert_bit_equal(shrunk != 0, torch.tensor([[True, False, False], [False, True, False]]))


@each_penalty
def test_optimality_is_the_distance_to_the_nearest_subgradient(penalty):
    # It is how fast the proximal gradient method would leave the point: the limit of small steps.
    w, gradient, h = sparse_weight(), torch.randn(4, 3, dtype=torch.float64), 1e-6
    moved = (penalty.prox(w - h * gradient, h) - w) / h
    assert_close(penalty.optimality(w, gradient), moved.norm(), tolerance=1e-5)


@pytest.mark.parametrize("penalty", [p for p in PENALTIES if not isinstance(p, ExclusiveLasso)], ids=repr)
def test_strength_max_is_the_least_strength_at_which_zero_stays(penalty):
    gradient = torch.randn(4, 3, dtype=torch.float64)
    zero = torch.zeros_like(gradient)

    def moved(strength):
        return replace(penalty, strength=strength).optimality(zero, gradient).item() - 1e-13

    assert_close(penalty.strength_max(gradient).item(), brentq(moved, 0, 100, xtol=1e-14), tolerance=1e-9)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.01, 0.5, 0.99, 1.0])
@given(gradient=weights)
def test_strength_max_of_the_sparse_group_lasso_holds_zero_and_nothing_less_does(l1_ratio, gradient):
    most = SparseGroupLasso(1.0, l1_ratio).strength_max(gradient).item()
    zero, size = torch.zeros_like(gradient), gradient.abs().max().item()
    assert SparseGroupLasso(most, l1_ratio).optimality(zero, gradient) <= 1e-7 * (1 + size)
    if most > 1e-6:
        assert SparseGroupLasso(most * (1 - 1e-6), l1_ratio).optimality(zero, gradient) > 0


def test_no_strength_of_the_exclusive_lasso_empties_a_model():
    assert ExclusiveLasso(1.0).strength_max(torch.ones(2, 2)) == torch.inf
    assert ExclusiveLasso(1.0).strength_max(torch.zeros(2, 2)) == 0


def test_the_ends_of_the_sparse_group_lasso_are_the_lasso_and_the_group_lasso():
    w = sparse_weight()
    assert_close(SparseGroupLasso(0.3, l1_ratio=0.0).prox(w, 0.7), GroupLasso(0.3).prox(w, 0.7))
    assert_close(SparseGroupLasso(0.3, l1_ratio=1.0).prox(w, 0.7), f.soft_threshold(w, 0.21))
    assert_close(SparseGroupLasso(0.3, l1_ratio=0.0).optimality(w, w), GroupLasso(0.3).optimality(w, w))


@each_penalty
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_double_precision_rounded(penalty, dtype):
    w = sparse_weight(dtype)
    wide, tolerance = w.double(), 4 * torch.finfo(dtype).eps
    assert_close(penalty.value(w), penalty.value(wide).to(dtype), tolerance)
    assert_close(penalty.gradient(w), penalty.gradient(wide).to(dtype), tolerance)
    assert_close(penalty.prox(w, 0.5), penalty.prox(wide, 0.5).to(dtype), tolerance)
    assert_close(penalty._add_gradient_(w.clone(), w), (wide + penalty.gradient(wide)).to(dtype), tolerance)
    assert_close(penalty.strength_max(w).item(), penalty.strength_max(wide).item(), tolerance)
    for result in (penalty.value(w), penalty.optimality(w, w)):
        assert result.dtype == dtype


def test_the_gradient_of_tiny_half_precision_weights_stays_finite():
    w = torch.full((2, 100), 1e-6, dtype=torch.float16)
    assert_close(GroupLasso(1.0).gradient(w), torch.ones_like(w), tolerance=1e-3)


@each_penalty
def test_complex_weights_are_pairs_of_real_ones(penalty):
    w = torch.randn(4, 3, dtype=torch.complex128)
    w[1, 1] = 0
    leaf = w.clone().requires_grad_()
    penalty.value(leaf).backward()
    assert_close(penalty.gradient(w), leaf.grad)
    assert_close(penalty.value(w), grouped_value(penalty, w.abs()))
    turn = torch.polar(torch.ones(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))
    assert_close(penalty.prox(w * turn, 0.3), penalty.prox(w, 0.3) * turn)  # phases do not matter
    assert_close(penalty.prox(w.abs(), 0.3), penalty.prox(w, 0.3).abs())
    assert_close(penalty.prox(w, 0.0), w, tolerance=1e-15)
    u = penalty.prox(w, 0.3)
    assert penalty.optimality(u, (u - w) / 0.3) <= 1e-12


@each_kind
@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 3), (3, 0), (2, 3, 2), (2, 3, 1, 2)])
def test_every_shape_is_a_weight(penalty, shape):
    w = torch.randn(shape, dtype=torch.float64)
    outputs = shape[0] if shape else 1
    flat = w.reshape(outputs, w.numel() // max(outputs, 1))
    assert_close(penalty.value(w), penalty.value(flat))
    assert_close(penalty.gradient(w), penalty.gradient(flat).reshape(shape))
    assert_close(penalty.prox(w, 0.1), penalty.prox(flat, 0.1).reshape(shape))
    assert penalty.optimality(w, -penalty.gradient(w)) == 0
    assert penalty.strength_max(w).shape == ()


@each_kind
def test_images_channels_last_are_kernels_like_any_other(penalty):
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    last = w.to(memory_format=torch.channels_last)
    assert_close(penalty.gradient(last), penalty.gradient(w))
    assert_close(penalty.prox(last, 0.5), penalty.prox(w, 0.5))


@each_penalty
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("weight", [0.0, 1e-39, 1e-30, 1e30, torch.inf, torch.nan])
def test_in_a_step_groups_are_as_outside_of_one(penalty, dtype, weight):
    w = sparse_weight(torch.float32).to(dtype)
    w[0] = weight
    grad, tolerance = torch.randn(4, 3).to(dtype), 4 * torch.finfo(dtype).eps
    expected = grad + 0.3 * penalty.gradient(w), w - 0.3 * penalty.gradient(w), penalty.prox(w, 0.3)
    with torch.no_grad():
        found = (
            penalty._add_gradient_(grad.clone(), w, 0.3),
            penalty._descend_(w.clone(), 0.3),
            penalty._prox_(w.clone(), 0.3),
        )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("groups", ["output", "input", "tensor"])
def test_a_step_writes_the_groups_where_they_are(groups, monkeypatch):
    w, penalty = torch.randn(6, 4), GroupLasso(0.3, groups=groups)
    expected = penalty.prox(w, 0.5)
    monkeypatch.setattr(GroupLasso, "prox", None)  # which takes new memory
    with torch.no_grad():
        assert_close(penalty._prox_(w, 0.5), expected, tolerance=1e-6)


@each_kind
def test_a_transposed_convolution_has_its_outputs_on_the_second_dimension(penalty):
    module = nn.ConvTranspose2d(3, 4, 2, dtype=torch.float64)
    bound = penalty.bind(ParamInfo("up.weight", module.weight, module))
    assert_close(bound.value(module.weight), penalty.value(module.weight.transpose(0, 1)))
    assert_close(bound.prox(module.weight, 0.1).transpose(0, 1), penalty.prox(module.weight.transpose(0, 1), 0.1))


def test_it_is_shown_as_it_is_made():
    assert repr(GroupLasso(0.1)) == "GroupLasso(0.1, groups='output')"
    assert repr(SparseGroupLasso(0.1, 0.2, 1)) == "SparseGroupLasso(0.1, l1_ratio=0.2, groups=1)"
    assert repr(ExclusiveLasso(0.1, torch.tensor([0, 1]))) == "ExclusiveLasso(0.1, groups=tensor([0, 1]))"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"GroupLasso: groups must be 'output', .* got 'rows'"):
        GroupLasso(0.1, groups="rows")
    with pytest.raises(ValueError, match=r"SparseGroupLasso: l1_ratio must be in \[0, 1\], got 2"):
        SparseGroupLasso(0.1, l1_ratio=2)
    with pytest.raises(
        ValueError, match=r"ExclusiveLasso: 1 must be a dimension of the weight, got one of shape \(3,\)"
    ):
        ExclusiveLasso(0.1, groups=1).value(torch.ones(3))
    with pytest.raises(ValueError, match="GroupLasso: strength must be finite and >= 0, got -1"):
        GroupLasso(-1)


@pytest.mark.parametrize(
    "penalty",
    [
        GroupLasso(0.3),
        SparseGroupLasso(0.4, l1_ratio=0.3),
        ExclusiveLasso(0.5),
        MaxNorm(1.2),
        UnitNorm(),
        L1Ball(0.8),
        L2Ball(0.9),
        Simplex(1.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_groups_of_very_unequal_sizes_are_as_each_group_on_its_own(penalty, dtype):
    sizes = torch.tensor([1, 300, 1, 1, 7, 2, 40, 1, 1, 8, 1, 1])
    numbers = torch.arange(len(sizes)).repeat_interleave(sizes)[torch.randperm(int(sizes.sum()))]
    w, gradient = torch.randn(2, len(numbers), dtype=torch.float64).to(dtype)
    w[numbers == 6] = 0.0
    whole, alone = (replace(penalty, groups=groups) for groups in (numbers, "tensor"))
    members = [numbers == number for number in range(len(sizes))]
    tolerance = 2 * len(sizes) * torch.finfo(dtype).eps
    steps = torch.rand(len(w)).to(dtype)
    for act in (
        lambda p, w, g, t: p.gradient(w),
        lambda p, w, g, t: p.prox(w, 0.3),
        lambda p, w, g, t: p.prox(w, t) if p._takes_steps else w,
        lambda p, w, g, t: p._add_gradient_(g.clone(), w, 0.3),
        lambda p, w, g, t: p._descend_(w.clone(), 0.3),
    ):
        expected = torch.zeros_like(w)
        for own in members:
            expected[own] = act(alone, w[own], gradient[own], steps[own])
        assert_close(act(whole, w, gradient, steps), expected, tolerance)
    value, optimality = whole.value(w), whole.optimality(w, gradient)
    if isinstance(penalty, Constraint):
        assert value == torch.inf
    else:
        assert_close(value, sum(alone.value(w[own]).double() for own in members).to(dtype), tolerance)
        held = [alone.strength_max(gradient[own]) for own in members]
        if not isinstance(penalty, ExclusiveLasso):
            assert_close(whole.strength_max(gradient), max(held), tolerance)
    each = torch.stack([alone.optimality(w[own], gradient[own]).double() for own in members])
    assert_close(optimality.double(), each.norm(), 10 * tolerance)
