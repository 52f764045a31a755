"""What must hold of every penalty for every weight: hypothesis looks for a counterexample."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.cases import each_penalty
from tests.helpers import assert_bit_equal, assert_close

numbers = st.floats(-100, 100, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1e-300, -1e-9])
shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
weights = arrays(float, shapes, elements=numbers).map(torch.from_numpy)
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays(float, shape, elements=numbers).map(torch.from_numpy)] * 2))
steps = st.floats(0, 10, allow_subnormal=False)
scales = st.floats(-10, 10, allow_subnormal=False)


def objective(case, u, w, step):
    return ((u - w).square().sum() / 2 + step * case.formula(u)).item()


@each_penalty
@given(w=weights)
def test_the_value_is_not_negative_and_is_its_formula(case, w):
    assert case.penalty.value(w) >= 0
    assert_close(case.penalty.value(w), case.formula(w))


@each_penalty
@given(w=weights)
def test_the_gradient_is_autograds_of_value_and_of_formula(case, w):
    for function in (case.penalty.value, case.formula):
        leaf = w.clone().requires_grad_()
        function(leaf).backward()
        assert_close(case.penalty.gradient(w), leaf.grad)


@each_penalty
@given(pair=pairs)
def test_the_gradient_is_a_subgradient(case, pair):
    u, w = pair
    linear = case.formula(w) + (case.penalty.gradient(w) * (u - w)).sum()
    assert case.formula(u) >= linear - 1e-9 * (1 + linear.abs())


@each_penalty
@given(pair=pairs, step=steps, reach=st.sampled_from([1e-3, 0.1, 1.0]))
def test_prox_minimizes_its_objective(case, pair, step, reach):
    # R is convex, so the objective is strongly convex: away from its minimum it grows at least by half the square.
    w, direction = pair
    best = case.penalty.prox(w, step)
    for u in (best + reach * direction, w, torch.zeros_like(w)):
        lead = objective(case, u, w, step) - objective(case, best, w, step)
        distance = (u - best).square().sum().item() / 2
        assert lead >= distance - 1e-9 * (1 + abs(objective(case, u, w, step)))


@each_penalty
@given(w=numbers, step=steps)
def test_prox_beats_every_point_of_a_grid(case, w, step):
    w = torch.tensor([w], dtype=torch.float64)
    grid = w * torch.linspace(-0.5, 1.5, 401, dtype=torch.float64)
    least = min(objective(case, u.view(1), w, step) for u in grid)
    assert objective(case, case.penalty.prox(w, step), w, step) <= least + 1e-9 * (1 + abs(least))


@each_penalty
@given(pair=pairs, step=steps)
def test_prox_is_firmly_non_expansive(case, pair, step):
    u, w = pair
    difference = case.penalty.prox(u, step) - case.penalty.prox(w, step)
    inner = (difference * (u - w)).sum()
    assert difference.square().sum() <= inner + 1e-9 * (1 + inner.abs())


@each_penalty
@given(w=weights)
def test_prox_with_step_zero_is_the_identity(case, w):
    assert_close(case.penalty.prox(w, 0.0), w, tolerance=0)
    assert_close(case.penalty.prox(w, torch.tensor(0.0)), w, tolerance=0)


@each_penalty
@given(w=weights, step=steps)
def test_prox_shrinks_and_never_changes_a_sign(case, w, step):
    shrunk = case.penalty.prox(w, step)
    assert (shrunk.abs() <= w.abs()).all()
    assert (shrunk * w >= 0).all()


@each_penalty
@given(w=weights, step=steps)
def test_a_step_given_as_tensor_is_the_number(case, w, step):
    tensor = torch.tensor(step, dtype=torch.float64)
    assert_close(case.penalty.prox(w, tensor), case.penalty.prox(w, step))
    assert_close(case.penalty.descend_(w.clone(), tensor), case.penalty.descend_(w.clone(), step))
    assert_close(case.penalty.add_gradient_(w.clone(), w, tensor), case.penalty.add_gradient_(w.clone(), w, step))


@each_penalty
@given(pair=pairs, scale=scales)
def test_the_in_place_forms_are_their_definitions(case, pair, scale):
    grad, w = pair
    before, expected = w.clone(), grad + scale * case.penalty.gradient(w)
    target = grad.clone()
    assert case.penalty.add_gradient_(target, w, scale) is target
    assert_close(target, expected, tolerance=1e-10)
    assert_bit_equal(w, before)

    expected = w - scale * case.penalty.gradient(w)
    assert case.penalty.descend_(w, scale) is w
    assert_close(w, expected, tolerance=1e-10)


@each_penalty
@given(w=weights, step=steps)
def test_nothing_but_the_in_place_forms_changes_its_argument(case, w, step):
    before = w.clone()
    case.penalty.value(w)
    case.penalty.gradient(w).add_(1)
    case.penalty.prox(w, step).add_(1)
    assert_bit_equal(w, before)


@each_penalty
@given(w=weights, step=steps)
def test_layout_does_not_matter(case, w, step):
    turned = w.flip(0) if w.ndim else w
    turned = turned.transpose(0, -1) if w.ndim > 1 else turned
    dense = turned.contiguous().clone()
    assert_close(case.penalty.value(turned), case.penalty.value(dense))
    assert_bit_equal(case.penalty.prox(turned, step).contiguous(), case.penalty.prox(dense, step))
