"""What must hold of every projection for every weight: hypothesis looks for a counterexample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.cases import CONSTRAINTS
from tests.formulas import bisected
from tests.helpers import assert_bit_equal, assert_close
from torchreg import functional as f

numbers = st.floats(-100, 100, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1e-300, -1e-9, 1.0])
shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4)
weights = arrays(float, shapes, elements=numbers).map(torch.from_numpy)
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays(float, shape, elements=numbers).map(torch.from_numpy)] * 2))


def cases(**wanted):
    chosen = [c for c in CONSTRAINTS if all(getattr(c, name) == value for name, value in wanted.items())]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: repr(case.constraint))


def inner(u, w):
    return (u * w).sum().item()


@pytest.mark.shows("prox")
@cases()
@given(w=weights)
def test_the_projection_is_inside(case, w):
    projected = case.constraint.project(w)
    assert (case.excess(projected) <= 1e-13).all()
    assert case.constraint.value(projected) == 0


@pytest.mark.shows("prox")
@cases()
@given(w=weights, enabled=st.booleans())
def test_in_place_it_is_the_projection(case, w, enabled):
    before, expected = w.clone(), case.constraint.project(w)
    with torch.set_grad_enabled(enabled):  # the steps of optimizers disable it, and may then overwrite what they read
        assert case.constraint._prox_(w, 0.3) is w
    assert_close(w, expected)
    if (before == expected).all():
        assert_bit_equal(w, expected)


@pytest.mark.shows("value")
@cases()
@given(w=weights)
def test_the_value_tells_the_inside_from_the_outside(case, w):
    assert case.constraint.value(case.member(w)) == 0
    if (case.excess(w) > 1e-9 * (1 + w.abs().max())).any():
        assert case.constraint.value(w) == torch.inf


@pytest.mark.shows("prox")
@cases(convex=True)
@given(pair=pairs)
def test_no_point_of_a_convex_set_is_beyond_the_projection(case, pair):
    # The variational inequality: it holds for the nearest point alone.
    u, w = case.member(pair[0]), pair[1]
    nearest = case.constraint.project(w)
    assert inner(w - nearest, u - nearest) <= 1e-12 * (1 + inner(w, w) + inner(u, u))


@pytest.mark.shows("prox")
@cases(convex=False)
@given(pair=pairs)
def test_no_point_of_a_set_that_is_not_convex_is_nearer_than_the_projection(case, pair):
    u, w = case.member(pair[0]), pair[1]
    w = torch.where(w.any(1, keepdim=True), w, 1.0)  # a vector without direction is left alone
    assert (case.constraint.project(w) - w).norm() <= (u - w).norm() + 1e-12 * (1 + w.norm())


@pytest.mark.shows("prox")
@cases()
@given(w=weights)
def test_projecting_twice_is_projecting_once(case, w):
    once = case.constraint.project(w)
    assert_close(case.constraint.project(once), once, tolerance=1e-15)


@pytest.mark.shows("prox")
@cases(solid=True)
@given(w=weights)
def test_what_is_inside_is_returned_to_the_bit(case, w):
    inside = case.member(w)
    assert_bit_equal(case.constraint.project(inside), inside)


@pytest.mark.shows("prox")
@cases(solid=False)
@given(w=weights)
def test_what_is_inside_a_set_without_interior_is_returned_up_to_rounding(case, w):
    inside = case.member(w)
    assert_close(case.constraint.project(inside), inside, tolerance=1e-15)


@pytest.mark.shows("prox")
@cases(convex=True)
@given(pair=pairs)
def test_projecting_on_a_convex_set_is_firmly_non_expansive(case, pair):
    u, w = pair
    difference = case.constraint.project(u) - case.constraint.project(w)
    assert inner(difference, difference) <= inner(difference, u - w) + 1e-12 * (1 + inner(u, u) + inner(w, w))


@given(w=weights, total=st.floats(1e-6, 1e3))
def test_the_simplex_projection_is_the_one_found_by_bisection(w, total):
    expected = torch.stack([bisected(row, total) for row in w])
    assert_close(f.project_simplex(w, total), expected, tolerance=1e-11)
