"""The record of a run: one folder, whose files are complete or do not exist.

config.json  environment.json  history.jsonl (a line an epoch)  checkpoint.pt  result.json (once it is done)
"""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

import torchreg
from experiments.config import Run, Study
from experiments.errors import UserError

Row = dict[str, Any]


class Record:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, run: Run, device: torch.device) -> Row | None:
        """Prepares the folder; returns the checkpoint to continue from, or None for a new run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / "config.json", run.model_dump_json(by_alias=True, indent=2))
        state = self._checkpoint()
        self._note_environment(environment(device), resumed=state is not None)
        # What was written after the checkpoint is computed again, and a killed process may leave half a line.
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[: state["epoch"]] if state else []
        write(path, "".join(line + "\n" for line in lines))
        return state

    def _checkpoint(self) -> Row | None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state: Row = torch.load(path, map_location="cpu", weights_only=True)
            rows = len((self.folder / "history.jsonl").read_text(encoding="utf-8").splitlines())
        except Exception:  # torch.load and the file system raise what they like on a damaged file
            rows, state = 0, {"epoch": 1}
        if rows >= state["epoch"]:
            return state
        print(f"note: {path} is damaged: the run starts afresh", file=sys.stderr)
        return None

    def _note_environment(self, now: Row, resumed: bool) -> None:
        """Updates the list of the environments in which a run was trained, with one entry for each change."""
        path = self.folder / "environment.json"
        before = self.environments if resumed and path.exists() else []
        if before and before[-1] != now:
            changes = [f"{key} {before[-1].get(key)} -> {now[key]}" for key in now if before[-1].get(key) != now[key]]
            print(f"note: {self.folder} goes on in another environment: {', '.join(changes)}", file=sys.stderr)
        write(path, json.dumps([*before, now] if before[-1:] != [now] else before, indent=2))

    def append(self, row: Row) -> None:
        """Adds an epoch to the history."""
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def save(self, state: Row) -> None:
        """Replaces the checkpoint."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(self.folder / "checkpoint.pt", buffer.getvalue())

    def finish(self, result: Row) -> None:
        """Marks the run as done."""
        write(self.folder / "result.json", json.dumps(result, indent=2, allow_nan=False))

    @property
    def result(self) -> Row | None:
        """The result, if the run is done."""
        path = self.folder / "result.json"
        return dict(_read(path)) if path.exists() else None

    @property
    def environments(self) -> list[Row]:
        """The environments of the run: one entry, unless it was resumed elsewhere."""
        return list(_read(self.folder / "environment.json"))

    @property
    def history(self) -> list[Row]:
        """The figures of each epoch."""
        path = self.folder / "history.jsonl"
        return [_parsed(line, path) for line in path.read_text(encoding="utf-8").splitlines()]


class Log:
    """An append-only file with one event in each line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        self._whole = [line for line in lines if line.endswith("\n")]  # a killed process may leave half a line
        self._is_new = True
        self.events: list[Row] = [_parsed(line, path) for line in self._whole]

    def append(self, event: Row) -> None:
        """Adds an event."""
        if self._is_new:
            write(self.path, "".join(self._whole))
            self._is_new = False
        self.events.append(event)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False) + "\n")


@contextmanager
def open_study(study: Study, folder: Path, resume: bool) -> Iterator[None]:
    """Prepares the folder for this study, and locks it against other processes.

    Raises:
        UserError: it holds another study, other files, or this study while ``resume`` was not asked for; or another
            process is at work in it.
    """
    file = folder / "study.json"
    if file.exists():
        if _identity(read_study(folder)) != _identity(study):
            raise UserError(
                f"--out: {folder} must be empty or hold this study, it holds another: remove it or choose another"
            )
        if not resume:
            raise UserError(
                f"--out: {folder} already holds this study: --resume continues it; or choose another folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(not _is_ours(path) for path in folder.iterdir())):
        raise UserError(f"--out: {folder} must be empty or hold this study, it holds other files")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            write(file, study.model_dump_json(by_alias=True, indent=2))
            yield
    except Timeout:
        raise UserError(
            f"--out: {folder} is in use by another process: wait for it, or choose another folder"
        ) from None


def read_study(folder: Path) -> Study:
    """The study in a folder."""
    file = folder / "study.json"
    if not file.exists():
        raise UserError(f"{folder}: holds no study (no study.json): give the folder that 'run' wrote")
    try:
        return Study.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError:
        raise UserError(
            f"{file}: is damaged, or of another version: remove {folder}, or choose another folder"
        ) from None


def read_runs(study: Study, folder: Path) -> list[Run]:
    """The runs of a study in its folder; of a search those at the points tried so far, twice if tried twice."""
    events = Log(folder / "trials.jsonl").events
    runs: list[Run] = []
    for arm, group in groupby(study.runs, key=lambda run: run.arm):
        ours = list(group)
        asked = [event["values"] for event in events if event["arm"] == arm and event["event"] == "ask"]
        runs += [run.at(values) for values in asked for run in ours] if ours[0].values else ours
    return runs


def _identity(study: Study) -> Row:
    """What makes two studies the same: all but where the data lies, how often a checkpoint is written, and how many
    points are tried.
    """
    runs = {"__all__": {"data": {"root"}, "train": {"checkpoint_seconds"}}}
    return study.model_dump(exclude={"runs": runs, "sweep": {"trials"}})


def _is_ours(path: Path) -> bool:
    return path.name == ".lock" or path.suffix == ".part"


def environment(device: torch.device) -> dict[str, Any]:
    """The environment of a run, on which its numbers may depend."""
    return {
        "torchreg": torchreg.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _read(path: Path) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing: remove {path.parent}, and 'run --resume' makes the run again") from None


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise UserError(f"{path}: is damaged: remove {path.parent}, and 'run --resume' makes the run again") from None


def write(path: Path, content: str | bytes) -> None:
    """Writes a file such that it is complete or does not exist, even if the process is killed."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


@cache
def _commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
