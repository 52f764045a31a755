"""A study's records reduced to one small file, which is kept beside the documentation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...config import Published, Study
from ...errors import UserError
from ...training.files import checksum, content_of, write
from ..cells import best_of
from ..numbers import rounded
from ..statistics import Mean
from ..summary import Summary
from .found import Found
from .measures import measured

LAYOUT: Literal[1] = 1  # of the file: another one is not read


@dataclass(frozen=True)
class Origin:
    """Where a record comes from.

    Args:
        name: the study's in file names.
        command: makes the record again.
        study: its name, if it is shipped; else its file, as seen from the page's folder.
    """

    name: str
    command: str
    study: str


def overrides_of(command: str) -> list[str]:
    """What follows each ``--set`` of a command."""
    return [value for word, value in pairwise(shlex.split(command)) if word == "--set"]


class Arm(BaseModel):
    """The final models of an arm, at the strength that validation chooses."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    arm: str
    strength: float | None
    seeds: list[int]
    test_error: list[float]  # of each seed
    valid_error: float  # the mean over seeds, as the ones below
    train_error: float
    test_loss: float
    seconds: float


class Evidence(BaseModel):
    """What is kept of a study that repeats a published one."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    layout: Literal[1] = LAYOUT
    name: str
    command: str
    study: str = ""  # as in Origin; earlier versions wrote none, and made those of shipped studies
    date: str  # on which the runs were reduced to the record
    versions: dict[str, str]
    machine: str
    seconds: float  # of all runs together
    runs: int  # that are finished
    planned: int
    seeds: list[int]
    published: Published
    found: list[Found]
    arms: list[Arm]

    @property
    def origin(self) -> str:
        """The study that the record is of, which is another one than that of a file with the same name elsewhere."""
        return self.study or self.name

    @property
    def overrides(self) -> list[str]:
        """Which keys the command changes, and to what."""
        return overrides_of(self.command)

    @property
    def is_whole(self) -> bool:
        """Whether all runs of the study are finished."""
        return self.runs >= self.planned


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _each(values: Sequence[str]) -> str:
    """The different ones of the values, in their order."""
    return " and ".join(dict.fromkeys(values))


def reduce(study: Study, summary: Summary, origin: Origin) -> Evidence:
    """What is kept of a study's records.

    Args:
        study: with the table ``published``.
        summary: of its folder.
        origin: where it comes from.

    Raises:
        UserError: the study has no such table, or names an arm that there is not.
    """
    if study.published is None:
        raise UserError(f"evidence: {origin.name} has no table [published], which says what it is held against: add it")
    names = dict.fromkeys(arm for run in study.runs for arm in _arms_of(run))
    found = measured(study.published, summary, names)
    arms = []
    for name in names:
        cell = best_of([cell for cell in summary.cells if cell.arm == name], summary.metric)
        if cell is not None:
            errors = cell.by_seed("test_error")
            means = {key: rounded(_mean(cell.mean(key))) for key in ("valid_error", "train_error", "test_loss")}
            strength = None if cell.strength is None else rounded(cell.strength)
            seconds = rounded(cell.seconds, 3)
            own = [rounded(error) for error in errors.values()]
            arms.append(Arm(arm=name, strength=strength, seeds=list(errors), test_error=own, seconds=seconds, **means))
    places = [place for cell in summary.cells for record in cell.records for place in record.environments]
    total = sum(result["seconds"] for cell in summary.cells for result in cell.results)
    return Evidence(
        name=origin.name,
        command=origin.command,
        study=origin.study,
        date=datetime.now(UTC).date().isoformat(),
        versions={key: _each([str(place[key]) for place in places]) for key in ("torchreg", "torch", "python")},
        machine=_each([f"{place['device']}, {_threads(place['threads'])}" for place in places]),
        seconds=rounded(total, 4),
        runs=sum(len(cell.runs) for cell in summary.cells),
        planned=summary.planned,
        seeds=sorted({seed for cell in summary.cells for seed in cell.seeds}),
        published=study.published,
        found=found,
        arms=arms,
    )


def _arms_of(run: Any) -> Sequence[str]:
    return [run.arm] if run.average is None else [run.arm, run.average.arm]


def _mean(value: Mean) -> float:
    return value.mean


def write_record(evidence: Evidence, file: Path) -> None:
    """Writes the record, with a checksum of what is in it."""
    tree = evidence.model_dump(mode="json", exclude_defaults=False)
    tree["checksum"] = _checksum(tree)
    write(file, _text(tree) + "\n")


def read_record(file: Path) -> Evidence:
    """The record in a file.

    Raises:
        ValueError: it is damaged, or of another layout; the text says which.
    """
    try:
        tree = json.loads(content_of(file).decode())
        if not isinstance(tree, dict):
            raise ValueError("no table")
    except (ValueError, RecursionError, UserError):
        raise ValueError("is damaged") from None
    if tree.get("layout") != LAYOUT:
        raise ValueError(f"has layout {tree.get('layout')}, this version reads {LAYOUT}")
    if tree.pop("checksum", None) != _checksum(tree):
        raise ValueError("is damaged, or was altered")
    try:
        return Evidence.model_validate_json(json.dumps(tree))
    except ValidationError:
        raise ValueError("is of another version") from None


def _checksum(tree: dict[str, Any]) -> str:
    return checksum(json.dumps(tree, sort_keys=True).encode())


def _text(value: Any, indent: str = "") -> str:
    """JSON in which what fits into a line stands in one."""
    line = json.dumps(value, allow_nan=False, ensure_ascii=False)
    if len(indent) + len(line) <= 120 or not isinstance(value, (dict, list)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(key)}: {_text(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _text(one, inner) for one in value) + f"\n{indent}]"
