"""The folder of the page and its records, checked before a study runs for an hour."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile

from ...errors import UserError
from .record import Evidence, Origin, overrides_of, read_record

RECORDS, PAGE = "evidence", "evidence.md"


def check_place(docs: Path, origin: Origin | None = None) -> Evidence | None:
    """Refuses a folder in which the page, or the record of a study, cannot be written.

    Args:
        docs: the folder of the page.
        origin: of the record that is to be written, if there is one.

    Returns:
        The record that it is to replace, if there is one.

    Raises:
        UserError: the folder is missing or cannot be written to, a folder stands where a file is to be, or the record
            is there and is that of another study, or of other settings.
    """
    if not docs.is_dir():
        raise UserError(f"--docs: must be a folder that exists, got {docs}")
    folder = docs / RECORDS
    for place in (docs, folder):
        try:
            if place is docs or os.path.lexists(place):  # the folder of the records is made when it is needed
                with TemporaryFile(dir=place):
                    list(place.iterdir())
        except OSError as error:
            raise UserError(
                f"--docs: {place} must be a folder to write to, got: {error.strerror}: choose another for --docs"
            ) from None
    records = [] if origin is None else [folder / f"{origin.name}.json"]
    for file in (docs / PAGE, *records, *folder.glob("*.svg")):
        if file.is_dir():
            raise UserError(f"--docs: {file} must be a file, is a folder: remove it, or choose another for --docs")
    return _replaced(records[0], docs, origin) if origin is not None and records[0].exists() else None


def _replaced(file: Path, docs: Path, origin: Origin) -> Evidence:
    """Refuses to replace the record of another study, or that of a study as its file is by one of changed settings."""
    try:
        before = read_record(file)
    except ValueError as error:
        raise UserError(
            f"evidence: {file} {error}, and may be the record of another study: remove it, and run this again"
        ) from None
    if before.origin != origin.study:
        path = os.path.normpath(docs / before.origin) if before.origin.endswith(".toml") else before.origin
        raise UserError(
            f"evidence: {file} is the record of another study, {path}: rename the file of this one, or choose another "
            "folder by --docs; or remove the record"
        )
    if not before.overrides and overrides_of(origin.command):
        raise UserError(
            f"evidence: {file} is the record of the study without --set, {before.runs} runs: choose another folder by "
            "--docs, or remove the record"
        )
    return before
