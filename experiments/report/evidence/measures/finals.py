"""The final test errors: their size, their order, their differences, and what was compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ....config.published import Finals
from ...cells import Cell, best_of
from ...numbers import rounded
from ...statistics import Mean, mean
from ..formulas import exceeds
from ..found import Check, Figure, Found, Picture, Scalar, Table, figure
from .common import (
    Arms,
    apart_check,
    check_of,
    difference,
    ending,
    exact,
    mean_of,
    missing_check,
    percent,
    strength,
)


def of_finals(settings: Finals, arms: Arms, metric: str) -> Found:
    """The test error of each arm, at the strength that validation chooses, and what must hold of them."""
    chosen = {name: best_of(cells, metric) for name, cells in arms.items()}
    shown = {name: cell for name, cell in chosen.items() if cell and name in (settings.arms or arms)}
    lost = {name: end for name, cells in arms.items() if name in (settings.arms or arms) and (end := ending(cells))}
    columns = ["arm", "published, %", "ours, %", "training, %", "strength", "weights / nonzero weights", "bytes"]
    rows: list[list[Figure | str]] = [
        [
            name,
            _published(name, settings),
            percent(cell, "test_error", 2),
            percent(cell, "train_error", 2),
            strength(cell),
            figure(_counted(cell, "weights"), 1),
            figure(_counted(cell, "bytes"), 0),
        ]
        for name, cell in shown.items()
    ]
    rows += [[name, _published(name, settings), end, *["-"] * (len(columns) - 3)] for name, end in lost.items()]
    checks = [
        *(_at_most(name, limit, arms, metric) for name, limit in settings.at_most.items()),
        *(_lower(pair.arm, pair.than, pair.by, arms, metric) for pair in settings.lower),
        *(_compressed(name, least, arms, metric) for name, least in settings.compression.items()),
        *(_small(name, most, arms, metric) for name, most in settings.bytes.items()),
    ]
    if settings.order:
        checks.append(_ordered(settings.order, arms, metric))
    points: list[dict[str, Scalar]] = []
    for name, cell in shown.items():
        for seed, error in cell.by_seed("test_error").items():
            points.append({"arm": name, "seed": seed, "error": rounded(100 * error)})
        if name in settings.published:
            points.append({"arm": name, "seed": None, "error": settings.published[name]})
    picture = Picture(
        kind="finals", shows="The final test errors of each seed, their mean, and the paper's.", rows=points
    )
    return Found(checks=checks, tables=[Table(title="Final models", columns=columns, rows=rows)], picture=picture)


def _published(name: str, settings: Finals) -> str:
    return exact(settings.published[name]) if name in settings.published else ""


def _at_most(name: str, limit: float, arms: Arms, metric: str) -> Check:
    must = f"{name}: at most {exact(limit)} %"
    if (cell := best_of(arms[name], metric)) is None:
        return missing_check(must, arms, [name])
    error = mean_of(cell, "test_error", 100)
    return check_of(must, error, 2, " %", not exceeds(error.mean, limit))


def _lower(arm: str, than: str, by: float, arms: Arms, metric: str) -> Check:
    must = f"{arm} lower than {than}" + (f" by at least {exact(by)} points" if by else "")
    ours, theirs = best_of(arms[arm], metric), best_of(arms[than], metric)
    if ours is None or theirs is None:
        return missing_check(must, arms, [arm, than])
    if (gain := difference(theirs, ours, "test_error", 100)) is None:
        return apart_check(must)
    is_lower = not exceeds(by, gain.mean) if by else exceeds(gain.mean, 0.0)  # equal is not lower
    return check_of(must, gain, 2, " points", is_lower)


def _compressed(name: str, least: float, arms: Arms, metric: str) -> Check:
    must = f"{name}: weights / nonzero weights at least {exact(least)}"
    return _held(must, name, "weights", 1, lambda ratio: not exceeds(least, ratio), arms, metric)


def _small(name: str, most: float, arms: Arms, metric: str) -> Check:
    must = f"{name}: at most {most:,.15g} bytes"
    return _held(must, name, "bytes", 0, lambda size: not exceeds(size, most), arms, metric)


def _held(
    must: str, name: str, count: str, digits: int, holds: Callable[[float], bool], arms: Arms, metric: str
) -> Check:
    """The check of what compression has reached by a count."""
    cell = best_of(arms[name], metric)
    if cell is None:
        return missing_check(must, arms, [name])
    if any(result.get("compression", {}).get("weights", 1.0) is None for result in cell.results):  # was infinite
        return Check(must=must, ours="no weight is left", is_reached=False)  # nothing, however small, is no model
    if (found := _counted(cell, count)) is None:  # of an earlier version, or a model whose bytes are not known
        return Check(must=must, ours="its records do not tell")
    return check_of(must, found, digits, "", holds(found.mean))


def _ordered(names: Sequence[str], arms: Arms, metric: str) -> Check:
    must = f"the order {' > '.join(names)}"
    cells = [cell for name in names if (cell := best_of(arms[name], metric)) is not None]
    if len(cells) < len(names):
        return missing_check(must, arms, names)
    errors = {cell.arm: cell.mean("test_error").mean for cell in cells}
    ours = sorted(names, key=lambda name: -errors[name])
    signs = [" > " if exceeds(errors[high], errors[low]) else " = " for high, low in pairwise(ours)]
    text = "".join(f"{name}{sign}" for name, sign in zip(ours, [*signs, ""], strict=True))
    is_falling = all(exceeds(errors[high], errors[low]) for high, low in pairwise(names))
    return Check(must=must, ours=text, is_reached=is_falling)


def _counted(cell: Cell, count: str) -> Mean | None:
    """What compression has reached by a count; None if a run does not tell."""
    found = [result.get("compression", {}).get(count) for result in cell.results]
    known = [number for number in found if number is not None]
    return mean(known) if len(known) == len(found) else None
