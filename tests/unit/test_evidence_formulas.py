"""What the measures of published results compute, as functions of numbers alone."""

import numpy as np
import pytest

from experiments.report.evidence.formulas import crossing, exceeds, lowest, slope, spread, thinned


@pytest.mark.parametrize(("level", "expected"), [(0.0, 0), (0.25, 2.5), (0.75, 15), (1.0, 20), (1.01, None)])
def test_a_level_is_passed_where_the_lines_between_the_points_pass_it(level, expected):
    assert crossing([0, 5, 10, 20], [0.0, 0.5, 0.5, 1.0], level) == expected


def test_only_the_first_crossing_counts():
    assert crossing([0, 1, 2, 3], [0.0, 1.0, 0.0, 1.0], 0.5) == 0.5


def test_a_level_that_floats_miss_by_their_rounding_is_passed():
    """1 - 0.9 is less than 0.1."""
    assert crossing([0, 5, 10], [0.0, 1 - 0.9, 0.0], 0.1) == pytest.approx(5)
    assert crossing([3], [1 - 0.9], 0.1) == 3


@pytest.mark.parametrize(
    ("value", "limit", "is_above"),
    [
        (0.1 + 0.2, 0.3, False),
        (0.3, 0.1 + 0.2, False),
        (3e-17, 0.0, False),
        (0.3001, 0.3, True),
        (16_114, 16_113, True),
    ],
)
def test_a_limit_is_exceeded_by_more_than_rounding(value, limit, is_above):
    assert exceeds(value, limit) is is_above


@pytest.mark.parametrize("bottom", [0.7, 1.0, 1.2])
def test_the_lowest_point_of_a_parabola_is_found_from_uneven_points(bottom):
    xs = [-1.0, 0.2, 1.0, 1.5, 4.0]
    at, is_inside = lowest(xs, [3 * (x - bottom) ** 2 - 7 for x in xs])
    assert at == pytest.approx(bottom)
    assert is_inside


def test_the_lowest_point_is_that_of_the_polynomial_through_three_points():
    xs, ys = np.array([0.0, 0.9, 2.0]), np.array([3.0, 1.0, 2.5])
    a, b, _ = np.polyfit(xs, ys, 2)
    assert lowest(xs, ys)[0] == pytest.approx(-b / (2 * a))


@pytest.mark.parametrize(("ys", "at"), [([1.0, 2.0, 3.0], 0.0), ([3.0, 2.0, 1.0], 5.0)])
def test_a_lowest_point_at_an_end_is_told(ys, at):
    assert lowest([0.0, 1.0, 5.0], ys) == (at, False)


def test_three_equal_points_have_their_lowest_in_the_middle():
    assert lowest([0.0, 1.0, 5.0, 6.0], [2.0, 1.0, 1.0, 1.0])[1]


def test_the_slope_is_that_of_polyfit():
    xs, ys = [0.0, 1.0, 4.0, 5.0], [2.0, 0.5, 3.0, -1.0]
    assert slope(xs, ys) == pytest.approx(np.polyfit(xs, ys, 1)[0])


def test_the_spread_is_the_largest_distance_from_the_mean():
    assert spread([9.0, 10.0, 12.0, 13.0]) == pytest.approx(2 / 11)


def test_a_thinned_curve_has_both_ends():
    places = thinned(5000, 40)
    assert (places[0], places[-1]) == (0, 4999)
    assert len(places) <= 40
    assert places == sorted(set(places))
