"""When the test accuracy passes a level, beside the weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ....config import Run
from ....config.published import Onset
from ....errors import UserError
from ...cells import Cell, best_of
from ...numbers import rounded
from ...statistics import Mean, mean
from ..formulas import crossing, exceeds, spread, thinned
from ..found import Check, Figure, Found, Picture, Scalar, Table, figure
from .common import Arms, ending, exact, missing_check, percent

_POINTS = 40  # of a run's curve in a record


def check_onset(settings: Onset, runs: Sequence[Run]) -> None:
    """Refuses arms whose curves would not be those of the same epochs, or that have no decay to multiply by.

    Raises:
        UserError: an arm stops early, or has no weight decay and needs one.
    """
    for run in runs:
        if run.arm in settings.named and run.train.early_stopping is not None:
            raise UserError(f"published.onset: {run.arm!r} must train all its epochs: remove train.early_stopping")
        if run.arm in settings.arms and not run.optimizer.weight_decay:
            raise UserError(
                f"published.onset.arms: {run.arm!r} must have an optimizer.weight_decay above 0, got 0: set it, or "
                "move the arm to never or shown"
            )


def of_onset(settings: Onset, arms: Arms, metric: str) -> Found:
    """The number of steps at which the test accuracy passes the level, times the weight decay."""
    level = f"{exact(100 * settings.level)} %"
    columns = ["arm", "decay", f"steps to {level}", "steps x decay", "final test error, %", "seeds"]
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    products: dict[str, Mean | None] = {}
    highest: dict[str, float] = {}
    for name in dict.fromkeys(settings.named):
        if end := ending(arms[name]):
            rows.append([name, "", end, "-", "-", ""])
        cell = best_of(arms[name], metric)
        if cell is None:
            continue
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
        rows.append(
            [
                name,
                exact(decay),
                figure(steps, 0) if steps else f"{_lacking(passed)}never in {curves[0][-1][0]:,}",
                figure(products[name], 0) if decay else "-",
                percent(cell, "test_error", 1),
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
        f"steps times the decay, mean over seeds; the dashed line is at {level}.",
        rows=points,
        marks={"level": 100 * settings.level},
    )
    checks = _of_onset(settings, arms, products, highest)
    return Found(checks=checks, tables=[Table(title="Arms", columns=columns, rows=rows)], picture=picture)


def _lacking(passed: Sequence[float | None]) -> str:
    """How many of the seeds never reach the level, if others do."""
    never = sum(steps is None for steps in passed)
    return f"{never} of {len(passed)} " if never < len(passed) else ""


def _of_onset(
    settings: Onset, arms: Arms, products: Mapping[str, Mean | None], highest: Mapping[str, float]
) -> list[Check]:
    level = f"{exact(100 * settings.level)} %"
    must = f"steps to {level} times decay: each within {exact(100 * settings.within)} % of their mean"
    found = [products[name] for name in settings.arms if name in products]
    known = [product.mean for product in found if product is not None]
    if len(found) < len(settings.arms):
        checks = [missing_check(must, arms, settings.arms)]
    elif len(known) < len(found):
        checks = [Check(must=must, ours=f"{len(found) - len(known)} of them never reach it", is_reached=False)]
    else:
        away = spread(known)
        ours = f"within {100 * away:.0f} % ({', '.join(f'{product:,.0f}' for product in known)})"
        checks = [Check(must=must, ours=ours, value=rounded(away), is_reached=not exceeds(away, settings.within))]
    for name in settings.never or ():
        must = f"{name}: never {level}"
        if name not in highest:
            checks.append(missing_check(must, arms, [name]))
        else:
            top = highest[name]
            ours = f"at most {100 * top:.1f} %"
            is_below = exceeds(settings.level, top)
            checks.append(Check(must=must, ours=ours, value=rounded(100 * top), is_reached=is_below))
    return checks


def _steps_of_epoch(cell: Cell) -> int:
    train = cell.runs[0].train
    return math.ceil(math.ceil(cell.examples("train") / train.batch_size) / train.accumulate)
