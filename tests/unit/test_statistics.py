"""Statistics of seeds and images, against SciPy, closed forms and simulations."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from experiments.report.statistics import (
    Difference,
    binomial_error,
    bootstrap,
    example_error,
    expected_maximum,
    holm,
    image_error,
    mcnemar,
    mean,
    optimism,
    paired,
    rms_error,
)
from experiments.training.outcomes import packed, unpacked


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_mean_and_its_standard_error_are_scipys(count):
    values = np.random.default_rng(count).normal(5, 2, count)
    assert mean(values.tolist()) == pytest.approx((values.mean(), stats.sem(values)), rel=1e-12)


def test_the_standard_error_of_a_single_seed_is_unknown():
    assert mean([0.25]) == (0.25, None)
    found = paired({3: 0.5}, {3: 0.2})
    assert (found.mean, found.of_seeds, found.interval()) == (pytest.approx(0.3), None, None)
    assert not found.excludes_zero()


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("level", [0.95, 0.999])
def test_the_interval_over_seeds_is_that_of_scipys_paired_t_test(count, level):
    draw = np.random.default_rng(count)
    ours, theirs = draw.normal(0.3, 0.1, count), draw.normal(0.1, 0.1, count)
    expected = stats.ttest_rel(ours, theirs)
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert found.interval(level) == pytest.approx(tuple(expected.confidence_interval(level)), rel=1e-9)
    for confidence in (1 - expected.pvalue - 1e-9, 1 - expected.pvalue + 1e-9):
        assert found.excludes_zero(confidence) == (confidence < 1 - expected.pvalue)


def test_seeds_are_paired_where_both_have_them():
    found = paired({0: 1.0, 1: 2.0, 7: 5.0}, {7: 1.0, 1: 0.0, 4: 9.0})
    assert (found.mean, found.seeds) == (3.0, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_where_seeds_agree_the_interval_is_the_normal_one_of_the_images():
    found = Difference(0.1, seeds=3, of_seeds=0.0, of_images=0.02)
    assert found.interval(0.99) == pytest.approx(stats.norm.interval(0.99, 0.1, 0.02), rel=1e-9)


def test_both_errors_add_up_as_squares():
    found = Difference(0.0, seeds=4, of_seeds=0.3, of_images=0.4)
    t, z = stats.t.ppf(0.975, 3) * 0.3, stats.norm.ppf(0.975) * 0.4
    assert found.interval() == pytest.approx((-math.hypot(t, z), math.hypot(t, z)), rel=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("of_images", [0.0, 0.5, 3.0])
def test_the_interval_holds_the_truth_in_95_percent(seeds, of_images):
    draw, held, trials = np.random.default_rng(seeds), 0, 3000
    for values, image in zip(draw.normal(0, 1, (trials, seeds)), draw.normal(0, of_images, trials), strict=True):
        found = Difference(values.mean() + image, seeds, stats.sem(values), of_images)
        low, high = found.interval()
        held += low <= 0 <= high
    error = binomial_error(0.95, trials)
    assert held / trials > 0.95 - 4 * error
    assert of_images or held / trials < 0.95 + 4 * error


@pytest.mark.parametrize("seeds", [5, 30])
def test_the_bootstrap_is_scipys_and_narrower_for_few_seeds(seeds):
    values = np.random.default_rng(seeds).normal(1, 1, seeds)
    low, high = bootstrap(values.tolist())
    options = {"n_resamples": 2000, "method": "BCa", "rng": np.random.default_rng(0)}
    expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert (low, high) == (expected.low, expected.high)
    t_low, t_high = paired(dict(enumerate(values)), dict.fromkeys(range(seeds), 0.0)).interval()
    assert high - low < t_high - t_low
    assert bootstrap([0.5] * seeds) == (0.5, 0.5)


@pytest.mark.parametrize(("size", "count"), [(0.5, 200), (3.0, 1000)])
def test_the_error_of_a_root_mean_square_is_that_of_drawn_numbers(size, count):
    drawn = np.random.default_rng(0).normal(0, size, (4000, count))
    assert rms_error(size, count) == pytest.approx(np.sqrt((drawn**2).mean(1)).std(), rel=0.05)


@pytest.mark.parametrize(("share", "count"), [(0.1, 797), (0.5, 20), (0.2, 5)])
def test_the_binomial_error_is_scipys(share, count):
    assert binomial_error(share, count) == pytest.approx(stats.binom.std(count, share) / count, rel=1e-12)


@pytest.mark.parametrize("count", [5, 30, 797])
def test_no_error_among_a_few_images_is_no_certainty(count):
    assert binomial_error(0.0, count) == binomial_error(1 / count, count) > 0
    assert binomial_error(1.0, count) == pytest.approx(binomial_error(0.0, count), rel=1e-12)
    none = [np.zeros(count, dtype=bool)] * 2
    assert image_error(none, none) == 1 / count


def test_the_error_of_a_difference_of_root_mean_squares_is_that_of_other_examples():
    draw = np.random.default_rng(0)
    hard = draw.uniform(0.2, 2.0, (2000, 200))  # both err on the same examples
    one, two = (hard * draw.normal(middle, 0.1, hard.shape) for middle in (1.0, 1.2))
    differences = np.sqrt((one**2).mean(1)) - np.sqrt((two**2).mean(1))
    estimates = [example_error([a], [b]) for a, b in zip(one, two, strict=True)]
    assert np.mean(estimates) == pytest.approx(differences.std(), rel=0.1)
    assert np.mean(estimates) < 0.3 * rms_error(1.2, 200)
    several = example_error([one[0], one[0]], [two[0], two[0]])  # seeds that agree tell no more
    assert several == pytest.approx(estimates[0], rel=1e-12)
    assert example_error([np.zeros(9)], [np.zeros(9)]) == 0


def test_the_error_of_the_images_is_that_of_differences_image_by_image():
    draw = np.random.default_rng(0)
    ours, theirs = draw.random((3, 400)) < 0.3, draw.random((3, 400)) < 0.2
    each = (ours.sum(0) - theirs.sum(0)) / 3
    assert image_error(list(ours), list(theirs)) == pytest.approx(stats.sem(each), rel=1e-12)
    assert image_error(list(ours), list(ours)) == 0


def test_the_error_of_the_images_is_what_other_images_show():
    # One seed, by a closed form: the variance of +1, -1 and 0 is b + c - (b - c) ** 2, as in McNemar's test.
    draw, sampled, told = np.random.default_rng(1), [], []
    for _ in range(2000):
        hard = draw.random(300) < 0.2
        ours, theirs = hard ^ (draw.random(300) < 0.05), hard ^ (draw.random(300) < 0.1)
        sampled.append(ours.mean() - theirs.mean())
        told.append(image_error([ours], [theirs]))
        b, c = (ours & ~theirs).mean(), (theirs & ~ours).mean()
        assert told[-1] ** 2 == pytest.approx((b + c - (b - c) ** 2) / 299, rel=1e-9)
    assert np.std(sampled) == pytest.approx(np.mean(told), rel=0.05)


@pytest.mark.parametrize(("only_ours", "only_theirs"), [(0, 0), (1, 9), (30, 25), (200, 100)])
def test_mcnemars_p_value_is_the_sum_of_binomial_probabilities(only_ours, only_theirs):
    both, count = 5, only_ours + only_theirs
    ours = np.array([True] * (only_ours + both) + [False] * (only_theirs + 3))
    theirs = np.array([False] * only_ours + [True] * (both + only_theirs) + [False] * 3)
    tail = sum(math.comb(count, k) for k in range(min(only_ours, only_theirs) + 1)) / 2**count
    found = mcnemar(ours, theirs)
    assert found[:2] == (only_ours, only_theirs)
    assert found.p == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_holm_rejects_what_the_ordered_p_values_do(seed):
    p = np.random.default_rng(seed).random(8) ** 4
    order, expected = np.argsort(p), np.zeros(8, bool)
    for rank, at in enumerate(order):
        if p[at] > 0.05 / (8 - rank):
            break
        expected[at] = True
    assert holm([lambda level, own=own: own < 1 - level for own in p]) == expected.tolist()


def test_holm_of_nothing_and_of_everything():
    assert holm([]) == []
    assert holm([lambda level: True] * 3) == [True] * 3
    assert holm([lambda level: False] * 3) == [False] * 3


def test_the_expected_maximum_is_the_closed_form():
    expected = [0, 1 / math.sqrt(math.pi), 3 / (2 * math.sqrt(math.pi))]
    assert [expected_maximum(k) for k in (1, 2, 3)] == pytest.approx(expected, abs=1e-9)
    tabulated = {5: 1.16296, 7: 1.35218, 10: 1.53875, 20: 1.86748}  # H. L. Harter, "Expected values", 1961
    assert {k: round(expected_maximum(k), 5) for k in tabulated} == tabulated
    assert all(a < b for a, b in pairwise(map(expected_maximum, range(1, 30))))


@pytest.mark.parametrize("count", [2, 5, 9])
def test_choosing_among_equal_strengths_costs_what_is_told(count):
    noise = np.random.default_rng(count).normal(0, 0.5, (20_000, count))
    told = optimism([0.5 * math.sqrt(2)] * (count - 1))  # of differences
    assert told == pytest.approx(-noise.min(1).mean(), abs=4 * 0.5 / math.sqrt(20_000))
    assert optimism([]) == 0


@pytest.mark.parametrize("count", [1, 7, 8, 797, 10_000])
def test_errors_survive_their_packing(count):
    wrong = np.random.default_rng(count).random(count) < 0.3
    row = packed(wrong)
    assert (unpacked(row) == wrong).all()
    assert len(row["wrong"]) <= 4 * -(-count // 24)
