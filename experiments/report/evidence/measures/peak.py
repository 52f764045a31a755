"""The peak of the test error along a key, and the rules that end it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from ....config import Run
from ....config.published import Peak
from ....errors import UserError
from ...cells import Cell, best_of
from ...numbers import plus_minus, rounded
from ...statistics import Mean
from ..formulas import exceeds
from ..found import Check, Figure, Found, Picture, Scalar, Table
from .common import (
    NAMES,
    Arms,
    apart_check,
    check_distinct_places,
    check_of,
    check_pair,
    difference,
    exact,
    lost_check,
    mean_of,
    names_of,
    open_check,
    percent,
    value_at,
)


class _Place(NamedTuple):
    """What is found at a value of the key."""

    plain: Cell  # without a penalty
    best: Cell  # of the grid on the test examples: the yardstick
    is_inside: bool  # whether the best strength is not at an end of the grid
    chosen: Mapping[str, Cell]  # by the rules


_Places = Mapping[float, _Place]


def check_peak(settings: Peak, runs: Sequence[Run]) -> None:
    """Refuses a study without the arms that the measure needs.

    Raises:
        UserError: an arm is missing, there are fewer than three places, two arms have the same one, or a rule has the
            name of another column.
    """
    labels = _labels(settings)
    for rule in settings.chosen:
        if labels.count(rule) > 1:
            raise UserError(f"published.peak.chosen: {rule!r} is the name of another column: rename the rule")
    plain = list(_arms_of(settings, names_of(runs)))
    check_distinct_places("peak", settings.along, plain, runs)
    if len(plain) < 3:
        raise UserError(f"published.peak: a peak needs three arms without a penalty or more, got {', '.join(plain)}")


def _arms_of(settings: Peak, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Of each arm without a penalty those of the rules.

    Raises:
        UserError: there is none, or one of them is missing.
    """
    rules = dict.fromkeys([*settings.chosen, settings.grid])
    ends = [f", {rule}" for rule in sorted(rules, key=len, reverse=True)]  # "a, b" comes before "b"
    found: dict[str, str] = {}  # the arms without a penalty, each with one of a rule
    for name in names:
        if end := next(filter(name.endswith, ends), None):
            found.setdefault(name.removesuffix(end), name)
    if not found:
        raise UserError(
            f"published.peak: no arm's name ends in {' or '.join(map(repr, ends))}: name some so, or change "
            "grid and chosen"
        )
    for plain, other in found.items():
        for name in (plain, *(f"{plain}, {rule}" for rule in rules)):
            check_pair("peak", other, name, names)
    return {plain: {rule: f"{plain}, {rule}" for rule in rules} for plain in found}


def _labels(settings: Peak) -> list[str]:
    """What the columns are called: without a penalty, the yardstick, and the rules."""
    rules = [f"{rule} by validation" if rule == settings.grid else rule for rule in settings.chosen]
    return ["no penalty", "best of the grid on the test", *rules]


def of_peak(settings: Peak, arms: Arms, metric: str) -> Found:
    """The test error along a key: without a penalty, and at strengths that each rule has chosen."""
    named = _arms_of(settings, arms)
    places = _places_of(settings, named, arms, metric)
    name = NAMES.get(settings.along) or settings.along.rpartition(".")[2].replace("_", " ")
    labels = _labels(settings)
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    for at, place in places.items():
        shown = [place.plain, place.best, *(place.chosen[rule] for rule in settings.chosen)]
        rows.append([exact(at), *(percent(cell, "test_error", 1) for cell in shown)])
        for label, cell in zip(labels, shown, strict=True):
            error = mean_of(cell, "test_error", 100)
            points.append({"x": at, "rule": label, "error": rounded(error.mean), "se": rounded(error.se or 0.0)})
    picture = Picture(
        kind="peak",
        shows=f"Test error over {name}, without a penalty and at the strengths that each rule has chosen; the dashed "
        f"line is at {exact(settings.at)}.",
        x=name,
        rows=points,
        marks={"at": settings.at},
    )
    must, inside = "the grid's best inside the grid, everywhere", sum(place.is_inside for place in places.values())
    counted = Check(must=must, ours=f"{inside} of {len(places)}", is_reached=inside == len(places))
    checks = [*_of_peak(settings, name, places), counted if places else open_check(must)]
    needed = [arm for plain, rules in named.items() for arm in (plain, *rules.values())]
    checks = [lost_check(check.must, arms, needed) or check for check in checks]
    columns = [name, *(f"{label}, %" for label in labels)]
    return Found(checks=checks, tables=[Table(title="Test errors", columns=columns, rows=rows)], picture=picture)


def _places_of(settings: Peak, named: Mapping[str, Mapping[str, str]], arms: Arms, metric: str) -> _Places:
    """The places of which all arms are finished, in order."""
    places = {}
    for name, others in named.items():
        plain = best_of(arms[name], metric)
        ours = {rule: best_of(arms[other], metric) for rule, other in others.items()}
        chosen = {rule: cell for rule, cell in ours.items() if cell is not None}
        if plain is not None and len(chosen) == len(ours):
            grid = [cell for cell in arms[others[settings.grid]] if cell.is_done]
            best = min(grid, key=lambda cell: cell.mean("test_error").mean)
            strengths = [cell.strength or 0.0 for cell in grid]
            is_inside = min(strengths) < (best.strength or 0.0) < max(strengths)
            places[value_at(plain.runs[0], settings.along)] = _Place(plain, best, is_inside, chosen)
    return dict(sorted(places.items()))


def _of_peak(settings: Peak, name: str, places: _Places) -> list[Check]:
    must = f"without a penalty a peak at {exact(settings.at)} {name}, within {exact(100 * settings.around)} %"
    checks = [open_check(must)]
    if places:
        top = max(places, key=lambda place: places[place].plain.mean("test_error").mean)
        height = mean_of(places[top].plain, "test_error", 100)
        at_peak = f"{plus_minus(height, 1)} % at {exact(top)}"
        is_near = not exceeds(abs(top - settings.at), settings.around * settings.at)
        is_there = is_near and top not in (min(places), max(places))
        checks = [Check(must=must, ours=at_peak, value=height.mean, se=height.se, is_reached=is_there)]
    excess: dict[tuple[str, float], Mean | None] = {}
    rises: dict[tuple[str, float], Mean | None] = {}
    for rule in settings.chosen:
        for at, place in places.items():
            excess[rule, at] = difference(place.chosen[rule], place.best, "test_error", 100)
        for left, right in pairwise(places):
            ours, before = places[right].chosen[rule], places[left].chosen[rule]
            rises[rule, right] = difference(ours, before, "test_error", 100)
    limit = f"{exact(settings.within)} point{'' if settings.within == 1 else 's'}"
    must = f"each rule at most {limit} above the grid's best on the test, everywhere"
    checks.append(_at_most(settings.within, must, excess))
    checks.append(_at_most(settings.within, f"each rule: a rise of at most {limit} along {name}", rises))
    return checks


def _at_most(limit: float, must: str, gaps: Mapping[tuple[str, float], Mean | None]) -> Check:
    """The check of the largest difference, by rule and place."""
    known = {key: gap for key, gap in gaps.items() if gap is not None}
    if not gaps:
        return open_check(must)
    if len(known) < len(gaps):
        return apart_check(must)
    rule, at = max(known, key=lambda key: known[key].mean)
    worst = known[rule, at]
    return check_of(must, worst, 2, f" points at most ({rule}, {exact(at)})", not exceeds(worst.mean, limit))
