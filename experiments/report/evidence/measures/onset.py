"""When the test accuracy passes a level, beside the weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ....config.published import Onset
from ...cells import Cell
from ...numbers import rounded
from ...statistics import Mean, mean
from ..formulas import crossing, spread, thinned
from ..found import Check, Figure, Found, Picture, Scalar, Table, figure
from .common import Arms, ending, missing_check, percent

_POINTS = 40  # of a run's curve in a record


def of_onset(settings: Onset, arms: Arms, metric: str) -> Found:
    """The number of steps at which the test accuracy passes the level, times the weight decay."""
    del metric
    columns = ["arm", "decay", f"steps to {100 * settings.level:g} %", "steps x decay", "final test error, %", "seeds"]
    rows: list[list[Figure | str]] = []
    points: list[dict[str, Scalar]] = []
    products: dict[str, Mean | None] = {}
    highest: dict[str, float] = {}
    for name in dict.fromkeys(settings.named):
        if end := ending(arms[name]):
            rows.append([name, "", end, "-", "-", ""])
        cell = next((cell for cell in arms[name] if cell.is_done), None)
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
        label = f"{decay:g}" if decay else "0"
        rows.append(
            [
                name,
                label,
                figure(steps, 0) if steps else f"never in {curves[0][-1][0]:,}",
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
        f"steps times the decay, mean over seeds; the dashed line is at {100 * settings.level:g} %.",
        rows=points,
        marks={"level": 100 * settings.level},
    )
    checks = _of_onset(settings, arms, products, highest)
    return Found(checks=checks, tables=[Table(title="Arms", columns=columns, rows=rows)], picture=picture)


def _of_onset(
    settings: Onset, arms: Arms, products: Mapping[str, Mean | None], highest: Mapping[str, float]
) -> list[Check]:
    level = f"{100 * settings.level:g} %"
    must = f"steps to {level} times decay: each within {100 * settings.within:g} % of their mean"
    found = [products[name] for name in settings.arms if name in products]
    known = [product.mean for product in found if product is not None]
    if len(found) < len(settings.arms):
        checks = [missing_check(must, arms, settings.arms)]
    elif len(known) < len(found):
        checks = [Check(must=must, ours=f"{len(found) - len(known)} of them never reach it", is_reached=False)]
    else:
        away = spread(known)
        ours = f"within {100 * away:.0f} % ({', '.join(f'{product:,.0f}' for product in known)})"
        checks = [Check(must=must, ours=ours, value=rounded(away), is_reached=away <= settings.within)]
    for name in settings.never or ():
        must = f"{name}: never {level}"
        if name not in highest:
            checks.append(missing_check(must, arms, [name]))
        else:
            top = highest[name]
            ours = f"at most {100 * top:.1f} %"
            checks.append(Check(must=must, ours=ours, value=rounded(100 * top), is_reached=top < settings.level))
    return checks


def _steps_of_epoch(cell: Cell) -> int:
    train = cell.runs[0].train
    return math.ceil(math.ceil(cell.examples("train") / train.batch_size) / train.accumulate)
