"""A study's report: a table for the terminal, and one self-contained page with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..config.names import short, text_of
from ..training.data import Examples
from ..training.files import write
from . import continual, datasets, figures, images, paths, predicting, settings, vega, weights
from .cells import Cell, best_of
from .claims import Table, claims, compared, single_runs
from .datasets import Rows
from .numbers import PERCENT, percent, plus_minus
from .summary import Summary
from .vega import Picture


def table(summary: Summary) -> str:
    """The arms at their chosen strengths, what they differ by, and the claims, as text."""
    found = aligned([columns(summary), *(row(cell, summary) for cell in summary.chosen)])
    parts = [[*found, summary.note]]
    parts += [[*aligned([beside.heads, *beside.rows]), beside.text] for beside in tables(summary)]
    parts.append([f"{claim.title} {claim.evidence}" for claim in claims(summary)])
    return "\n\n".join("\n".join(filter(None, lines)) for lines in parts if lines)


def tables(summary: Summary) -> list[Table]:
    """What the arms differ by, over several seeds and in single runs; and the tasks of a continual study."""
    found = (continual.by_task(summary), compared(summary), single_runs(summary))
    return [one for one in found if one is not None]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: its heads, a rule, its rows; the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def columns(summary: Summary) -> list[str]:
    """The heads of the table; of a search with its keys and its metric."""
    error = _error_head(summary)
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


def write_page(summary: Summary, folder: Path, trusted: bool = False) -> Path:
    """Renders the page into the study's folder; returns its path.

    Args:
        summary: of the study.
        folder: the study's.
        trusted: whether a class that the records name may be run to load the data, as where the study was just run.
    """
    vega.begin_bundle()
    chosen = {label: cell for cell, label in _labelled(summary.chosen)}
    finished = {label: cell for label, cell in chosen.items() if cell.is_done}
    done = dict(islice(finished.items(), datasets.MOST_PICTURED))
    examples, missing = images.examples_of(done, trusted)
    classes = _classes(done, examples)
    data = _data(summary, chosen, done, classes)
    of_weights = weights.of_weights(done, summary)
    best = best_of([cell for cell in summary.chosen if not cell.remark], summary.metric)
    context = {
        "title": summary.name,
        "summary": summary,
        "columns": columns(summary),
        "keys": _keys_of_columns(summary),
        "rows": [(label, row(cell, summary)) for label, cell in chosen.items()],
        "best": _Best(next((label for label, cell in chosen.items() if cell is best), ""), summary.metric_in_words),
        "points": [("", cells) for cells in points(summary)],
        "claims": claims(summary),
        "tables": [Named(one, list(chosen)) for one in tables(summary)],
        "late": [picture.title for picture in of_weights],
        "confused": predicting.most_confused(data["confusion"]),
        "images": images.of_study(done, summary, examples),
        "missing": [line for line in (missing, _old(done), _many(finished), _together(done)) if line],
        "settings": settings.settings_of(chosen),
        "base": f"the arm {summary.plain.label}" if summary.plain else "what most arms have",
        "environment": settings.environment_of(chosen),
    }
    pictures = [
        *continual.pictures(done, summary),
        *figures.of_errors(done, summary),
        *predicting.pictures(done, classes, data, summary.noun),
        *of_weights,
    ]
    path = folder / "report.html"
    write(path, rendered("report.html", context, pictures, data))
    return path


def rendered(template: str, context: Mapping[str, Any], pictures: Sequence[Picture], data: Mapping[str, Rows]) -> str:
    """A page with its pictures and their data."""
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    with vega.Pen() as pen:
        drawn = [vega.drawn(picture, data, number, pen) for number, picture in enumerate(pictures)]
    files = Path(__file__).parent / "templates"
    style, script = (Markup((files / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    sets = {name: _Set(datasets.as_csv(rows), datasets.numeric(rows)) for name, rows in data.items() if rows}
    bundle = vega.bundle() if drawn else ""
    return environment.get_template(template).render(
        **context, pictures=drawn, data=sets, style=style, script=script, bundle=bundle
    )


class _Set(NamedTuple):
    csv: str
    numbers: Sequence[str]


class _Best(NamedTuple):
    label: str
    metric: str

    @property
    def text(self) -> str:
        return f"lowest {self.metric}"


class Named:
    """A table whose rows are told by the arm in their first cell."""

    def __init__(self, table: Table, labels: Sequence[str] = ()) -> None:
        self.title, self.text, self.heads = table.title, table.text, table.heads
        self.named = [(cells[0] if cells[0] in labels else "", cells) for cells in table.rows]


def _labelled(cells: Sequence[Cell]) -> list[tuple[Cell, str]]:
    labels = datasets.labels_of(cells)
    return [(cell, labels[id(cell)]) for cell in cells]


def _classes(cells: Mapping[str, Cell], examples: Examples | None) -> list[str]:
    """The names of the classes: those of the data, or else their numbers."""
    if examples is not None:
        return list(examples.labels)
    found = [result["outcomes"]["test"] for cell in cells.values() for result in cell.results if result.get("outcomes")]
    return [str(number) for number in range(max((row.get("classes", 0) for row in found), default=0))]


def _data(
    summary: Summary, chosen: Mapping[str, Cell], cells: Mapping[str, Cell], classes: Sequence[str]
) -> dict[str, Rows]:
    is_regression = summary.is_regression
    return {
        "runs": datasets.runs(summary, chosen),
        "history": datasets.history(cells),
        "tasks": continual.rows_of(cells),
        **paths.rows_of(summary),
        "reliability": [] if is_regression else datasets.reliability(cells),
        "confusion": [] if is_regression else datasets.confusion(cells, classes),
        "numbers": datasets.numbers(cells) if is_regression else [],
        "weights": datasets.weights(cells),
        "layers": datasets.layers(cells),
    }


def _old(cells: Mapping[str, Cell]) -> str:
    """A line for records that lack what the page would show of predictions."""
    if not cells or all(datasets.predicted(cell) for cell in cells.values()):
        return ""
    return "Some records, as those of earlier versions, do not hold what their models predict: that is left out."


def _many(cells: Mapping[str, Cell]) -> str:
    """A line for more arms than are shown one by one."""
    if len(cells) <= datasets.MOST_ARMS:
        return ""
    some = f"Calibration, confusion and images are shown of the first {datasets.MOST_ARMS} of {len(cells)} arms"
    return f"{some}{f', other pictures of the first {most}' if len(cells) > (most := datasets.MOST_PICTURED) else ''}."


def _together(cells: Mapping[str, Cell]) -> str:
    """A line for pictures that do not follow the seeds."""
    if all(len(cell.seeds) <= datasets.MOST_SEEDS for cell in cells.values()):
        return ""
    kinds = "Calibration, confusion and the sizes of weights"
    return f"{kinds} are of all seeds where an arm has more than {datasets.MOST_SEEDS}, also where some are off."


def _keys_of_columns(summary: Summary) -> list[dict[str, Any] | None]:
    """How a page computes a column of the table from the runs, if it does."""
    unit = next((cell.unit for cell in summary.chosen if cell.is_done), PERCENT)
    error = {"factor": unit.factor, "digits": unit.digits, "plain": False}
    known: dict[str, dict[str, Any]] = {
        f"train {_error_head(summary)}": {"key": "train_error", **error},
        f"test {_error_head(summary)}": {"key": "test_error", **error},
        f"valid {_error_head(summary)}": {"key": "valid_error", **error},
        "gap": {"key": "gap", **error},
        "valid loss": {"key": "valid_loss", "factor": 1, "digits": 3, "plain": False},
        "test loss": {"key": "test_loss", "factor": 1, "digits": 3, "plain": False},
        "zeros %": {"key": "zeros", "factor": 100, "digits": 1, "plain": False},
        "norm": {"key": "norm", "factor": 1, "digits": 2, "plain": True},
    }
    known |= {
        f"test {name}": {"key": f"test {name}", "factor": 1, "digits": 3, "plain": False} for name in summary.metrics
    }
    names = 2 if summary.sweep is None else 1 + len(_keys(summary))
    return [known.get(head) if at >= names else None for at, head in enumerate(columns(summary))]


def _error_head(summary: Summary) -> str:
    return "RMSE" if summary.is_regression else "error %"
