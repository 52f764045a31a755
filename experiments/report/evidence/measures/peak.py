"""The peak of the test error along a key, and the rules that end it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from ....config.published import Peak
from ...cells import Cell, best_of
from ...numbers import plus_minus, rounded
from ...statistics import Mean
from ..found import Check, Figure, Found, Picture, Scalar, Table
from .common import NAMES, Arms, check_of, difference, lost_check, mean_of, open_check, percent, value_at


def of_peak(settings: Peak, arms: Arms, metric: str) -> Found:
    """The test error along a key: without a penalty, and at strengths that each rule has chosen."""
    rules = list(dict.fromkeys([*settings.chosen, settings.grid]))
    # By the value of the key: the arm without a penalty, the best strength on the test examples, each rule's arm.
    places: dict[float, tuple[Cell, Cell, dict[str, Cell]]] = {}
    needed: list[str] = []  # the arms of all places
    inside = 0  # of the grids, those whose best strength is not at an end
    for arm, cells in arms.items():
        names = {rule: f"{arm}, {rule}" for rule in rules}
        if not arms.keys() >= set(names.values()):
            continue
        needed += [arm, *names.values()]
        plain = best_of(cells, metric)
        ours = {rule: best_of(arms[name], metric) for rule, name in names.items()}
        whole = {rule: cell for rule, cell in ours.items() if cell is not None}
        if plain is not None and len(whole) == len(rules):
            grid = [cell for cell in arms[names[settings.grid]] if cell.is_done]
            yardstick = min(grid, key=lambda cell: cell.mean("test_error").mean)
            strengths = [cell.strength or 0.0 for cell in grid]
            inside += min(strengths) < (yardstick.strength or 0.0) < max(strengths)
            places[value_at(plain.runs[0], settings.along)] = plain, yardstick, whole
    name = NAMES.get(settings.along) or settings.along.rpartition(".")[2].replace("_", " ")
    head = [name, "no penalty, %", "best of the grid on the test, %"]
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    for place, (plain, yardstick, chosen) in sorted(places.items()):
        shown = {"no penalty": plain, "best of the grid on the test": yardstick}
        shown |= {_label(rule, settings): chosen[rule] for rule in settings.chosen}
        rows.append([f"{place:g}", *(percent(cell, "test_error", 1) for cell in shown.values())])
        for label, cell in shown.items():
            error = mean_of(cell, "test_error", 100)
            points.append({"x": place, "rule": label, "error": rounded(error.mean), "se": rounded(error.se or 0.0)})
    columns = [*head, *(f"{_label(rule, settings)}, %" for rule in settings.chosen)]
    picture = Picture(
        kind="peak",
        shows=f"Test error over {name}, without a penalty and at the strengths that each rule has chosen; the dashed "
        f"line is at {settings.at:g}.",
        x=name,
        rows=points,
        marks={"at": settings.at},
    )
    checks = _of_peak(settings, name, dict(sorted(places.items())))
    must, counted = "the grid's best inside the grid, everywhere", f"{inside} of {len(places)}"
    checks.append(Check(must=must, ours=counted, is_reached=inside == len(places)) if places else open_check(must))
    checks = [lost_check(check.must, arms, needed) or check for check in checks]
    return Found(checks=checks, tables=[Table(title="Test errors", columns=columns, rows=rows)], picture=picture)


def _label(rule: str, settings: Peak) -> str:
    return f"{rule} by validation" if rule == settings.grid else rule


def _of_peak(settings: Peak, name: str, places: Mapping[float, tuple[Cell, Cell, dict[str, Cell]]]) -> list[Check]:
    must = f"without a penalty a peak at {settings.at:g} {name}, within {100 * settings.around:g} %"
    if not places:
        return [open_check(must)]
    top = max(places, key=lambda place: places[place][0].mean("test_error").mean)
    height = mean_of(places[top][0], "test_error", 100)
    at_peak = f"{plus_minus(height, 1)} % at {top:g}"
    is_there = abs(top - settings.at) <= settings.around * settings.at and top not in (min(places), max(places))
    checks = [Check(must=must, ours=at_peak, value=height.mean, se=height.se, is_reached=is_there)]
    excess: dict[tuple[str, float], Mean] = {}
    rises: dict[tuple[str, float], Mean] = {}
    for rule in settings.chosen:
        for place, (_, yardstick, chosen) in places.items():
            if (gap := difference(chosen[rule], yardstick, "test_error", 100)) is not None:
                excess[rule, place] = gap
        for left, right in pairwise(places):
            if (rise := difference(places[right][2][rule], places[left][2][rule], "test_error", 100)) is not None:
                rises[rule, right] = rise
    limit = f"{settings.within:g} point{'' if settings.within == 1 else 's'}"
    for must, gaps in (
        (f"each rule at most {limit} above the grid's best on the test, everywhere", excess),
        (f"by no rule a rise by more than {limit} along {name}", rises),
    ):
        if not gaps:
            checks.append(open_check(must))
            continue
        rule, place = max(gaps, key=lambda key: gaps[key].mean)
        worst = gaps[rule, place]
        checks.append(check_of(must, worst, 2, f" points at most ({rule}, {place:g})", worst.mean <= settings.within))
    return checks
