"""The page of all records: a table with a row for each, then a section for each with its pictures and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import torchreg

from ... import COMMAND
from ...config import Published
from ...training.files import write
from ...training.storage import make_folder
from ..vega import Pen
from .found import Check, Table
from .pictures import drawn
from .place import PAGE, RECORDS
from .record import Evidence, read_record, write_record

_HEAD = """# Published results, repeated

Each proof is a result that a paper has published, and what this library gives for it. Every figure is
that of final models: mean ± one standard error over seeds. Strengths are chosen by held-out
training images, never by the test set. A row that falls short stays, with its reason.

In a clone, `{command}` with the command of a proof makes its record again, in
`docs/evidence`, and this page, which is never written by hand. It needs the data, which are downloaded
if `TORCHREG_DATA` names no folder that holds them. `{command} evidence` writes the page alone.
"""
_COLUMNS = ["proof", "published", "required", "ours", "reached", "seeds, budget", "command, date"]
_REACHED = {True: "yes", False: "**no**", None: "not yet"}


def write_page(docs: Path, texts: Mapping[str, Published], new: Evidence | None = None) -> Path:
    """Writes a record, if there is a new one, then the page and the pictures of all records.

    Args:
        docs: the folder of the page; the records are in its folder ``evidence``.
        texts: the tables ``published`` of the shipped studies as they are now, by their names: what a record holds of
            it may be older.
        new: a record to write.

    Returns:
        The page.
    """
    folder, page = docs / RECORDS, docs / PAGE
    make_folder(folder)
    if new is not None:
        write_record(new, folder / f"{new.name}.json")
    rows, sections = [], []
    with Pen() as pen:
        for file in sorted(folder.glob("*.json")):
            try:
                found = read_record(file)
            except ValueError as error:
                rows.append([f"`{file.stem}`", *[""] * 3, f"the record {error}", *[""] * 2])
                continue
            text = texts.get(found.origin, found.published)
            pictures = []
            for number, each in enumerate(found.found):
                if not each.picture.rows:  # nothing is finished yet
                    continue
                picture = folder / f"{found.name}{f'_{number + 1}' if number else ''}.svg"
                write(picture, drawn(each.picture, pen) + "\n")
                shows = each.picture.shows
                pictures.append(f"![{shows.partition('.')[0]}.]({folder.name}/{quote(picture.name)})\n\n{shows}")
            rows += _rows(found, text)
            sections.append(_section(found, text, pictures))
    table = _table(_COLUMNS, rows) if rows else "No record is there yet."
    write(page, "\n".join([_HEAD.format(command=COMMAND), table, *sections]) + "\n")
    return page


def _rows(found: Evidence, text: Published) -> list[list[str]]:
    """A row for each requirement; the first says whose they are."""
    checks = [check for each in found.found for check in each.checks]
    marks = [_REACHED[check.is_reached] if found.is_whole else _unfinished(check) for check in checks]
    lines = [[check.must, check.ours, mark] for check, mark in zip(checks, marks, strict=True)] or [["", "", ""]]
    lines[0][-1] += _remarks(found)
    proof = [f"[{text.claim}](#{_anchor(found)})", f"{text.figures} ({text.year})"]
    command = found.command.removeprefix(COMMAND).strip()
    made = [f"{_seeds(len(found.seeds))}; {text.budget}", f"`{command}`<br>{found.date}"]
    return [[*proof, *lines[0], *made], *(["", "", *line, "", ""] for line in lines[1:])]


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _unfinished(check: Check) -> str:
    """Of a study that is not finished: what is reached now may change."""
    return "not yet" if check.is_reached is None else f"{_REACHED[check.is_reached]}, so far"


def _remarks(found: Evidence) -> str:
    remarks = []
    if not found.is_whole:
        remarks.append(f"not finished: {found.runs} of {found.planned} runs")
    if (version := found.versions.get("torchreg")) != torchreg.__version__:
        remarks.append(f"made by torchreg {version}, this is {torchreg.__version__}")
    return "".join(f"<br>({remark})" for remark in remarks)


def _section(found: Evidence, text: Published, pictures: Sequence[str]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    runs = f"{found.runs} runs" if found.is_whole else f"{found.runs} of {found.planned} runs"
    parts = [
        f"({_anchor(found)})=",
        f"## {text.claim}",
        "",
        f"{text.source}: {text.where}.",
        "",
        text.teaches,
        "",
        *(f"{picture}\n" for picture in pictures),
    ]
    for each in found.found:
        for table in each.tables:
            parts += [_rows_of(table), ""]
    parts += [f"Uses: {', '.join(f'`{name}`' for name in text.uses)}.", ""]
    if text.notes:
        parts += ["What was tried, and what falls short:", "", *(f"- {note}" for note in text.notes), ""]
    parts.append(f"```sh\n{found.command}\n```\n")
    parts.append(f"{runs}, {_time(found.seconds)} on {found.machine}; {versions}; {found.date}.")
    return "\n".join(["", *parts])


def _rows_of(table: Table) -> str:
    return _table(table.columns, [[str(cell) for cell in row] for row in table.rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(found: Evidence) -> str:
    words = re.sub(r"[\W_]+", "-", found.name.lower()).strip("-")
    return f"evidence-{words}"


def _time(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
