"""What a study of tasks one after another shows: the accuracy on each task, and how much of it is forgotten.

Source of the figures: A. Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding Forgetting and
Intransigence", 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..config import Run
from ..training.record import Row
from .cells import Cell
from .claims import Table
from .datasets import MOST_EPOCHS, Rows, thinned
from .figures import EACH, OF_EACH, averaged, facets, grid_of, names_of, said
from .numbers import percent
from .statistics import mean
from .summary import Summary
from .vega import LIVE, SOFT, Picture, Spec

_TEXT = (
    "Test accuracy in percent at the end; the average is over tasks. Forgetting is the highest accuracy on a task "
    "after any task but the last, less that at the end, in points; it is averaged over all tasks but the last."
)
_CURVES = "Test accuracy on each task after each evaluation, {over}. Above whole numbers a task ends."


def accuracies(run: Run, history: Sequence[Row]) -> list[list[float]]:
    """The test accuracy on each task after each task: a row for each one that was trained on; of all at once one."""
    ends = range(run.epochs_of_turn, run.train.epochs + 1, run.epochs_of_turn)
    return [[1 - error for error in row["tasks"]["test"]] for row in history if row["epoch"] in ends]


def forgetting(after: Sequence[Sequence[float]]) -> float:
    """How much lower accuracies end than they were after an earlier task, averaged over all tasks but the last.

    Args:
        after: a row for each task, with the accuracies on all tasks after it.

    Example:
        >>> forgetting([[0.9, 0.5], [0.7, 0.8]])
        0.2
    """
    *before, last = after
    return round(fmean(max(row[i] for row in before) - last[i] for i in range(len(last) - 1)), 12)


def by_task(summary: Summary) -> Table | None:
    """The accuracies at the end and the forgetting of each chosen arm; None if no arm has tasks."""
    rows, count = [], 0
    for cell in _with_tasks(summary.chosen):
        turns = cell.runs[0].data.turns
        each = [accuracies(run, found) for run, found in zip(cell.runs, cell.histories, strict=True)]
        ends = [[1 - error for error in result["tasks"]["test"]] for result in cell.results]
        is_known = turns > 1 and all(len(after) == turns for after in each)  # late averages do not tell
        lost = percent(mean([forgetting(after) for after in each])) if is_known else "-"
        count = max(count, len(ends[0]))
        figures = [percent(mean(list(own))) for own in zip(*ends, strict=True)]
        rows.append([cell.label, percent(mean([fmean(own) for own in ends])), lost, *figures])
    if not rows:
        return None
    rows = [row + [""] * (3 + count - len(row)) for row in rows]
    return Table(
        "Task by task", ["arm", "average", "forgetting", *(f"task {i + 1}" for i in range(count))], rows, _TEXT
    )


def rows_of(cells: Mapping[str, Cell]) -> Rows:
    """The test accuracy on each task after each evaluation; the place counts the tasks so far."""
    rows: Rows = []
    for label, cell in cells.items():
        for run, found in zip(cell.runs, cell.histories, strict=True):
            for row in thinned([row for row in found if "tasks" in row], MOST_EPOCHS):
                errors = row["tasks"]["test"]
                own = {"label": label, "seed": run.seed, "epoch": row["epoch"]}
                own["place"] = round(row["epoch"] / run.train.epochs * len(errors), 4)
                rows += [{**own, "task": f"task {i + 1}", "accuracy": 1 - error} for i, error in enumerate(errors)]
    return rows


def pictures(cells: Mapping[str, Cell], summary: Summary) -> list[Picture]:
    """The accuracy on each task over the training, a small picture for each arm."""
    found = {cell.label: cell for cell in _with_tasks(list(cells.values()))}
    labels = [label for label, cell in cells.items() if any(cell is one for one in found.values())]
    if not labels:
        return []

    def curves(width: int) -> Spec:
        return _curves(labels, width)

    return [
        Picture(
            "What is kept of each task", said(_CURVES, summary), curves, f"Accuracy on each task of {names_of(cells)}."
        )
    ]


def _with_tasks(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.is_done and cell.runs[0].data.tasks is not None and cell.records]


def _curves(labels: Sequence[str], width: int) -> Spec:
    columns, each = grid_of(width, len(labels))
    x = {
        "field": "place",
        "type": "quantitative",
        "title": "tasks trained on",
        "scale": {"nice": False, "domainMin": 0},
        "axis": {"format": "d", "tickMinStep": 1, "grid": True},
    }
    y = {
        "type": "quantitative",
        "scale": {"zero": False, "domainMax": 1},
        "axis": {"format": "~%", "tickCount": 4},
        "title": None,
    }
    color = {
        "field": "task",
        "type": "nominal",
        "sort": None,
        "title": None,
        "scale": {"scheme": "tableau10"},
        "legend": {"columns": 5 if width > 600 else 3, "symbolType": "stroke", "symbolOpacity": 1},
    }
    tips = [
        {"field": "label", "title": "arm"},
        {"field": "task", "title": "task"},
        {"field": "epoch", "title": "epoch"},
        {"field": "mean", "title": "accuracy", "format": ".3~%"},
        {"field": "se", "title": "standard error", "format": ".3~%"},
        {"field": "seeds", "title": "seeds"},
    ]
    line = {"type": "line", "strokeWidth": 1.8, "clip": True}
    means: Spec = {
        "transform": averaged("accuracy", ["label", "task", "epoch", "place"]),
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.2, "clip": True},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": color},
            },
            {"mark": line, "encoding": {"y": {**y, "field": "mean"}, "color": color}},
            {
                "name": f"{LIVE} points of tasks",
                "mark": {"type": "point", "opacity": 0, "size": 90, "clip": True},
                "encoding": {"y": {**y, "field": "mean"}, "tooltip": tips},
            },
        ],
    }
    single = {
        "name": f"{LIVE} seeds of tasks",
        "mark": {**line, "strokeWidth": 0.8, "color": SOFT},
        "encoding": {
            "y": {**y, "field": "accuracy"},
            "color": color,
            "detail": {"field": "seed"},
            "opacity": {"value": OF_EACH},
        },
    }
    height = 150 if width > 600 else 110
    small = {"width": each, "height": height, "encoding": {"x": x}, "layer": [means, single]}
    return {"data": {"name": "tasks"}, "params": [EACH], **facets(labels, columns, small)}
