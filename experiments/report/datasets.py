"""What the pictures show, as rows: a page holds them as CSV, to draw from and to download."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..config import Run
from ..config.names import text_of
from ..training.outcomes import Predicted, calibration_error, predictions
from .cells import Cell
from .numbers import rounded
from .summary import Summary

Rows = list[dict[str, Any]]

MOST_ARMS = 12  # that are shown one by one
MOST_PICTURED = 100  # arms in a picture
MOST_SEEDS = 30  # of an arm, above which what is large is told of all of them together
MOST_EPOCHS = 400  # of each run in the page
MOST_PREDICTIONS = 300  # of each run of a regression
MOST_ROWS = 50_000  # in a set with several rows for each run; each run has a few of them in any case
_FIGURES = ("train_error", "valid_error", "test_error", "train_loss", "valid_loss", "test_loss")


def labels_of(cells: Sequence[Cell]) -> dict[int, str]:
    """The name of each cell in pictures, by its identity: its label, and a number where two are alike."""
    names: dict[int, str] = {}
    for cell in cells:
        before = sum(name == cell.label for name in names.values())
        names[id(cell)] = f"{cell.label} #{before + 1}" if before else cell.label
    return names


def runs(summary: Summary, chosen: Mapping[str, Cell]) -> Rows:
    """The figures of every run, also of those that the pictures do not show: these have no label."""
    keys = list(dict.fromkeys(key for cell in summary.cells for key in cell.point))
    names = {id(cell.runs): label for label, cell in chosen.items()}
    rows: Rows = []
    for cell in summary.cells:
        for run, result in zip(cell.runs, cell.results, strict=True):
            row: dict[str, Any] = {"label": names.get(id(cell.runs), ""), "arm": cell.arm}
            row |= {key: "" if key not in run.point else text_of(run.point[key]) for key in keys}
            row |= {"seed": run.seed, "status": result["status"], **{key: result.get(key, "") for key in _FIGURES}}
            row["zeros"] = result.get("zeros", "")
            row["norm"] = math.hypot(*result["norms"].values()) if "norms" in result else ""
            row |= {f"test {name}": _metric(result, name) for name in summary.metrics}
            row["ece"] = calibration_error(bins) if (bins := bins_of(result)) else ""
            rows.append({**row, "stack": result.get("stack") or 1, "seconds": rounded(result["seconds"], 4)})
    return rows


def _metric(result: Mapping[str, Any], name: str) -> Any:
    found = result.get("metrics", {}).get("test", {}).get(name)
    return "" if found is None else found


def history(cells: Mapping[str, Cell]) -> Rows:
    """The figures after each epoch of the chosen arms; of long runs at evenly spaced ones."""
    rows, most = [], _most_of_each(cells, MOST_EPOCHS)
    for label, cell in cells.items():
        for run, found in zip(cell.runs, cell.histories, strict=True):
            kept = thinned(found, most)
            rows += [
                {"label": label, "seed": run.seed, **{key: row[key] for key in ("epoch", *_FIGURES)}} for row in kept
            ]
    return rows


def _most_of_each(cells: Mapping[str, Cell], most: int) -> int:
    """How many rows of a run a set may have at most."""
    return max(min(most, MOST_ROWS // max(sum(len(cell.runs) for cell in cells.values()), 1)), 10)


def _together(rows: Rows, sums: Sequence[str], means: Sequence[str] = ()) -> Rows:
    """The rows of an arm; of very many seeds their sums and means, without which a page would be large and slow."""
    if len({row["seed"] for row in rows}) <= MOST_SEEDS:
        return rows
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in row if key not in (*sums, *means, "seed")), []).append(row)
    figures = [
        {key: sum(row[key] for row in group) for key in sums}
        | {key: rounded(fmean(row[key] for row in group)) for key in means}
        for group in groups.values()
    ]
    return [{**group[0], "seed": "", **own} for group, own in zip(groups.values(), figures, strict=True)]


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, evenly spaced, with the first and the last.

    Example:
        >>> thinned(range(11), 3)
        [0, 5, 10]
    """
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def weights(cells: Mapping[str, Cell]) -> Rows:
    """The share of each run's weights in each bin of their sizes' logarithms."""
    rows: Rows = []
    for label, cell in cells.items():
        own: Rows = []
        for run, result in zip(cell.runs, cell.whole, strict=True):
            found = result["histogram"]
            for low, high, share in zip(found["edges"], found["edges"][1:], found["shares"], strict=False):
                size = rounded((low + high) / 2, 4)
                own.append({"label": label, "seed": run.seed, "size": size, "share": rounded(share)})
        rows += _together(own, sums=(), means=("share",))
    return rows


def layers(cells: Mapping[str, Cell]) -> Rows:
    """The norm and the share of zeros of each layer of each run."""
    return [
        {"label": label, "seed": run.seed, "layer": layer, "norm": norm, "zeros": result["sparsity"].get(layer, 0.0)}
        for label, cell in cells.items()
        for run, result in zip(cell.runs, cell.results, strict=True)
        for layer, norm in result["norms"].items()
    ]


def reliability(cells: Mapping[str, Cell]) -> Rows:
    """How many of each run's test examples are in each bin of confidences, how many are right, and how sure it is."""
    rows: Rows = []
    for label, cell in cells.items():
        own = [row for run, result in zip(cell.runs, cell.results, strict=True) for row in _bins(label, run, result)]
        rows += _together(own, sums=("count", "correct", "confidence"), means=("ece",))
    return rows


def _bins(label: str, run: Run, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each bin of a run's confidences."""
    if (bins := bins_of(result)) is None:
        return
    error, width = calibration_error(bins), 1 / len(bins["count"])
    for place, (count, right, sure) in enumerate(zip(*bins.values(), strict=True)):
        row = {"label": label, "seed": run.seed, "low": rounded(place * width), "high": rounded((place + 1) * width)}
        yield {**row, "count": count, "correct": right, "confidence": rounded(sure), "ece": error}


def confusion(cells: Mapping[str, Cell], classes: Sequence[str]) -> Rows:
    """How often each run takes a class for another, and how often it is right."""
    rows: Rows = []
    for label, cell in cells.items():
        own: Rows = []
        for seed, found in predicted(cell).items():
            counts: dict[tuple[int, int], int] = {}
            for pair in zip(found.true.tolist(), found.predicted.tolist(), strict=True):
                counts[pair] = counts.get(pair, 0) + 1
            for (true, other), times in sorted(counts.items()):
                row = {"label": label, "seed": seed, "true": classes[true], "predicted": classes[other]}
                own.append({**row, "times": times})
        rows += _together(own, sums=("times",))
    return rows


def numbers(cells: Mapping[str, Cell]) -> Rows:
    """What each run of a regression predicts, for some test examples."""
    rows, most = [], _most_of_each(cells, MOST_PREDICTIONS)
    for label, cell in cells.items():
        for seed, found in predicted(cell).items():
            for true, value in thinned(list(zip(found.true, found.predicted, strict=True)), most):
                row = {"label": label, "seed": seed, "true": rounded(float(true)), "predicted": rounded(float(value))}
                rows.append(row)
    return rows


def predicted(cell: Cell) -> dict[int, Predicted]:
    """What each run predicts for the test examples; none of the records of earlier versions."""
    found = {run.seed: row for run, row in zip(cell.runs, map(_tested, cell.whole), strict=True) if row}
    return {seed: made for seed, row in found.items() if (made := predictions(row)) is not None}


def bins_of(result: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """The bins of confidences in a result, if it has them."""
    return _tested(result).get("bins")


def _tested(result: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (result.get("outcomes") or {}).get("test") or {}
    return found


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV with their heads; numbers to the last bit."""
    rows = list(rows)
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file.getvalue()


def numeric(rows: Rows) -> list[str]:
    """The columns that hold numbers."""
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, (int, float))}
    return [key for key in (rows[0] if rows else ()) if key in numbers]
