"""A study's report: a table for the terminal, and one self-contained page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments import figures
from experiments.record import write
from experiments.summary import Cell, Mean, Summary

COLUMNS = ["arm", "strength", "train error %", "test error %", "gap", "test loss", "zeros %", "norm"]


class Claim(NamedTuple):
    """Something regularization should show, and what in this study shows it."""

    title: str
    evidence: str


def table(summary: Summary) -> str:
    """The arms, each at its chosen strength, and what they show, as text."""
    rows = [COLUMNS, *map(row, summary.chosen)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows]
    lines.insert(1, "-" * len(lines[0]))
    seeds = len(summary.cells[0].runs)
    note = f"Mean +- standard error over {seeds} seeds; strengths chosen by validation error." if seeds > 1 else ""
    return "\n".join([*lines, note, "", *(f"{claim.title} {claim.evidence}" for claim in claims(summary))])


def row(cell: Cell) -> list[str]:
    """The arm's cells under :data:`COLUMNS`."""
    name = [cell.arm, "" if cell.strength is None else f"{cell.strength:g}"]
    if cell.diverged:
        return [*name, "diverged", *[""] * (len(COLUMNS) - 3)]
    errors = [_percent(cell.mean("train_error")), _percent(cell.mean("test_error")), _percent(cell.gap)]
    rest = [_plus_minus(cell.mean("test_loss"), 3), _percent(cell.mean("zeros")), f"{cell.norm.mean:.2f}"]
    return [*name, *errors, *rest]


def claims(summary: Summary) -> list[Claim]:
    """What can be said of regularization from this study; nothing without an unregularized arm."""
    plain = summary.plain
    sound = [cell for cell in summary.cells if not cell.diverged and cell is not plain]
    if plain is None or plain.diverged or not sound:
        return []
    return [*_zero_is_plain(plain, sound), *_between(plain, summary), *_too_strong(plain, sound)]


def _zero_is_plain(plain: Cell, sound: list[Cell]) -> list[Claim]:
    digests = [result["sha256"] for result in plain.results]
    off = [cell for cell in sound if cell.strength == 0]
    same = [cell.arm for cell in off if [result["sha256"] for result in cell.results] == digests]
    if not off or len(same) < len(off):
        return []
    verb = "end" if len(same) > 1 else "ends"
    evidence = f"{' and '.join(same)} at strength 0 {verb} with the unregularized weights, bit for bit."
    return [Claim("Strength 0 is the plain loss.", evidence)]


def _between(plain: Cell, summary: Summary) -> list[Claim]:
    best = min((cell for cell in summary.chosen if not cell.diverged), key=lambda cell: cell.mean("valid_error").mean)
    noise = f" ({100 * summary.label_noise:g} % of its labels are wrong)" if summary.label_noise else ""
    if best.gap.mean >= plain.gap.mean:
        return []
    closes = abs(best.gap.mean) < 0.5 * plain.gap.mean
    return [
        Claim(
            f"In between, the gap {'closes' if closes else 'narrows'}.",
            f"Unregularized: training error {_percent(plain.mean('train_error'))} %{noise}, test error "
            f"{_percent(plain.mean('test_error'))} %. {best.arm}: {_percent(best.mean('train_error'))} % and "
            f"{_percent(best.mean('test_error'))} %.",
        )
    ]


def _too_strong(plain: Cell, sound: list[Cell]) -> list[Claim]:
    worst = max(sound, key=lambda cell: cell.mean("train_error").mean)
    if worst.mean("test_error").mean <= plain.mean("test_error").mean:
        return []
    at = f" at {worst.strength:g}" if worst.strength is not None else ""
    return [
        Claim(
            "Too strong, and the network under-fits.",
            f"{worst.arm}{at}: training error {_percent(worst.mean('train_error'))} %, test error "
            f"{_percent(worst.mean('test_error'))} %.",
        )
    ]


def write_page(summary: Summary, folder: Path) -> Path:
    """Renders the page into the study's folder; returns its path."""
    environment = Environment(
        loader=PackageLoader("experiments"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        summary=summary,
        columns=COLUMNS,
        rows=[row(cell) for cell in summary.chosen],
        best=_best_row(summary),
        claims=claims(summary),
        pictures=figures.all_of(summary),
        seeds=len(summary.cells[0].runs),
    )
    path = folder / "report.html"
    write(path, page)
    return path


def _best_row(summary: Summary) -> int:
    sound = [i for i, cell in enumerate(summary.chosen) if not cell.diverged]
    return min(sound, key=lambda i: summary.chosen[i].mean("valid_error").mean, default=-1)


def _percent(value: Mean) -> str:
    return _plus_minus(Mean(100 * value.mean, 100 * value.se), 1)


def _plus_minus(value: Mean, digits: int) -> str:
    return f"{value.mean:.{digits}f}" + (f" ± {value.se:.{digits}f}" if value.se else "")
