"""The measures: what is held against a paper's figures. Each is of the final models, and of no choice by the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

from ...config import Published
from ...config.published import MEASURES, Finals, Onset, Peak, Slope, Tuned
from ...errors import UserError
from ..cells import Cell, best_of
from ..numbers import plus_minus, rounded
from ..statistics import Mean, mean, paired
from ..summary import Summary
from .formulas import crossing, lowest, slope, spread, thinned
from .found import Check, Figure, Found, Picture, Scalar, Table, figure

_POINTS = 40  # of a run's curve in a record
_NAMES = {"data.train_size": "training images", "optimizer.lr": "learning rate"}
Arms = Mapping[str, Sequence[Cell]]


def measured(published: Published, summary: Summary, arms: Iterable[str]) -> list[Found]:
    """What each measure of a study finds.

    Args:
        published: names the measures.
        summary: of the runs that are finished.
        arms: the names of all arms.

    Raises:
        UserError: a measure names a key of the study that is no number, or the study is a regression.
    """
    if summary.is_regression:
        raise UserError(
            "published: the measures are of shares of wrong classes, this study is a regression: give classes"
        )
    cells: dict[str, list[Cell]] = {name: [] for name in arms}
    for cell in summary.cells:
        if cell.is_done:
            cells[cell.arm].append(cell)
    given = {name: getattr(published, name) for name in MEASURES}
    return [_BY_NAME[name](own, cells, summary.metric) for name, own in given.items() if own is not None]


def of_finals(settings: Finals, arms: Arms, metric: str) -> Found:
    """The test error of each arm, at the strength that validation chooses, and what must hold of them."""
    chosen = {name: best_of(cells, metric) for name, cells in arms.items()}
    shown = {name: cell for name, cell in chosen.items() if cell and name in (settings.arms or arms)}
    columns = ["arm", "published, %", "ours, %", "training, %", "strength", "weights / nonzero weights", "bytes"]
    rows: list[list[Figure | str]] = [
        [
            name,
            f"{settings.published[name]:g}" if name in settings.published else "",
            _percent(cell, "test_error", 2),
            _percent(cell, "train_error", 2),
            _strength(cell),
            figure(_counted(cell, "weights"), 1),
            figure(_counted(cell, "bytes"), 0),
        ]
        for name, cell in shown.items()
    ]
    checks = [
        *(_at_most(name, limit, chosen[name]) for name, limit in settings.at_most.items()),
        *(_lower(pair.arm, pair.than, pair.by, chosen) for pair in settings.lower),
        *(_compressed(name, least, chosen[name]) for name, least in settings.compression.items()),
        *(_small(name, most, chosen[name]) for name, most in settings.bytes.items()),
    ]
    if settings.order:
        checks.append(_ordered(settings.order, chosen))
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


def _at_most(name: str, limit: float, cell: Cell | None) -> Check:
    must = f"{name}: at most {limit:g} %"
    if cell is None:
        return _open(must)
    error = _mean(cell, "test_error", 100)
    return _check(must, error, 2, " %", error.mean <= limit)


def _lower(arm: str, than: str, by: float, chosen: Mapping[str, Cell | None]) -> Check:
    must = f"{arm} lower than {than}" + (f" by at least {by:g} points" if by else "")
    ours, theirs = chosen[arm], chosen[than]
    if ours is None or theirs is None or (gain := _difference(theirs, ours, "test_error", 100)) is None:
        return _open(must)
    return _check(must, gain, 2, " points", gain.mean >= by)


def _compressed(name: str, least: float, cell: Cell | None) -> Check:
    must = f"{name}: weights / nonzero weights at least {least:g}"
    if cell is None or (ratio := _counted(cell, "weights")) is None:
        return _open(must)
    return _check(must, ratio, 1, "", ratio.mean >= least)


def _small(name: str, most: float, cell: Cell | None) -> Check:
    must = f"{name}: at most {most:,.0f} bytes"
    if cell is None or (size := _counted(cell, "bytes")) is None:
        return _open(must)
    return _check(must, size, 0, "", size.mean <= most)


def _ordered(names: Sequence[str], chosen: Mapping[str, Cell | None]) -> Check:
    must = f"the order {' > '.join(names)}"
    cells = [cell for name in names if (cell := chosen[name]) is not None]
    if len(cells) < len(names):
        return _open(must)
    errors = {cell.arm: cell.mean("test_error").mean for cell in cells}
    ours = sorted(names, key=lambda name: -errors[name])
    return Check(must=must, ours=" > ".join(ours), is_reached=ours == list(names))


def _counted(cell: Cell, count: str) -> Mean | None:
    """What compression has reached by a count; None if a run does not tell."""
    found = [result.get("compression", {}).get(count) for result in cell.results]
    known = [number for number in found if number is not None]
    return mean(known) if len(known) == len(found) else None


def of_peak(settings: Peak, arms: Arms, metric: str) -> Found:
    """The test error along a key: without a penalty, and at strengths that each rule has chosen."""
    rules = list(dict.fromkeys([*settings.chosen, settings.grid]))
    # By the value of the key: the arm without a penalty, the best strength on the test examples, each rule's arm.
    places: dict[float, tuple[Cell, Cell, dict[str, Cell]]] = {}
    inside = 0  # of the grids, those whose best strength is not at an end
    for arm, cells in arms.items():
        ours = {rule: best_of(arms.get(f"{arm}, {rule}", ()), metric) for rule in rules}
        whole = {rule: cell for rule, cell in ours.items() if cell is not None}
        if cells and len(whole) == len(rules):
            grid = arms[f"{arm}, {settings.grid}"]
            yardstick = min(grid, key=lambda cell: cell.mean("test_error").mean)
            strengths = [cell.strength or 0.0 for cell in grid]
            inside += min(strengths) < (yardstick.strength or 0.0) < max(strengths)
            places[_value(cells[0], settings.along)] = cells[0], yardstick, whole
    name = _NAMES.get(settings.along) or settings.along.rpartition(".")[2].replace("_", " ")
    head = [name, "no penalty, %", "best of the grid on the test, %"]
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    for place, (plain, yardstick, chosen) in sorted(places.items()):
        shown = {"no penalty": plain, "best of the grid on the test": yardstick}
        shown |= {_label(rule, settings): chosen[rule] for rule in settings.chosen}
        rows.append([f"{place:g}", *(_percent(cell, "test_error", 1) for cell in shown.values())])
        for label, cell in shown.items():
            error = _mean(cell, "test_error", 100)
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
    checks.append(Check(must=must, ours=counted, is_reached=inside == len(places)) if places else _open(must))
    return Found(checks=checks, tables=[Table(title="Test errors", columns=columns, rows=rows)], picture=picture)


def _label(rule: str, settings: Peak) -> str:
    return f"{rule} by validation" if rule == settings.grid else rule


def _of_peak(settings: Peak, name: str, places: Mapping[float, tuple[Cell, Cell, dict[str, Cell]]]) -> list[Check]:
    must = f"without a penalty a peak at {settings.at:g} {name}, within {100 * settings.around:g} %"
    if not places:
        return [_open(must)]
    top = max(places, key=lambda place: places[place][0].mean("test_error").mean)
    height = _mean(places[top][0], "test_error", 100)
    at_peak = f"{plus_minus(height, 1)} % at {top:g}"
    is_there = abs(top - settings.at) <= settings.around * settings.at and top not in (min(places), max(places))
    checks = [Check(must=must, ours=at_peak, value=height.mean, se=height.se, is_reached=is_there)]
    excess: dict[tuple[str, float], Mean] = {}
    rises: dict[tuple[str, float], Mean] = {}
    for rule in settings.chosen:
        for place, (_, yardstick, chosen) in places.items():
            if (gap := _difference(chosen[rule], yardstick, "test_error", 100)) is not None:
                excess[rule, place] = gap
        for left, right in pairwise(places):
            if (rise := _difference(places[right][2][rule], places[left][2][rule], "test_error", 100)) is not None:
                rises[rule, right] = rise
    limit = f"{settings.within:g} point{'' if settings.within == 1 else 's'}"
    for must, gaps in (
        (f"each rule at most {limit} above the grid's best on the test, everywhere", excess),
        (f"by no rule a rise by more than {limit} along {name}", rises),
    ):
        if not gaps:
            checks.append(_open(must))
            continue
        rule, place = max(gaps, key=lambda key: gaps[key].mean)
        worst = gaps[rule, place]
        checks.append(_check(must, worst, 2, f" points at most ({rule}, {place:g})", worst.mean <= settings.within))
    return checks


def of_onset(settings: Onset, arms: Arms, metric: str) -> Found:
    """The number of steps at which the test accuracy passes the level, times the weight decay."""
    del metric
    columns = ["arm", "decay", f"steps to {100 * settings.level:g} %", "steps x decay", "final test error, %", "seeds"]
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    products: dict[str, Mean | None] = {}
    highest: dict[str, float] = {}
    for name in dict.fromkeys(settings.named):
        if not arms[name]:
            continue
        cell = arms[name][0]
        decay, size = cell.runs[0].optimizer.weight_decay, _steps_of_epoch(cell)
        curves = [
            [(row["epoch"] * size, 1 - row["test_error"], 1 - row["train_error"]) for row in history]
            for history in cell.histories
        ]
        passed = [
            crossing([at for at, *_ in curve], [test for _, test, _ in curve], settings.level) for curve in curves
        ]
        whole = [steps for steps in passed if steps is not None]
        steps = mean(whole) if len(whole) == len(passed) else None
        products[name] = mean([decay * at for at in whole]) if steps else None
        highest[name] = max(test for curve in curves for _, test, _ in curve)
        label = f"{decay:g}" if decay else "0"
        rows.append(
            [
                name,
                label,
                figure(steps, 0) if steps else f"never in {curves[0][-1][0]:,}",
                figure(products[name], 0) if decay else "-",
                _percent(cell, "test_error", 1),
                str(len(cell.runs)),
            ]
        )
        first = curves[0]
        for i in thinned(len(first), _POINTS):
            at = first[i][0]
            others = [curve[i] for curve in curves]
            for part, index in (("test", 1), ("training", 2)):
                accuracy = 100 * sum(other[index] for other in others) / len(others)
                row: dict[str, Scalar] = {"arm": name, "step": at, "product": rounded(decay * at), "part": part}
                points.append({**row, "accuracy": rounded(accuracy, 5)})
    picture = Picture(
        kind="onset",
        shows="Test accuracy (solid) and training accuracy (dotted) over the steps, and the test accuracy over the "
        f"steps times the decay, mean over seeds; the dashed line is at {100 * settings.level:g} %.",
        rows=points,
        marks={"level": 100 * settings.level},
    )
    checks = _of_onset(settings, products, highest)
    return Found(checks=checks, tables=[Table(title="Arms", columns=columns, rows=rows)], picture=picture)


def _of_onset(settings: Onset, products: Mapping[str, Mean | None], highest: Mapping[str, float]) -> list[Check]:
    level = f"{100 * settings.level:g} %"
    must = f"steps to {level} times decay: each within {100 * settings.within:g} % of their mean"
    found = [products[name] for name in settings.arms if name in products]
    known = [product.mean for product in found if product is not None]
    if len(found) < len(settings.arms):
        checks = [_open(must)]
    elif len(known) < len(found):
        checks = [Check(must=must, ours=f"{len(found) - len(known)} of them never reach it", is_reached=False)]
    else:
        away = spread(known)
        ours = f"within {100 * away:.0f} % ({', '.join(f'{product:,.0f}' for product in known)})"
        checks = [Check(must=must, ours=ours, value=rounded(away), is_reached=away <= settings.within)]
    for name in settings.never or ():
        must = f"{name}: never {level}"
        if name not in highest:
            checks.append(_open(must))
        else:
            top = highest[name]
            ours = f"at most {100 * top:.1f} %"
            checks.append(Check(must=must, ours=ours, value=rounded(100 * top), is_reached=top < settings.level))
    return checks


def of_slope(settings: Slope, arms: Arms, metric: str) -> Found:
    """The slope of log(best decay) on log(learning rate), by rule; of the decay with the lowest validation loss."""
    del metric
    rules: dict[str, dict[float, Sequence[Cell]]] = {}
    planned: dict[str, int] = {}
    for name, cells in arms.items():
        rule, comma, _ = name.rpartition(", ")
        if comma:
            planned[rule] = planned.get(rule, 0) + 1
            decayed = sorted((cell for cell in cells if cell.strength), key=lambda cell: cell.strength or 0.0)
            if decayed:
                rules.setdefault(rule, {})[_value(decayed[0], settings.along)] = decayed
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    checks: list[Check] = []
    marks = {}
    for rule, by_rate in rules.items():
        slopes = _slopes(by_rate)
        if slopes is not None:
            marks[rule] = rounded(slopes.mean, 4)
        best = {rate: _best(cells) for rate, cells in by_rate.items()}
        inside = sum(is_inside for _, is_inside in best.values())
        chosen = [min(cells, key=lambda cell: cell.mean("valid_loss").mean) for cells in by_rate.values()]
        lowest_loss = min(chosen, key=lambda cell: cell.mean("valid_loss").mean)
        expected = settings.expected.get(rule)
        rows.append(
            [
                rule,
                figure(slopes, 2),
                "-" if expected is None else f"{expected:g}",
                f"{inside} of {len(best)}",
                _percent(lowest_loss, "test_error", 1),
                f"{max(cell.mean('train_error').mean for cell in chosen):.1%}",
            ]
        )
        for rate, cells in sorted(by_rate.items()):
            for cell in cells:
                loss = rounded(cell.mean("valid_loss").mean, 4)
                points.append({"rule": rule, "x": rate, "y": cell.strength, "loss": loss})
            points.append({"rule": rule, "x": rate, "y": rounded(math.exp(best[rate][0]), 4), "loss": None})
        if expected is not None:
            must = f"{rule}: slope {expected:g} ± {settings.within:g}"
            if slopes is None or len(by_rate) < planned[rule]:
                checks.append(_open(must))
            else:
                is_near = abs(slopes.mean - expected) <= settings.within and inside == len(best)
                checks.append(_check(must, slopes, 2, "", is_near))
    columns = ["rule", "slope", "expected", "best decay inside the grid", "lowest test error, %", "most training error"]
    checks += [_open(f"{rule}: slope {of:g}") for rule, of in settings.expected.items() if rule not in rules]
    shows = (
        "Validation loss by learning rate and decay. Points: the best decay at each rate, by a parabola through the "
    )
    shows += "three lowest losses. The line has the mean slope over seeds."
    name = _NAMES.get(settings.along) or settings.along
    picture = Picture(kind="slope", shows=shows, x=name, rows=points, marks=marks)
    return Found(checks=checks, tables=[Table(title="Slopes", columns=columns, rows=rows)], picture=picture)


def _slopes(by_rate: Mapping[float, Sequence[Cell]]) -> Mean | None:
    """The mean slope over the seeds that all cells have; None if there are none, or a single rate."""
    seeds = set.intersection(*(cell.seeds for cells in by_rate.values() for cell in cells))
    if not seeds or len(by_rate) < 2:
        return None
    rates = [math.log(rate) for rate in by_rate]
    return mean([slope(rates, [_best(cells, seed)[0] for cells in by_rate.values()]) for seed in sorted(seeds)])


def _best(cells: Sequence[Cell], seed: int | None = None) -> tuple[float, bool]:
    """The logarithm of the best decay, of a seed or of the mean over seeds, and whether it is inside the grid."""
    losses = [cell.mean("valid_loss").mean if seed is None else cell.by_seed("valid_loss")[seed] for cell in cells]
    return lowest([math.log(cell.strength or 1.0) for cell in cells], losses)


def of_tuned(settings: Tuned, arms: Arms, metric: str) -> Found:
    """The loss and error of strengths that were tuned in one run, less those of the grid's best by validation."""
    end = f", {settings.suffix}"
    pairs = {name: f"{name}{end}" for name in arms if f"{name}{end}" in arms}
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    gaps: dict[str, list[Mean | None]] = {"test_loss": [], "test_error": []}
    costs: list[float] = []
    for name, other in pairs.items():
        best, tuned = best_of(arms[name], metric), best_of(arms[other], metric)
        if best is None or tuned is None:
            continue
        cost = tuned.seconds / (sum(cell.seconds for cell in arms[name]) / len(arms[name]))
        costs.append(cost)
        for key, found in gaps.items():
            found.append(_difference(tuned, best, key))
        rows.append(
            [
                name,
                _strength(best),
                _strength(tuned),
                _percent(best, "test_error", 1),
                _percent(tuned, "test_error", 1),
                figure(_difference(tuned, best, "test_error", 100), 2),
                figure(_difference(tuned, best, "test_loss"), 4),
                f"{cost:.2f}",
            ]
        )
        for kind, cell in (("best of the grid", best), ("tuned", tuned)):
            error = _mean(cell, "test_error", 100)
            loss = _mean(cell, "test_loss")
            row: dict[str, Scalar] = {"setting": name, "kind": kind, "error": rounded(error.mean)}
            row |= {
                "error_se": rounded(error.se or 0.0),
                "loss": rounded(loss.mean),
                "loss_se": rounded(loss.se or 0.0),
            }
            points.append(row)
    is_whole = len(rows) == len(pairs) > 0
    errors = "one standard error" if settings.errors == 1 else f"{settings.errors:g} standard errors"
    checks = [
        _no_worse(f"{noun}: at most {errors} above the grid's best, everywhere", gaps[key], settings.errors, is_whole)
        for key, noun in (("test_loss", "loss"), ("test_error", "error"))
    ]
    must = f"time: at most {settings.cost:g} runs at one strength"
    worst = max(costs, default=0.0)
    ours = f"at most {worst:.2f} runs"
    checks.append(
        Check(must=must, ours=ours, value=rounded(worst), is_reached=worst <= settings.cost)
        if is_whole
        else _open(must)
    )
    columns = [
        *("setting", "grid's best", "tuned", "error of the grid's best, %", "error tuned, %"),
        *("difference, points", "difference of the loss", "time, runs"),
    ]
    shows = "Test errors and losses at the grid's best strength by validation and at the tuned one."
    picture = Picture(kind="tuned", shows=shows, rows=points)
    return Found(checks=checks, tables=[Table(title="Settings", columns=columns, rows=rows)], picture=picture)


def _no_worse(must: str, gaps: Sequence[Mean | None], errors: float, is_whole: bool) -> Check:
    if not is_whole or any(gap is None or gap.se is None for gap in gaps):
        return _open(must)
    known = [gap for gap in gaps if gap is not None]
    within = sum(gap.mean <= errors * (gap.se or 0.0) for gap in known)
    return Check(must=must, ours=f"{within} of {len(known)} settings", is_reached=within == len(known))


_BY_NAME: dict[str, Callable[[Any, Arms, str], Found]] = {
    "finals": of_finals,
    "peak": of_peak,
    "onset": of_onset,
    "slope": of_slope,
    "tuned": of_tuned,
}


def _open(must: str) -> Check:
    return Check(must=must, ours="not finished")


def _check(must: str, value: Mean, digits: int, unit: str, is_reached: bool) -> Check:
    ours = f"{plus_minus(value, digits)}{unit}"
    se = None if value.se is None else rounded(value.se)
    return Check(must=must, ours=ours, value=rounded(value.mean), se=se, is_reached=is_reached)


def _mean(cell: Cell, key: str, factor: float = 1.0) -> Mean:
    found = cell.mean(key)
    return Mean(factor * found.mean, None if found.se is None else factor * found.se)


def _percent(cell: Cell, key: str, digits: int) -> Figure | str:
    return figure(cell.mean(key), digits, 100)


def _difference(ours: Cell, theirs: Cell, key: str, factor: float = 1.0) -> Mean | None:
    """Ours less theirs over the seeds that both have, with the standard error of the paired differences."""
    found = paired(ours.by_seed(key), theirs.by_seed(key))
    if found is None:
        return None
    return Mean(factor * found.mean, None if found.of_seeds is None else factor * found.of_seeds)


def _strength(cell: Cell) -> str:
    return "" if cell.strength is None else f"{cell.strength:.3g}"


def _value(cell: Cell, key: str) -> float:
    """The number at a key of the cell's settings, such as data.train_size."""
    try:
        return float(reduce(getattr, key.split("."), cell.runs[0]))  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"published: along must be the key of a number, such as data.train_size, got {key!r}") from None


def _steps_of_epoch(cell: Cell) -> int:
    train = cell.runs[0].train
    return math.ceil(math.ceil(cell.examples("train") / train.batch_size) / train.accumulate)
