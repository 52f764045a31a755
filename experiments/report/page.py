"""A study's report: a table for the terminal, and one self-contained page with figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.config.names import short, text_of
from experiments.report import figures
from experiments.report.claims import Table, claims, compared, single_runs
from experiments.report.numbers import percent, plus_minus
from experiments.report.summary import Cell, Summary, best_of
from experiments.training.files import write


def table(summary: Summary) -> str:
    """The arms at their chosen strengths, what they differ by, and the claims, as text."""
    found = aligned([columns(summary), *(row(cell, summary) for cell in summary.chosen)])
    parts = [[*found, summary.note]]
    parts += [[*aligned([beside.heads, *beside.rows]), beside.text] for beside in tables(summary)]
    parts.append([f"{claim.title} {claim.evidence}" for claim in claims(summary)])
    return "\n\n".join("\n".join(filter(None, lines)) for lines in parts if lines)


def tables(summary: Summary) -> list[Table]:
    """What the arms differ by: over several seeds, and in single runs."""
    return [found for found in (compared(summary), single_runs(summary)) if found is not None]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: its heads, a rule, its rows; the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def columns(summary: Summary) -> list[str]:
    """The heads of the table; of a search with its keys and its metric."""
    error = "RMSE" if summary.is_regression else "error %"
    figures = [f"train {error}", f"test {error}", "gap", "test loss", "zeros %", "norm"]
    figures += [f"test {name}" for name in summary.metrics]
    if summary.sweep is None:
        return ["arm", "strength", *figures]
    metric = f"valid {error}" if summary.metric == "valid_error" else "valid loss"
    return ["arm", *short(_keys(summary)), metric, *figures, *(["cost"] if summary.plain else [])]


def row(cell: Cell, summary: Summary) -> list[str]:
    """The arm's cells under :func:`columns`."""
    name = [f"{cell.arm}{cell.remark}"]
    if summary.sweep is None:
        name.append("" if cell.strength is None else f"{cell.strength:g}")
    else:
        name += [_value(_at(cell, key)) for key in _keys(summary)]
    if not cell.is_done:
        return [*name, cell.status, *[""] * (len(columns(summary)) - len(name) - 1)]
    metric = [] if summary.sweep is None else [cell.mean(summary.metric)]
    figure = [cell.unit.mean(one) if summary.metric == "valid_error" else plus_minus(one, 3) for one in metric]
    errors = [cell.unit.mean(one) for one in (cell.mean("train_error"), cell.mean("test_error"), cell.gap)]
    rest = [plus_minus(cell.mean("test_loss"), 3), percent(cell.mean("zeros")), f"{cell.norm.mean:.2f}"]
    rest += ["-" if (found := cell.metric(name)) is None else plus_minus(found, 3) for name in summary.metrics]
    cost = summary.cost(cell)
    return [*name, *figure, *errors, *rest, *([] if cost is None else [f"{cost:.1f}x"])]


def points(summary: Summary) -> list[list[str]]:
    """Every point of a search: first the finished ones, best first, then the others."""
    tried = [cell for cell in summary.cells if cell.point] if summary.sweep else []
    order = {"done": 0, "pruned": 1, "diverged": 2, "failed": 3}
    tried.sort(key=lambda cell: (order[cell.status], cell.mean(summary.metric).mean if cell.is_done else 0.0))
    return [row(cell, summary) for cell in tried]


def _keys(summary: Summary) -> list[str]:
    """The varied keys of the arms."""
    return list(dict.fromkeys(key for cell in summary.cells for key in cell.point))


def _at(cell: Cell, key: str) -> Any:
    """The value of a searched key, or the tuned strength."""
    is_tuned = cell.runs[0].auto_strength is not None and key.endswith("strength")
    return cell.point.get(key, cell.strength if is_tuned and cell.strength is not None else "")


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)


def write_page(summary: Summary, folder: Path) -> Path:
    """Renders the page into the study's folder; returns its path."""
    environment = Environment(
        loader=PackageLoader("experiments.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        summary=summary,
        columns=columns(summary),
        rows=[(cell, row(cell, summary)) for cell in summary.chosen],
        best=best_of([cell for cell in summary.chosen if not cell.remark], summary.metric),
        points=points(summary),
        lowest=f"lowest {summary.metric_in_words}",
        claims=claims(summary),
        tables=tables(summary),
        pictures=figures.all_of(summary),
    )
    path = folder / "report.html"
    write(path, page)
    return path
