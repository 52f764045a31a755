"""The record of a run: one folder, whose files are complete or do not exist.

config.json  environment.json  history.jsonl (a line an epoch)  checkpoint.pt  result.json (once it is done)
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import torchreg

from .. import IS_INSTALLED
from ..config import Run, Study
from ..errors import RecordError, StorageError, UserError
from . import ranks
from .files import append, checksum, content_of, damaged, line_of, parsed, sealed, unsealed, write
from .forms import Environments, Event, Figures, Result, check_form
from .locks import InUseError, is_lock, lock
from .loggers import Told
from .sameness import digest_of, obstacle
from .storage import exists, files_below, is_local, make_folder, names_in, remove

Row = dict[str, Any]
_BESIDE = ("config.json", "environment.json", "history.jsonl", "checkpoint.pt")
_SEAL = b"\nsha256 "  # at the end of a checkpoint, where torch.load does not look


class Record:
    """The folder of one run. Of several processes that train it, the first one reads and writes for all.

    The result holds a checksum of every other file, and each checkpoint one of the history before it. Records of
    earlier versions have none: of these only the form is checked.

    Args:
        folder: is made by :meth:`begin`.
        run: the run whose record this must be; None: any.
        is_checked: its files have been compared with the result a moment ago, or written.
    """

    def __init__(self, folder: Path, run: Run | None = None, is_checked: bool = False) -> None:
        self.folder, self._run, self._is_checked = folder, run, is_checked
        self._told = Told()
        self._unwritten: list[bytes] = []  # lines of the history

    def of_average(self, run: Run) -> Record | None:
        """The record of the averaged weights of this run, beside this one, if they are averaged."""
        if (average := run.average) is None:
            return None
        runs = self.folder.parents[len(Path(run.folder).parts) - 1]
        return Record(runs / average.folder, average)

    @ranks.by_first
    def begin(self, run: Run, device: torch.device) -> Row | None:
        """Prepares the folder; returns the checkpoint to continue from, or None for a new run."""
        state = self._checkpoint(run)
        self.begin_at(run, device, 0 if state is None else _rows_in(state))
        return state

    @ranks.by_first
    def begin_at(self, run: Run, device: torch.device, rows: int) -> None:
        """Prepares the folder of a run that goes on after so many rows of its history.

        Raises:
            RecordError: the history is damaged, or shorter.
        """
        make_folder(self.folder)
        remove(self.folder / "result.json")  # of a run that failed, or whose end is made again
        write(self.folder / "config.json", _text_of(run))
        # What was written after the checkpoint is computed again, and a killed process may leave half a line.
        lines = self._lines()[:rows] if rows else []
        before = self._rows(lines)
        if len(before) < rows:
            raise damaged(self.folder / "history.jsonl")
        self._note_environment(environment(device), resumed=rows > 0)
        write(self.folder / "history.jsonl", b"".join(lines))
        self._told = Told(run, self.folder, before[-1]["epoch"] if before else 0)

    def _checkpoint(self, run: Run) -> Row | None:
        path = self.folder / "checkpoint.pt"
        if not exists(path):
            return None
        try:
            state, mark = load_sealed(path)
            lines = self._lines()[: _rows_in(state)]
            history = checksum(b"".join(lines))
            if self._rows(lines)[-1]["epoch"] != state["epoch"] or state.get("history", history) != history:
                raise ValueError("another history")
        except StorageError:
            raise
        except Exception:  # torch.load and the file system raise what they like on a damaged file
            print(f"note: {path} is damaged: the run starts afresh", file=sys.stderr)
            return None
        if state.get("is_of_stack"):  # weights without the state of an optimizer
            return None
        if "run" in state and not mark:  # only earlier versions wrote none
            raise damaged(path, "was altered")
        if state.get("run", digest_of(run)) != digest_of(run):
            raise damaged(path, "is of another run")
        return state

    def _note_environment(self, now: Row, resumed: bool) -> None:
        """Updates the list of the environments in which a run was trained, with one entry for each change."""
        path = self.folder / "environment.json"
        before = self.environments if resumed and exists(path) else []
        if before and before[-1] != now:
            changes = [f"{key} {before[-1].get(key)} -> {now[key]}" for key in now if before[-1].get(key) != now[key]]
            print(f"note: {self.folder} goes on in another environment: {', '.join(changes)}", file=sys.stderr)
        write(path, json.dumps([*before, now] if before[-1:] != [now] else before, indent=2))

    @ranks.by_first
    def append(self, row: Row) -> None:
        """Adds an epoch to the history."""
        if is_local(self.folder):
            append(self.folder / "history.jsonl", row)
        else:
            self._unwritten.append(line_of(row))
        self._told.row(row)

    @ranks.by_first
    def flush(self) -> None:
        """Puts the history, which nothing needs before the next checkpoint, where lines cannot be added to a file."""
        if self._unwritten:
            write(self.folder / "history.jsonl", b"".join(self._lines()))
            self._unwritten.clear()

    @ranks.by_first
    def save(self, run: Run, state: Row) -> None:
        """Replaces the checkpoint."""
        history = checksum(b"".join(self._lines()[: _rows_in(state)]))
        save_sealed(self.folder / "checkpoint.pt", {**state, "run": digest_of(run), "history": history})

    @ranks.by_first
    def finish(self, result: Row) -> None:
        """Marks the run as done."""
        self.flush()
        names = names_in(self.folder)
        files = {name: checksum(content_of(self.folder / name)) for name in _BESIDE if name in names}
        write(self.folder / "result.json", sealed(json.dumps({**result, "files": files}, indent=2, allow_nan=False)))
        self._told.finish(result)

    @ranks.by_first
    def fail(self, run: Run, device: torch.device, reason: str, seconds: float) -> Row:
        """Records that the run has raised an error, and which; ``--resume`` makes it again."""
        if not exists(self.folder / "history.jsonl"):  # before it has begun
            self.begin(run, device)
        self.flush()
        result = {"status": "failed", "reason": reason, "seconds": seconds, "files": {}}
        write(self.folder / "result.json", sealed(json.dumps(result, indent=2)))
        self._told.finish(result)
        return result

    @property
    @ranks.by_first
    def result(self) -> Row | None:
        """The result, if the run has come to its end.

        Raises:
            RecordError: a file of the record is damaged, missing, or of another run.
        """
        path = self.folder / "result.json"
        if not exists(path):
            return None
        result: Row = check_form(Result, unsealed(path), path)
        files = result.pop("files", {})
        if self._is_checked:
            return result
        for name, digest in files.items():
            other = self.folder / name
            if name == "checkpoint.pt" and not exists(other):
                continue  # nothing needs it any more
            if checksum(content_of(other)) != digest:
                raise damaged(other)
        self._check_run()
        if result["status"] in ("done", "pruned"):
            is_known = "history.jsonl" in files  # by its checksum to be what was written
            rows = self._rows(self._lines()[-1:]) if is_known else self.history
            if [row["epoch"] for row in rows][-1:] != [result["epochs"]]:
                raise damaged(self.folder / "history.jsonl")
        return result

    def _check_run(self) -> None:
        path = self.folder / "config.json"
        content = content_of(path)
        if self._run is not None and content == _text_of(self._run).encode():
            return
        try:
            run = Run.model_validate_json(content)
        except ValidationError:
            raise damaged(path) from None
        if self._run is not None and digest_of(run) != digest_of(self._run):
            raise damaged(path, "is of another run")

    @property
    def environments(self) -> list[Row]:
        """The environments of the run: one entry, unless it was resumed elsewhere."""
        path = self.folder / "environment.json"
        found: list[Row] = check_form(Environments, parsed(content_of(path), path), path)
        return found

    @property
    @ranks.by_first
    def history(self) -> list[Row]:
        """The figures of each epoch."""
        return self._rows(self._lines())

    def _lines(self) -> list[bytes]:
        return content_of(self.folder / "history.jsonl").splitlines(keepends=True) + self._unwritten

    def _rows(self, lines: Sequence[bytes]) -> list[Row]:
        path = self.folder / "history.jsonl"
        rows = [check_form(Figures, parsed(line, path), path) for line in lines]
        epochs: list[int] = [row["epoch"] for row in rows]
        if any(later <= earlier for earlier, later in pairwise(epochs)):
            raise damaged(path)
        return rows


def _text_of(run: Run) -> str:
    return run.model_dump_json(by_alias=True, indent=2)


def _rows_in(state: Row) -> int:
    """The number of a history's rows at a checkpoint; earlier versions wrote one for each epoch."""
    return int(state["rows"] if "rows" in state else state["epoch"])


def save_sealed(path: Path, state: Row) -> None:
    """Writes a checkpoint with its checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write(path, data + _SEAL + checksum(data).encode())


def load_sealed(path: Path) -> tuple[Row, bool]:
    """A checkpoint, and whether it had a checksum.

    Raises:
        ValueError: it has another checksum; and whatever ``torch.load`` raises on a damaged file.
    """
    content = content_of(path)
    data, mark, digest = content.rpartition(_SEAL)
    if mark and digest.decode() != checksum(data):
        raise ValueError("another checksum")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), bool(mark)


class Log:
    """An append-only file with one event in each line, which ends with a checksum of all lines up to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = content_of(path).splitlines(keepends=True) if exists(path) else []
        self._whole = [line for line in lines if line.endswith(b"\n")]  # a killed process may leave half a line
        self._is_new = True
        self._checksum = ""
        self.events: list[Row] = [self._read(line) for line in self._whole]

    def append(self, event: Row) -> None:
        """Adds an event."""
        if self._is_new:
            write(self.path, b"".join(self._whole))
            self._is_new = False
        self.events.append(event)
        self._checksum = self._after(event)
        append(self.path, {**event, "checksum": self._checksum})

    def _read(self, line: bytes) -> Row:
        event: Row = check_form(Event, parsed(line, self.path), self.path)
        given = event.pop("checksum", "")
        if given != (self._after(event) if given or self._checksum else ""):  # the first ones of old logs have none
            raise damaged(self.path)
        self._checksum = given
        return event

    def _after(self, event: Row) -> str:
        return checksum((self._checksum + json.dumps(event)).encode())


@contextmanager
def open_study(study: Study, folder: Path, resume: bool) -> Iterator[None]:
    """Prepares the folder for this study, and locks it against other processes.

    Raises:
        UserError: it holds a study with other runs, other files, or this study while ``resume`` was not asked for; or
            another process is at work in it.
    """
    is_written = _is_written(study, folder, resume)
    if is_local(folder):
        _check_links(folder)
    make_folder(folder)
    try:
        with lock(folder, waits=False):
            if not is_written:
                write(folder / "study.json", sealed(study.model_dump_json(by_alias=True, indent=2)))
            yield
    except InUseError as error:
        raise UserError(f"--out: {folder} is in use by {error}: wait for it, or choose another folder") from None


def _is_written(study: Study, folder: Path, resume: bool) -> bool:
    """Whether the folder holds this very study, which is then not written again; raises if it is not free.

    A study that has got further runs goes on in its folder.
    """
    if exists(folder / "study.json"):
        before = read_study(folder)
        if found := obstacle(before, study):
            raise UserError(
                f"--out: {folder} must be empty or hold this study, it holds another, {found}: choose another"
            )
        if not resume:
            raise UserError(
                f"--out: {folder} already holds this study: --resume continues it; or choose another folder"
            )
        runs = [[run.folder for run in one.runs] for one in (before, study)]
        if runs[0] != runs[1] and exists(folder / "stacks"):  # whose checkpoints are of these runs in this order
            raise UserError(f"--out: {folder} holds runs that are not finished: --resume them before others are added")
        return before == study
    if exists(folder) and not folder.is_dir():
        raise UserError(f"--out: {folder} must be a folder, it is a file: choose another")
    if not all(map(_is_ours, names_in(folder))):
        raise UserError(f"--out: {folder} must be empty or hold this study, it holds other files")
    return False


def read_study(folder: Path) -> Study:
    """The study in a folder."""
    file = folder / "study.json"
    if not exists(file):
        raise UserError(f"{folder}: holds no study (no study.json): give the folder that 'run' wrote")
    try:
        tree = unsealed(file, _Runs())
        return Study(**{**tree, "runs": tuple(tree["runs"])})
    except StorageError:
        raise
    except (ValidationError, RecordError, KeyError, TypeError):
        raise RecordError(
            f"{file}: is damaged, or of another version: remove {folder}, or choose another folder"
        ) from None


class _Runs:
    """Makes a run of each table that is one, as soon as it is read: as tables, 10,000 runs would take 100 MB.

    Runs that differ in their seeds alone have their settings in common.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    def __call__(self, tree: Row) -> Row | Run:
        if not {"arm", "seed", "data"} <= tree.keys():
            return tree
        settings = json.dumps({**tree, "seed": None})
        if settings not in self._known:
            self._known[settings] = dict(Run.model_validate_json(json.dumps(tree)))
        return Run(**{**self._known[settings], "seed": tree["seed"]})


def read_runs(study: Study, folder: Path) -> list[Run]:
    """The runs that a study's folder reports, of each arm and of its averaged weights.

    Of a search they are those at the points tried so far, twice if tried twice.
    """
    log = Log(folder / "trials.jsonl")
    runs: list[Run] = []
    for arm, group in groupby(study.runs, key=lambda run: run.arm):
        ours = list(group)
        asked = [event["values"] for event in log.events if event["arm"] == arm and event["event"] == "ask"]
        try:
            made = [run.at(values) for values in asked for run in ours] if ours[0].values else ours
        except UserError:
            raise damaged(log.path) from None
        runs += made + [average for run in made if (average := run.average) is not None]
    found = {"/".join(path.parts[1:-1]) for path in files_below(folder, "runs/*/*/seed*/result.json")}
    if study.sweep is not None and found - {run.folder for run in runs}:
        raise RecordError(f"{log.path}: lacks points that were tried: 'sweep --resume' adds them")
    return runs


def _check_links(folder: Path) -> None:
    """Refuses a symbolic link in the place of a folder of runs: the study would overwrite files elsewhere."""
    runs = folder / "runs"
    inside = (Path(parent, name) for parent, folders, files in os.walk(runs) for name in (*folders, *files))
    for path in (folder / "stacks", runs, *inside):
        if path.is_symlink() and not path.is_file():  # it leads to a folder, or to nothing
            raise RecordError(f"{path}: must be a folder, is a symbolic link: remove it")


def _is_ours(name: str) -> bool:
    return is_lock(name) or name.endswith(".part")


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
        "processes": ranks.count(),
    }


@cache
def _commit() -> str | None:
    if IS_INSTALLED:  # a repository around it is another one
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
