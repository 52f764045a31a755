"""The page of all records: a table with a row for each, then a section for each with its pictures and tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote

import torchreg

from ... import COMMAND
from ...config import Published
from ...training.files import write
from ...training.storage import make_folder
from ..vega import Pen
from .found import Check, Table
from .markdown import block, code, literal, table
from .pictures import drawn
from .place import PAGE, RECORDS
from .record import Evidence, read_record, write_record

_HEAD = """# Published results, repeated

Each proof is a result that a paper has published, and what this library gives for it. Errors are those
of final models, and a figure of ours is a mean ± one standard error over seeds. Strengths are chosen
by training images, never by test images, except in columns that say "on the test". A row that falls
short stays, with its reason.

In a clone, `{command}` with the command of a proof makes its record again, in
`docs/evidence`, and this page, which is never written by hand. It needs the data, which are downloaded
if `TORCHREG_DATA` names no folder that holds them. `{command} evidence` writes the page alone.
"""
_COLUMNS = ["proof", "published", "required", "ours", "reached", "seeds, budget", "command, recorded"]
_REACHED = {True: "yes", False: "**no**", None: "not yet"}


def write_page(docs: Path, texts: Mapping[str, Published], new: Evidence | None = None) -> tuple[Path, list[str]]:
    """Writes a record, if there is a new one, then the pictures of all records and the page.

    All is drawn first: a record that cannot be shown is not written.

    Args:
        docs: the folder of the page; the records are in its folder ``evidence``.
        texts: the tables ``published`` of the shipped studies as they are now, by their names: what a record holds of
            it may be older.
        new: a record to write.

    Returns:
        The page, and a line for each record that cannot be read, of which the page has no section.
    """
    folder, page = docs / RECORDS, docs / PAGE
    make_folder(folder)
    ours = {} if new is None else {folder / f"{new.name}.json": new}
    rows, sections, faults = [], [], []
    pictures: dict[str, str] = {}  # by the names of their files
    labels: set[str] = set()
    with Pen() as pen:
        for file in sorted({*folder.glob("*.json"), *ours}):
            try:
                found = ours.get(file) or read_record(file)
            except ValueError as error:
                faults.append(f"evidence: {file} {error}: make it again, or restore it")
                rows.append([code(file.stem), *[""] * 3, f"the record {literal(str(error))}", *[""] * 2])
                continue
            text, label = texts.get(found.origin, found.published), _free(_label(found.name), "-", labels)
            labels.add(label)
            shown = []
            for each in found.found:
                if not each.picture.rows:  # nothing is finished yet
                    continue
                picture = f"{_free(found.name, '_', {name.removesuffix('.svg') for name in pictures})}.svg"
                pictures[picture] = drawn(each.picture, pen) + "\n"
                shows = literal(each.picture.shows)
                sentence = re.split(r"\.(?=\s|$)", shows, maxsplit=1)[0]
                shown.append(f"![{sentence}.]({folder.name}/{quote(picture)})\n\n{shows}")
            rows += _rows(found, text, label)
            sections.append(_section(found, text, label, shown))
    for file, record in ours.items():
        write_record(record, file)
    for name, svg in pictures.items():
        write(folder / name, svg)
    overview = table(_COLUMNS, rows) if rows else "No record is there yet."
    write(page, "\n".join([_HEAD.format(command=COMMAND), overview, *sections]) + "\n")
    return page, faults


def _free(name: str, mark: str, taken: Collection[str]) -> str:
    """The name, with a number behind a mark if it is taken already."""
    numbered = (f"{name}{mark}{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


def _label(name: str) -> str:
    """The label of a record's section, in letters, digits and hyphens."""
    words = re.sub(r"[\W_]+", "-", name.lower()).strip("-")
    return f"evidence-{words}"


def _rows(found: Evidence, text: Published, label: str) -> list[list[str]]:
    """A row for each requirement; the first says whose they are."""
    checks = [check for each in found.found for check in each.checks]
    marks = [_REACHED[check.is_reached] if found.is_whole else _unfinished(check) for check in checks]
    lines = [[literal(check.must), literal(check.ours), mark] for check, mark in zip(checks, marks, strict=True)] or [
        ["", "", ""]
    ]
    lines[0][-1] += _remarks(found)
    proof = [f"[{text.claim}](#{label})", f"{text.figures} ({text.year})"]
    command = code(found.command.removeprefix(COMMAND).strip())
    budget = "other settings than the file's" if found.overrides else text.budget
    made = [f"{_seeds(len(found.seeds))}; {budget}", f"{command}<br>{found.date}"]
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


def _section(found: Evidence, text: Published, label: str, pictures: Sequence[str]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    runs = f"{found.runs} runs" if found.is_whole else f"{found.runs} of {found.planned} runs"
    parts = [
        f"({label})=",
        f"## {text.claim}",
        "",
        f"{text.source}: {text.where}.",
        "",
        text.teaches,
        "",
        *(f"{picture}\n" for picture in pictures),
    ]
    for each in found.found:
        for own in each.tables:
            parts += [_table(own), ""]
    parts += [f"Uses: {', '.join(map(code, text.uses))}.", ""]
    if text.notes:
        parts += ["What was tried, and what falls short:", "", *(f"- {note}" for note in text.notes), ""]
    parts.append(f"{block(found.command, 'sh')}\n")
    parts.append(literal(f"{runs}, {_time(found.seconds)} on {found.machine}; {versions}; recorded {found.date}."))
    return "\n".join(["", *parts])


def _table(found: Table) -> str:
    return table([*map(literal, found.columns)], [[literal(str(cell)) for cell in row] for row in found.rows])


def _time(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
