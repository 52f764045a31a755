"""What must hold of every penalty for every weight: hypothesis looks for a counterexample."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.cases import PENALTIES, SHAPED, PenaltyCase, each_case
from tests.helpers import assert_bit_equal, assert_close
from torchreg.penalties import Term

numbers = st.floats(-100, 100, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1e-300, -1e-9])
shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
weights = arrays(float, shapes, elements=numbers).map(torch.from_numpy)
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays(float, shape, elements=numbers).map(torch.from_numpy)] * 2))
steps = st.floats(0, 10, allow_subnormal=False)
scales = st.floats(-10, 10, allow_subnormal=False)


def each(holds: Callable[[PenaltyCase], bool], **strategies: st.SearchStrategy) -> Callable:
    """Runs a test over the cases of which something holds, and over what is drawn, in a shape that the case takes."""

    def decorated(test):
        @each_case(holds, PENALTIES + SHAPED)
        @given(**strategies)
        @wraps(test)
        def fitting(case, **drawn):
            test(case, **tree_map_only(Tensor, case.fit, drawn))

        return fitting

    return decorated


def every(case):
    return True


def is_proximal(case):
    return case.is_proximal


def objective(case, u, w, step):
    return ((u - w).square().sum() / 2 + step * case.formula(u)).item()


@pytest.mark.shows("value")
@each(every, w=weights)
def test_the_value_is_not_negative_and_is_its_formula(case, w):
    w = case.sane(w)
    assert case.penalty.value(w) >= 0
    assert_close(case.penalty.value(w), case.formula(w))


@pytest.mark.shows("gradient")
@each(every, w=weights)
def test_the_gradient_is_autograds_of_value_and_of_formula(case, w):
    w = case.sane(w)
    for function in (case.penalty.value, case.formula):
        leaf = w.clone().requires_grad_()
        function(leaf).backward()
        assert_close(case.penalty.gradient(w), leaf.grad)


@pytest.mark.shows("gradient")
@each(lambda case: case.convex, pair=pairs)
def test_the_gradient_is_a_subgradient(case, pair):
    u, w = pair
    linear = case.formula(w) + (case.penalty.gradient(w) * (u - w)).sum()
    assert case.formula(u) >= linear - 1e-9 * (1 + linear.abs())


@pytest.mark.shows("prox")
@each(is_proximal, pair=pairs, step=steps, reach=st.sampled_from([1e-3, 0.1, 1.0]))
def test_prox_minimizes_its_objective(case, pair, step, reach):
    w, direction = pair
    best = case.penalty.prox(w, step)
    for u in (best + reach * direction, w, torch.zeros_like(w)):
        lead = objective(case, u, w, step) - objective(case, best, w, step)
        # If R is convex, the objective grows from its minimum by at least half the squared distance.
        distance = (u - best).square().sum().item() / 2 if case.convex else 0.0
        assert lead >= distance - 1e-9 * (1 + abs(objective(case, u, w, step)))


@pytest.mark.shows("prox")
@each(lambda case: case.is_proximal and case.penalty.is_separable and case.shape is None, w=numbers, step=steps)
def test_prox_beats_every_point_of_a_grid(case, w, step):
    w = torch.tensor([w], dtype=torch.float64)
    grid = w * torch.linspace(-0.5, 1.5, 401, dtype=torch.float64)
    least = min(objective(case, u.view(1), w, step) for u in grid)
    assert objective(case, case.penalty.prox(w, step), w, step) <= least + 1e-9 * (1 + abs(least))


@pytest.mark.shows("prox")
@each(is_proximal, w=weights, step=steps, enabled=st.booleans())
def test_prox_in_place_is_prox(case, w, step, enabled):
    expected = case.penalty.prox(w, step)
    with torch.set_grad_enabled(enabled):  # the steps of optimizers disable it, and may then overwrite what they read
        assert case.penalty._prox_(w, step) is w
    assert_close(w, expected)


@each(lambda case: case.convex and case.is_proximal, pair=pairs, step=steps)
def test_prox_is_firmly_non_expansive(case, pair, step):
    u, w = pair
    difference = case.penalty.prox(u, step) - case.penalty.prox(w, step)
    inner = (difference * (u - w)).sum()
    assert difference.square().sum() <= inner + 1e-9 * (1 + inner.abs())


@pytest.mark.shows("prox")
@each(is_proximal, w=weights)
def test_prox_with_step_or_strength_zero_is_the_identity(case, w):
    assert_same = assert_bit_equal if case.convex else assert_close
    for step in (0, 0.0, torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)):
        assert_same(case.penalty.prox(w, step) + 0.0, w + 0.0)
    if isinstance(case.penalty, Term):
        assert_same(replace(case.penalty, strength=0.0).prox(w, 2.0) + 0.0, w + 0.0)


@pytest.mark.shows("prox")
@each(lambda case: case.shrinks and case.is_proximal, w=weights, step=steps)
def test_prox_shrinks_and_never_changes_a_sign(case, w, step):
    shrunk = case.penalty.prox(w, step)
    assert (shrunk.abs() <= w.abs()).all()
    assert (shrunk * w >= 0).all()


@pytest.mark.shows("tensors")
@each(every, w=weights, step=steps)
def test_a_step_given_as_tensor_is_the_number(case, w, step):
    tensor = torch.tensor(step, dtype=torch.float64)
    if case.is_proximal:
        assert_close(case.penalty.prox(w, tensor), case.penalty.prox(w, step))
    assert_close(case.penalty._descend_(w.clone(), tensor), case.penalty._descend_(w.clone(), step))
    assert_close(case.penalty._gradient_times(w, tensor), case.penalty._gradient_times(w, step))
    assert_close(case.penalty._add_gradient_(w.clone(), w, tensor), case.penalty._add_gradient_(w.clone(), w, step))


@pytest.mark.shows("gradient")
@each(every, pair=pairs, scale=scales, enabled=st.booleans())
def test_the_in_place_forms_are_their_definitions(case, pair, scale, enabled):
    grad, w = pair[0], case.sane(pair[1])
    before, expected = w.clone(), grad + scale * case.penalty.gradient(w)
    target = grad.clone()
    with torch.set_grad_enabled(enabled):
        assert case.penalty._add_gradient_(target, w, scale) is target
    assert_close(target, expected, tolerance=1e-10)
    assert_bit_equal(w, before)

    assert_close(case.penalty._gradient_times(w, scale), scale * case.penalty.gradient(w))
    expected = w - scale * case.penalty.gradient(w)
    with torch.set_grad_enabled(enabled):
        assert case.penalty._descend_(w, scale) is w
    assert_close(w, expected, tolerance=1e-10)


@pytest.mark.shows("tensors")
@each(every, w=weights, step=steps)
def test_nothing_but_the_in_place_forms_changes_its_argument(case, w, step):
    before = w.clone()
    case.penalty.value(w)
    case.penalty.gradient(w).add_(1)
    case.penalty._gradient_times(w, 1.0).add_(1)
    if case.is_proximal:
        case.penalty.prox(w, step).add_(1)
    assert_bit_equal(w, before)


@pytest.mark.shows("tensors")
@each(every, w=weights, step=steps)
def test_layout_does_not_matter(case, w, step):
    turned = w.transpose(0, -1).contiguous().transpose(0, -1) if w.ndim > 1 else torch.stack([w, w], -1)[..., 0]
    assert_close(case.penalty.value(turned), case.penalty.value(w))
    assert_close(case.penalty.gradient(turned), case.penalty.gradient(w))
    assert_close(case.penalty._add_gradient_(w.clone(), turned), case.penalty._add_gradient_(turned.clone(), w))
    if case.is_proximal:
        assert_close(case.penalty.prox(turned, step), case.penalty.prox(w, step))


# -- the certificate ----------------------------------------------------------------------------------------------


@pytest.mark.shows("certificate")
@each(is_proximal, w=weights, step=st.floats(0.1, 1))
def test_a_proximal_point_is_certified_as_stationary(case, w, step):
    # It minimizes 1/2 |u - w|^2 + step R(u): there -(u - w) / step is a (limiting) subgradient of R.
    best = case.penalty.prox(w, step)
    assert case.penalty.optimality(best, (best - w) / step) <= 1e-7 * (1 + w.abs().sum() / step)


@pytest.mark.shows("certificate")
@each(lambda case: case.convex, pair=pairs, tries=st.integers(0, 2**31))
def test_the_distance_to_the_subdifferential_is_no_more_than_to_any_subgradient(case, pair, tries):
    # Limits of gradients near w are subgradients at w, and so are their averages.
    w, gradient = torch.where(pair[0].abs() < 1e-3, 0.0, pair[0]), pair[1]
    near = torch.randn(8, *w.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(tries))
    subgradient = torch.stack([case.penalty.gradient(w + 1e-9 * noise) for noise in near]).mean(0)
    distance = case.penalty.optimality(w, gradient)
    assert distance <= (gradient + subgradient).norm() + 1e-4 * (1 + gradient.abs().sum() + w.abs().sum())


@pytest.mark.shows("certificate")
@each(every, w=weights)
def test_the_certificate_is_the_residual_where_the_penalty_is_smooth(case, w):
    w, gradient = w.abs() + 0.5, w
    residual = (gradient + case.penalty.gradient(w)).norm()
    assert_close(case.penalty.optimality(w, gradient), residual, tolerance=1e-9)


@pytest.mark.shows("certificate")
@each(lambda case: isinstance(case.penalty, Term), gradient=weights)
def test_strength_max_is_the_smallest_strength_that_holds_zero(case, gradient):
    # Of a penalty towards a reference, the reference.
    gradient = torch.where(gradient.abs() < 1e-6, 0.0, gradient)
    at_rest = torch.full_like(gradient, case.rest)
    found = case.penalty.strength_max(gradient)
    if case.strength_max is None:
        assert found == (math.inf if gradient.any() else 0)
        return
    assert_close(found, case.strength_max(gradient), tolerance=1e-9)
    if found.isinf():  # an element has the weight 0
        return
    above, below = (replace(case.penalty, strength=factor * found.item() + 1e-300) for factor in (1.001, 0.999))
    assert above.optimality(at_rest, gradient) == 0
    if found > 0:
        assert below.optimality(at_rest, gradient) > 0
