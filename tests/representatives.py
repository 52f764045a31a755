"""Which tests ``make test`` runs: every test function, over few combinations of its parameters.

``--representatives`` runs these tests, ``--rest`` exactly the others, and neither option (or both) runs all tests. One
rule holds for every test, so that no test is marked by hand:

- A test without parameters is its own representative, and so is an example in a docstring. What is marked ``slow`` is
  none: the mark is for a few long calculations of a kind that quicker ones stand for.
- A test with parameters runs over as many combinations as are needed for each value of each parameter to occur at least
  once. A test over 23 penalties, 4 modes and 6 optimizers has 552 combinations, and 23 of them are enough. They meet a
  fault in one penalty, in one mode or in one optimizer. They may miss a fault of one certain pair: the whole suite is
  for these.
- The combinations are chosen one after another. The next one is the one with the most values that are still missing. If
  several have equally many, it is the one whose values were chosen least often so far, so that modes are spread evenly
  over penalties; if there are still several, it is the first. At the end, a combination goes if later ones made it
  superfluous. Nothing is drawn at random, and nothing depends on how long a test takes.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("representatives", "which combinations of parameters run")
    group.addoption("--representatives", action="store_true", help="few of each test: what `make test` runs")
    group.addoption("--rest", action="store_true", help="all others: with --representatives, nothing runs twice")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted, unwanted = config.getoption("representatives"), config.getoption("rest")
    if wanted == unwanted:
        return
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None:
            tests[item.nodeid.partition("[")[0]].append(item)
    chosen = {item for combinations in tests.values() for item in representatives(combinations)}
    kept, left = [], []
    for item in items:
        (kept if (item in chosen) == wanted else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def representatives(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Those of one test's combinations that are kept."""
    parameters = [item.callspec.params if hasattr(item, "callspec") else {} for item in items]
    return [items[i] for i in cover(parameters)]


def cover(combinations: Sequence[Mapping[str, Any]]) -> list[int]:
    """The places of combinations in which each value of each parameter occurs at least once."""
    values = [{(name, _key(value)) for name, value in combination.items()} for combination in combinations]
    if not any(values):
        return list(range(len(values)))
    times: Counter[Hashable] = Counter()
    missing = set().union(*values)
    places = []
    while missing:
        place = max(range(len(values)), key=lambda i: (len(values[i] & missing), -sum(times[v] for v in values[i]), -i))
        places.append(place)
        missing -= values[place]
        times.update(values[place])
    for place in list(places):
        if all(times[value] > 1 for value in values[place]):
            times.subtract(values[place])
            places.remove(place)
    return sorted(places)


def _key(value: Any) -> Hashable:
    """Two parameters are the same value if they are the same object, or equal text or numbers."""
    return (type(value), value) if isinstance(value, str | int | float | None) else id(value)
