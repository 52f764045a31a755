"""Which combinations of parameters ``make test`` runs: all values, few products, and the rest is exactly the rest."""

from itertools import product

import pytest

from tests.representatives import cover

pytest_plugins = ["pytester"]


def combinations(**parameters):
    return [dict(zip(parameters, values, strict=True)) for values in product(*parameters.values())]


def values(chosen):
    return {pair for combination in chosen for pair in combination.items()}


@pytest.mark.parametrize(
    ("cases", "count"),
    [
        (combinations(a=range(5)), 5),
        (combinations(a=range(5), b="xyz"), 5),
        (combinations(a="xy", b=range(7), c="xyz"), 7),
        ([case for case in combinations(a=range(4), b="xyz") if (case["a"], case["b"]) != (0, "x")], 4),
        (
            [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 0}],
            2,
        ),  # both of 1 are needed, and then nothing is missing
        ([{}], 1),
        ([{}, {}], 2),
    ],
)
def test_every_value_occurs_in_as_few_combinations_as_may_be(cases, count):
    places = cover(cases)
    assert len(places) == count
    assert values(cases[place] for place in places) == values(cases)
    assert places == sorted(set(places)) == cover(cases)


def test_the_values_are_spread_evenly():
    cases = combinations(case=range(12), mode="abcd")
    modes = [cases[place]["mode"] for place in cover(cases)]
    assert sorted(modes) == sorted("abcd" * 3)


def test_equal_objects_that_are_not_the_same_are_different_values():
    assert len(cover([{"a": {}}, {"a": {}}, {"a": 1}, {"a": 1}, {"a": 1.0}, {"a": True}])) == 5


FILE = """
    import pytest

    @pytest.mark.parametrize("a", [1, 2, 3])
    @pytest.mark.parametrize("b", [1, 2])
    def test_product(a, b): pass

    @pytest.fixture(params=["x", "y"])
    def kind(request): return request.param

    class TestThis:
        @pytest.mark.parametrize("a", [1, 2])
        def test_product(self, a, kind): pass

    def test_alone(): pass

    @pytest.mark.slow
    def test_long(): pass

    @pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_sometimes_long(a): pass
"""


def test_representatives_and_the_rest_are_all_and_nothing_twice(pytester):
    pytester.makepyfile(FILE)

    def ran(*options):
        reports = pytester.inline_run("-p", "tests.representatives", "-W", "ignore", *options).getreports(
            "pytest_runtest_logreport"
        )
        return [report.nodeid for report in reports if report.when == "call"]

    few, rest, everything = ran("--representatives"), ran("--rest"), ran()
    assert len(few) == 3 + 2 + 1 + 1
    assert sorted(few + rest) == sorted(everything) == sorted(ran("--representatives", "--rest"))
    assert len(everything) == 6 + 4 + 1 + 1 + 2
