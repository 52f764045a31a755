"""The slope of the best decay over the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ....config import Run
from ....config.published import Slope
from ....errors import UserError, did_you_mean
from ...cells import Cell
from ...numbers import rounded
from ...statistics import Mean, mean
from ..formulas import exceeds, lowest, slope
from ..found import Check, Figure, Found, Picture, Scalar, Table, figure
from .common import (
    NAMES,
    Arms,
    apart_check,
    check_distinct_places,
    check_of,
    exact,
    missing_check,
    names_of,
    percent,
    value_at,
)


def check_slope(settings: Slope, runs: Sequence[Run]) -> None:
    """Refuses a study without the arms that the measure needs.

    Raises:
        UserError: a rule has no arms, too few or two at the same place, a place has no logarithm, or an arm no grid.
    """
    without = {run.arm for run in runs if run.strength is None and not run.values}
    for rule, names in _arms_of(settings, names_of(runs)).items():
        places = check_distinct_places("slope", settings.along, names, runs)
        if min(places) <= 0:
            raise UserError(
                f"published.slope: {settings.along} must be above 0, since its logarithm is taken, got "
                f"{exact(min(places))} of {names[places.index(min(places))]!r}: change it, or remove the arm"
            )
        if rule in settings.expected and len(names) < 2:
            raise UserError(f"published.slope: the rule {rule!r} needs two arms or more, got {names[0]!r}: add one")
        for name in names:
            if rule in settings.expected and name in without:
                raise UserError(f"published.slope: {name!r} needs a grid of decays: give it strengths")


def _arms_of(settings: Slope, names: Iterable[str]) -> dict[str, list[str]]:
    """The arms of each rule.

    Raises:
        UserError: there is none, or a rule is expected that there is not.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        rule, comma, _ = name.rpartition(", ")
        if comma:
            found.setdefault(rule, []).append(name)
    if not found:
        raise UserError('published.slope: no arm is named "RULE, X": name some so')
    for rule in settings.expected:
        if rule not in found:
            raise UserError(f"published.slope.expected: unknown rule {rule!r}, {did_you_mean(rule, found)}")
    return found


def of_slope(settings: Slope, arms: Arms, metric: str) -> Found:
    """The slope of log(best decay) on log(learning rate), by rule; of the decay with the lowest validation loss."""
    del metric
    rules: dict[str, dict[float, Sequence[Cell]]] = {}
    named = _arms_of(settings, arms)
    for rule, names in named.items():
        for name in names:
            decayed = [cell for cell in arms[name] if cell.is_done and cell.strength]
            if decayed:
                place = value_at(decayed[0].runs[0], settings.along)
                rules.setdefault(rule, {})[place] = sorted(decayed, key=lambda cell: cell.strength or 0.0)
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    checks: list[Check] = []
    marks = {}
    for rule, by_rate in rules.items():
        slopes = _slopes(by_rate)
        if slopes is not None:
            marks[rule] = rounded(slopes.mean, 4)
        inside = sum(map(_is_inside, by_rate.values()))
        chosen = [min(cells, key=lambda cell: cell.mean("valid_loss").mean) for cells in by_rate.values()]
        lowest_loss = min(chosen, key=lambda cell: cell.mean("valid_loss").mean)
        expected = settings.expected.get(rule)
        rows.append(
            [
                rule,
                figure(slopes, 2),
                "-" if expected is None else exact(expected),
                f"{inside} of {len(by_rate)}",
                percent(lowest_loss, "test_error", 1),
                f"{max(cell.mean('train_error').mean for cell in chosen):.1%}",
            ]
        )
        for rate, cells in sorted(by_rate.items()):
            for cell in cells:
                loss = rounded(cell.mean("valid_loss").mean, 4)
                points.append({"rule": rule, "x": rate, "y": cell.strength, "loss": loss})
            points.append({"rule": rule, "x": rate, "y": rounded(math.exp(_best(cells)[0]), 4), "loss": None})
        if expected is not None:
            must = f"{rule}: slope within {exact(settings.within)} of {exact(expected)}"
            if len(by_rate) < len(named[rule]):
                checks.append(missing_check(must, arms, named[rule]))
            elif slopes is None:
                checks.append(apart_check(must))
            else:
                is_near = not exceeds(abs(slopes.mean - expected), settings.within) and inside == len(by_rate)
                checks.append(check_of(must, slopes, 2, "", is_near))
    columns = ["rule", "slope", "expected", "best decay inside the grid"]
    columns += ["test error at the lowest validation loss, %", "largest training error"]
    for rule, expected in settings.expected.items():
        if rule not in rules:
            checks.append(missing_check(f"{rule}: slope {exact(expected)}", arms, named[rule]))
    shows = (
        "Validation loss by learning rate and decay. Points: the best decay at each rate, by a parabola through the "
    )
    shows += "three lowest losses. The line has the mean slope over seeds."
    name = NAMES.get(settings.along) or settings.along
    picture = Picture(kind="slope", shows=shows, x=name, rows=points, marks=marks)
    return Found(checks=checks, tables=[Table(title="Slopes", columns=columns, rows=rows)], picture=picture)


def _slopes(by_rate: Mapping[float, Sequence[Cell]]) -> Mean | None:
    """The mean slope over the seeds that all cells have; None if there are none, or a single rate."""
    seeds = _seeds_of(cell for cells in by_rate.values() for cell in cells)
    if not seeds or len(by_rate) < 2:
        return None
    rates = [math.log(rate) for rate in by_rate]
    return mean([slope(rates, [_best(cells, seed)[0] for cells in by_rate.values()]) for seed in seeds])


def _seeds_of(cells: Iterable[Cell]) -> list[int]:
    """The seeds that all cells have."""
    return sorted(set.intersection(*(cell.seeds for cell in cells)))


def _is_inside(cells: Sequence[Cell]) -> bool:
    """Whether the best decay of each seed, of which the slope is made, and that of their mean are inside the grid."""
    return all(_best(cells, seed)[1] for seed in (None, *_seeds_of(cells)))


def _best(cells: Sequence[Cell], seed: int | None = None) -> tuple[float, bool]:
    """The logarithm of the best decay, of a seed or of the mean over seeds, and whether it is inside the grid."""
    losses = [cell.mean("valid_loss").mean if seed is None else cell.by_seed("valid_loss")[seed] for cell in cells]
    return lowest([math.log(cell.strength or 1.0) for cell in cells], losses)
