"""A study's report: a table for the terminal, and one self-contained page with figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.config.names import short, text_of
from experiments.report import figures
from experiments.report.summary import Cell, Mean, Summary, best_of, difference
from experiments.training.files import write


class Claim(NamedTuple):
    """A claim about regularization, with the evidence of this study."""

    title: str
    evidence: str


def table(summary: Summary) -> str:
    """The arms at their chosen strengths, and the claims, as text."""
    rows = [columns(summary), *(row(cell, summary) for cell in summary.chosen)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows]
    lines.insert(1, "-" * len(lines[0]))
    remarks = [f"{claim.title} {claim.evidence}" for claim in claims(summary)]
    return "\n".join([*lines, *filter(None, [summary.note]), *([""] if remarks else []), *remarks])


def columns(summary: Summary) -> list[str]:
    """The heads of the table; of a search with its keys and its metric."""
    error = "RMSE" if summary.is_regression else "error %"
    figures = [f"train {error}", f"test {error}", "gap", "test loss", "zeros %", "norm"]
    if summary.sweep is None:
        return ["arm", "strength", *figures]
    metric = f"valid {error}" if summary.metric == "valid_error" else "valid loss"
    return ["arm", *short(_keys(summary)), metric, *figures, *(["cost"] if summary.plain else [])]


def row(cell: Cell, summary: Summary) -> list[str]:
    """The arm's cells under :func:`columns`."""
    name, figure = [f"{cell.arm}{cell.remark}"], []
    if summary.sweep is None:
        name.append("" if cell.strength is None else f"{cell.strength:g}")
    else:
        name += [_value(_at(cell, key)) for key in _keys(summary)]
        metric = Mean(0.0, None) if cell.is_broken else cell.mean(summary.metric)
        figure = [_error(metric, cell) if summary.metric == "valid_error" else _plus_minus(metric, 3)]
    if not cell.is_done:
        return [*name, cell.status, *[""] * (len(columns(summary)) - len(name) - 1)]
    errors = [_error(figure, cell) for figure in (cell.mean("train_error"), cell.mean("test_error"), cell.gap)]
    rest = [_plus_minus(cell.mean("test_loss"), 3), _percent(cell.mean("zeros")), f"{cell.norm.mean:.2f}"]
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


def claims(summary: Summary) -> list[Claim]:
    """The claims that this study supports, against an arm that differs only in regularization."""
    plain = summary.plain
    if plain is None:
        return _compressed(summary)
    comparable = [cell for cell in summary.cells if cell.is_done and cell.differs_only_by_regularization(plain)]
    off = [cell for cell in comparable if cell.is_off()]
    on = [cell for cell in comparable if not cell.is_off() and not cell.is_plain()]
    return [*_zero_is_plain(plain, off), *_between(plain, on), *_too_strong(plain, on), *_compressed(summary)]


def _zero_is_plain(plain: Cell, off: list[Cell]) -> list[Claim]:
    common = [(cell, cell.digests.keys() & plain.digests.keys()) for cell in off]
    other = [cell.arm for cell, seeds in common if any(cell.digests[s] != plain.digests[s] for s in seeds)]
    if other:
        return [Claim("Strength 0 is not the plain loss here!", f"Other weights than {plain.arm}: {', '.join(other)}.")]
    same = [cell.arm for cell, seeds in common if seeds]
    if not same:
        return []
    verb = "end" if len(same) > 1 else "ends"
    evidence = f"{' and '.join(same)} at strength 0 {verb} with the unregularized weights, bit for bit."
    return [Claim("Strength 0 is the plain loss.", evidence)]


def _between(plain: Cell, on: list[Cell]) -> list[Claim]:
    best = best_of(on)
    if best is None or not (_is_lower(best, plain, "test_error") and _is_lower(best, plain, "gap")):
        return []
    closes = abs(best.gap.mean) < 0.5 * plain.gap.mean
    noise = plain.runs[0].data.label_noise
    wrong = f" ({100 * noise:g} % of its labels are wrong)" if noise else ""
    evidence = f"Unregularized: {_errors(plain, wrong)}. {best.label}: {_errors(best)}."
    return [Claim(f"In between, the gap {'closes' if closes else 'narrows'}.", evidence)]


def _too_strong(plain: Cell, on: list[Cell]) -> list[Claim]:
    worse = [cell for cell in on if all(_is_lower(plain, cell, key) for key in ("train_error", "test_error"))]
    if not worse:
        return []
    worst = max(worse, key=lambda cell: cell.mean("train_error").mean)
    at = "" if worst.strength is None else f" at {worst.strength:g}"
    return [Claim("Too strong, and the network under-fits.", f"{worst.arm}{at}: {_errors(worst)}.")]


def _compressed(summary: Summary) -> list[Claim]:
    """How much the arms with many zeros can be compressed."""
    compressed = [cell for cell in summary.chosen if cell.is_done and cell.compression]
    counted = [f"{cell.label} {cell.compression}" for cell in compressed if cell.mean("zeros").mean > 0.9]
    if not counted:
        return []
    return [Claim("Compression by weights that are not zero / by units left / in bits.", f"{'; '.join(counted)}.")]


def _is_lower(cell: Cell, than: Cell, key: str) -> bool:
    """Whether a figure is lower by half a point or more, and by more than two standard errors of the difference.

    Of an RMSE half a percent takes the place of half a point. The difference is taken seed by seed. Its error has two
    parts: other seeds, whose part is unknown from a single one, and other test examples, drawn independently of each
    other. Of the gap the sizes are compared: a negative one is as far from 0, and there must be a positive one to
    close.
    """
    ours, theirs = cell.by_seed(key), than.by_seed(key)
    if key == "gap":
        ours = {seed: abs(gap) for seed, gap in ours.items()}
    found = difference(ours, theirs)
    if found.se is None:
        return False
    tested = [] if key == "train_error" else [cell.mean("test_error").mean, than.mean("test_error").mean]
    examples = math.fsum(cell.sampling(error, "test") for error in tested)
    least = 0.005 * (than.mean("test_error").mean if cell.is_regression else 1.0)
    return found.mean > max(2 * math.sqrt(found.se**2 + examples), least)


def _errors(cell: Cell, remark: str = "") -> str:
    train, test = (_error(cell.mean(key), cell) for key in ("train_error", "test_error"))
    if cell.is_regression:
        return f"training RMSE {train}, test RMSE {test}"
    return f"training error {train} %{remark}, test error {test} %"


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
        pictures=figures.all_of(summary),
    )
    path = folder / "report.html"
    write(path, page)
    return path


def _error(value: Mean, cell: Cell) -> str:
    """A share in percent; a root mean squared error by its size, with four digits."""
    if not cell.is_regression:
        return _percent(value)
    size = abs(cell.mean("test_error").mean) or 1.0
    return _plus_minus(value, min(max(3 - math.floor(math.log10(size)), 0), 9))


def _percent(value: Mean) -> str:
    return _plus_minus(Mean(100 * value.mean, None if value.se is None else 100 * value.se), 1)


def _plus_minus(value: Mean, digits: int) -> str:
    return f"{value.mean:.{digits}f}" + (f" ± {value.se:.{digits}f}" if value.se else "")
