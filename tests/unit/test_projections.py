"""Projections of constraints: those that other people's code finds, for every tensor and in every group."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from tests.cases import each_constraint
from tests.formulas import bisected
from tests.helpers import assert_bit_equal, assert_close
from torchreg import L2, GroupLasso, ParamInfo
from torchreg import functional as f
from torchreg.penalties.constraints import Box, L1Ball, L2Ball, LinfBall, MaxNorm, NonNegative, Simplex, UnitNorm
from torchreg.penalties.partition import Heads

each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])


# -- at the ends of the range of numbers --------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("bound", [1e20, 1e40, 1e155, 1e300])
@pytest.mark.parametrize("make", [MaxNorm, L1Ball, L2Ball, LinfBall, lambda c: Box(-c, c)])
def test_a_bound_above_all_numbers_changes_nothing(make, bound, dtype):
    w, constraint = torch.randn(3, 4).to(dtype), make(bound)
    assert_bit_equal(constraint.project(w), w)
    assert_bit_equal(constraint._prox_(w.clone(), 0.1), w)
    assert constraint.value(w) == 0


@pytest.mark.parametrize("make", [L1Ball, L2Ball])
@pytest.mark.parametrize(("bound", "is_inside"), [(2e5, True), (1e5, False)])
def test_a_bound_of_float16_weights_may_be_larger_than_each_of_them(make, bound, is_inside):
    w = torch.full((16,), 4e4 if make is L2Ball else 1e4, dtype=torch.float16)  # both have the size 1.6e5
    projected = make(bound).project(w)
    if is_inside:
        assert_bit_equal(projected, w)
    else:
        assert_close(projected.double(), w.double() * bound / 1.6e5, tolerance=1e-3)


@pytest.mark.parametrize("bound", [1e20, 1e40, 1e300])
def test_a_large_simplex_is_still_one(bound):
    projected = Simplex(bound).project(torch.randn(3, 4))
    assert_close(projected.double().sum(1), torch.full((3,), min(bound, torch.finfo().max)).double(), tolerance=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (torch.float32, 3e38), (torch.float64, 1e200)])
@pytest.mark.parametrize("groups", ["output", "input"])
def test_weights_whose_squares_overflow_keep_their_direction(groups, dtype, size):
    draw = torch.Generator().manual_seed(0)
    unit = torch.rand(3, 4, dtype=dtype, generator=draw)
    expected = MaxNorm(0.1, groups=groups).project(unit)
    w = unit * size
    assert_close(MaxNorm(0.1, groups=groups).project(w), expected, tolerance=1e-6)
    with torch.no_grad():
        assert_close(MaxNorm(0.1, groups=groups)._prox_(w.clone(), 0.1), expected, tolerance=1e-6)


@pytest.mark.parametrize("penalty", [MaxNorm(0.5), L2Ball(0.5), GroupLasso(0.1), L2(0.1)], ids=repr)
def test_lazy_conjugates_are_weights_too(penalty):
    w = torch.randn(4, 6, dtype=torch.complex64)
    lazy = w.conj().resolve_conj().conj()  # w, as a lazy conjugate
    assert lazy.is_conj()
    assert_bit_equal(penalty.value(lazy), penalty.value(w))
    with torch.no_grad():
        assert_close(penalty._prox_(lazy, 0.3).resolve_conj(), penalty.prox(w, 0.3))


# -- what others find ---------------------------------------------------------------------------------------------


def test_the_simplex_projection_is_the_one_found_by_bisection():
    for n, offset in [(1, 0.0), (7, 0.0), (500, 0.0), (500, 1e3)]:
        w = torch.randn(n, dtype=torch.float64) + offset
        for total in (1e-3, 1.0, 50.0):
            assert_close(f.project_simplex(w, total), bisected(w, total), tolerance=1e-12)


def test_the_l1_projection_is_the_one_found_by_bisection():
    w = torch.randn(300, dtype=torch.float64)
    for radius in (1e-3, 1.0, 50.0):
        assert_close(f.project_l1_ball(w, radius), w.sign() * bisected(w.abs(), radius), tolerance=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_right_float32_weights_get_the_right_share_and_the_others_exactly_none(offset):
    for seed in range(10):
        torch.manual_seed(seed)
        w = torch.randn(1000) + offset
        projected, expected = f.project_simplex(w, 1.0), bisected(w, 1.0)
        assert_close(projected.double(), expected, tolerance=1e-6)
        assert not projected[expected < 1e-9].any()  # bisection leaves that much


def test_the_sum_of_many_float32_weights_is_right():
    # One large element: the others are far below the rounding of a running sum over all of them.
    w = torch.cat([torch.tensor([0.5]), torch.full((100_000,), 1e-5)])
    assert_close(f.project_simplex(w, 1.0).double().sum().item(), 1.0, tolerance=1e-6)


@pytest.mark.parametrize(
    "constraint", [L1Ball(1.0), L2Ball(1.0), UnitNorm("tensor"), Simplex(groups="tensor")], ids=repr
)
def test_the_projection_of_a_million_float32_weights_is_inside(constraint):
    w = torch.full((1000, 1000), 0.1)  # of these torch's vector_norm is off by 4e-4, in the 1-norm by a hundredth
    order = 2 if isinstance(constraint, L2Ball | UnitNorm) else 1
    projected = constraint.project(w)
    assert_close(projected.double().norm(order).item(), 1.0, tolerance=1e-6)
    assert constraint.value(projected) == 0


@pytest.mark.shows("prox")
@each_constraint
def test_the_projection_is_the_minimum_that_a_general_solver_finds(case):
    if case.convex:
        w = torch.randn(2, 3, dtype=torch.float64)
        inside = {"type": "ineq", "fun": lambda u: -case.excess(torch.from_numpy(u).view(2, 3)).flatten().numpy()}
        if isinstance(case.constraint, Simplex):  # SLSQP wants its equalities smooth
            inside = [
                {"type": "ineq", "fun": lambda u: u},
                {"type": "eq", "fun": lambda u: u.reshape(2, 3).sum(1) - 2},
            ]
        start = case.member(w).flatten().numpy()
        square = lambda u: ((u - w.flatten().numpy()) ** 2).sum() / 2  # noqa: E731
        found = minimize(square, start, method="SLSQP", constraints=inside, options={"ftol": 1e-15, "maxiter": 500})
        best = case.constraint.project(w)
        assert_close(square(best.flatten().numpy()), found.fun, tolerance=1e-6)
        assert_close(best.flatten(), torch.from_numpy(found.x), tolerance=1e-3)


def test_max_norm_is_torchs_renorm():
    for shape in [(5, 4), (6, 3, 3, 3)]:
        w = torch.randn(shape, dtype=torch.float64)
        assert_close(MaxNorm(1.7).project(w), torch.renorm(w, 2, 0, 1.7), tolerance=1e-6)


def test_unit_norm_is_torchs_normalize():
    w = torch.randn(5, 4, dtype=torch.float64)
    assert_close(UnitNorm().project(w), F.normalize(w, dim=1))
    assert_close(UnitNorm("input").project(w), F.normalize(w, dim=0))
    assert_close(UnitNorm("tensor").project(w), w / w.norm())


def test_unit_norm_leaves_a_vector_without_direction_alone():
    w = torch.tensor([[0.0, -0.0], [0.0, 2.0]])
    assert_bit_equal(UnitNorm().project(w), torch.tensor([[0.0, -0.0], [0.0, 1.0]]))
    assert UnitNorm().value(UnitNorm().project(w)) == 0


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30])
def test_unit_norm_finds_the_direction_of_vectors_whose_squares_leave_float32(size):
    assert_close(UnitNorm().project(torch.tensor([[3 * size, 4 * size]])), torch.tensor([[0.6, 0.8]]), tolerance=1e-4)


def test_a_weight_of_one_element_a_unit_is_bounded_element_by_element():
    assert_close(MaxNorm(1.0).project(torch.tensor([3.0, -0.5])), torch.tensor([1.0, -0.5]))
    assert_close(MaxNorm(1.0).project(torch.tensor(-3.0)), torch.tensor(-1.0))


# -- every tensor -------------------------------------------------------------------------------------------------


@pytest.mark.shows("tensors")
@each_constraint
@each_dtype
@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 2, 2)], ids=str)
def test_dtype_and_shape_are_kept_and_the_result_is_inside(case, dtype, shape):
    w = (3 * torch.randn(shape)).to(dtype)
    assert case.constraint.value(w) == torch.inf
    projected = case.constraint.project(w)
    assert projected.dtype == dtype
    assert projected.shape == shape
    assert case.excess(projected.flatten(1).double()).max() <= 4 * torch.finfo(dtype).eps * 2
    for value in (case.constraint.value(w), case.constraint.value(projected)):
        assert value.dtype == dtype
        assert value.shape == ()
    assert case.constraint.value(projected) == 0


@pytest.mark.shows("tensors")
@each_constraint
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_no_dimension_and_no_elements_are_no_special_case(case, shape):
    if shape in [(), (0,), (1,)] and getattr(case.constraint, "groups", None) == "input":
        with pytest.raises(ValueError, match="must be a dimension of the weight"):
            case.constraint.project(torch.ones(shape))
        return
    projected = case.constraint.project(torch.full(shape, 9.0))
    assert projected.shape == shape
    assert projected.isfinite().all()
    assert case.constraint.value(projected) == 0


@pytest.mark.shows("tensors")
@each_constraint
def test_zero_is_projected_to_something_finite(case):
    w = torch.zeros(3, 4)
    projected = case.constraint.project(w)
    assert projected.isfinite().all()
    if not isinstance(case.constraint, Simplex):
        assert_bit_equal(projected, w)


@pytest.mark.shows("tensors")
@each_constraint
def test_no_layout_matters(case):
    w = torch.randn(4, 6, 3, dtype=torch.float64).transpose(0, 2)[:, ::2]
    assert_bit_equal(case.constraint.project(w), case.constraint.project(w.contiguous()))


@pytest.mark.shows("tensors")
@each_constraint
def test_nothing_changes_its_argument(case):
    w = torch.randn(3, 4)
    before = w.clone()
    case.constraint.value(w)
    case.constraint.gradient(w).add_(1)
    case.constraint.optimality(w, torch.ones_like(w))
    assert_bit_equal(w, before)


@pytest.mark.shows("value")
@each_constraint
def test_an_infinite_weight_is_not_inside(case):
    assert case.constraint.value(torch.tensor([[torch.inf, 0.5], [0.25, 0.25]])) == torch.inf


def test_half_precision_weights_are_summed_in_float32():
    w = torch.full((1, 4096), 300.0).half()  # the sum of squares is 5000 times the largest half
    for constraint in (MaxNorm(64.0), UnitNorm(), L2Ball(64.0)):
        norm = getattr(constraint, "max_norm", getattr(constraint, "radius", 1.0))
        assert_close(constraint.project(w), torch.full_like(w, norm / 64), tolerance=1e-3)
    assert_close(L1Ball(4096.0).project(w), torch.ones_like(w), tolerance=1e-3)
    assert_close(Simplex(4096.0).project(w), torch.ones_like(w), tolerance=1e-3)


def test_of_complex_weights_the_real_view_is_what_has_a_euclidean_norm():
    w = torch.randn(3, 4, dtype=torch.complex128)
    for constraint in (MaxNorm(0.7), UnitNorm(), L2Ball(0.7)):
        real = constraint.project(torch.view_as_real(w))
        assert_close(constraint.project(w), torch.view_as_complex(real.contiguous()))


@pytest.mark.parametrize("constraint", [L1Ball(0.7), LinfBall(0.7)], ids=repr)
def test_of_complex_weights_the_magnitudes_are_projected_and_the_phases_kept(constraint):
    w = torch.randn(3, 4, dtype=torch.complex128)
    assert_close(constraint.project(w), torch.polar(constraint.project(w.abs()), w.angle()))
    assert constraint.value(w) == torch.inf
    assert constraint.value(constraint.project(w)) == 0


@pytest.mark.parametrize("constraint", [MaxNorm(9.0), L1Ball(99.0), L2Ball(9.0), LinfBall(9.0)], ids=repr)
def test_complex_weights_inside_are_the_same_to_the_bit(constraint):
    w = torch.complex(torch.tensor([[-0.0, 1.0]]), torch.tensor([[-1.0, -0.0]]))
    assert_bit_equal(torch.view_as_real(constraint.project(w)), torch.view_as_real(w))


@pytest.mark.parametrize("constraint", [NonNegative(), Simplex()], ids=repr)
def test_complex_weights_have_no_order(constraint):
    for act in (constraint.project, constraint.value, partial(constraint.prox, step=1.0)):
        with pytest.raises(TypeError, match=r"must be real, .* got torch\.complex64"):
            act(torch.ones(2, 2, dtype=torch.complex64))


# -- groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [partial(MaxNorm, 0.5), UnitNorm, partial(L1Ball, 0.5), partial(L2Ball, 0.5), Simplex])
def test_groups_of_unequal_sizes_are_projected_each_on_its_own(make):
    w = torch.randn(3, 4, dtype=torch.float64)
    index = torch.tensor([[7, 0, 0, 7], [2, 0, 0, 0], [2, 7, 0, 7]])
    projected = make(groups=index).project(w)
    for group in (0, 2, 7):
        assert_close(projected[index == group], make(groups="tensor").project(w[index == group]))


def test_the_empty_places_of_a_short_group_get_no_share_of_the_simplex():
    # All elements are below zero: a place filled with zero would take everything.
    w = torch.tensor([-5.0, -6.0, -7.0])
    projected = Simplex(groups=torch.tensor([0, 1, 1])).project(w)
    assert_close(projected, torch.tensor([1.0, 1.0, 0.0]))


def test_heads_are_groups():
    w = torch.randn(6, 4, dtype=torch.float64)
    expected = torch.cat([L2Ball(0.5).project(block) for block in w.chunk(3)])
    assert_close(MaxNorm(0.5, groups=Heads(3)).project(w), expected)


def test_bound_to_a_transposed_convolution_max_norm_finds_the_outputs():
    layer = nn.ConvTranspose2d(3, 5, 2, dtype=torch.float64)
    bound = MaxNorm(0.1).bind(ParamInfo("weight", layer.weight, layer))
    norms = bound.project(layer.weight.detach()).square().sum((0, 2, 3)).sqrt()
    assert_close(norms, torch.full((5,), 0.1, dtype=torch.float64))
    assert bound != MaxNorm(0.1)
    assert isinstance(bound, MaxNorm)


def test_bound_to_an_embedding_the_input_groups_are_its_own_max_norm():
    layer = nn.Embedding(7, 4, max_norm=0.8, dtype=torch.float64)
    before = layer.weight.detach().clone()
    layer(torch.arange(7))  # renorms the rows it looks up, in place
    bound = MaxNorm(0.8, groups="input").bind(ParamInfo("weight", layer.weight, layer))
    assert_close(bound.project(before), layer.weight.detach(), tolerance=1e-6)


def test_constraints_without_groups_need_no_place():
    layer = nn.Linear(2, 2)
    for constraint in (NonNegative(), LinfBall(1.0)):
        assert constraint.bind(ParamInfo("weight", layer.weight, layer)) is constraint


@pytest.mark.parametrize("constraint", [MaxNorm, UnitNorm, L1Ball, L2Ball, Simplex])
def test_groups_that_are_none_are_refused(constraint):
    with pytest.raises(ValueError, match=f"^{constraint.__name__}: groups must be .*, got 'rows'"):
        constraint(groups="rows") if constraint is UnitNorm else constraint(1.0, groups="rows")
