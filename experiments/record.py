"""What a run leaves behind: one folder, each file of it whole or not there at all.

config.json  environment.json  history.jsonl (a line an epoch)  checkpoint.pt  result.json (once it is done)
"""

from __future__ import annotations

import io
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import torchreg
from experiments.config import Run, Study
from experiments.errors import UserError

Row = dict[str, Any]


class Record:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, run: Run, device: torch.device) -> dict[str, Any] | None:
        """Prepares the folder; returns the checkpoint to go on from, or None for a fresh start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / "config.json", run.model_dump_json(by_alias=True, indent=2))
        write(self.folder / "environment.json", json.dumps(environment(device), indent=2))
        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            self._keep_history(0)
            return None
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        self._keep_history(state["epoch"])
        return state

    def append(self, row: Row) -> None:
        """Adds an epoch to the history."""
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, state: Row) -> None:
        """Replaces the checkpoint."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(self.folder / "checkpoint.pt", buffer.getvalue())

    def finish(self, result: Row) -> None:
        """Marks the run as done."""
        write(self.folder / "result.json", json.dumps(result, indent=2))

    @property
    def result(self) -> Row | None:
        """The result, if the run is done."""
        path = self.folder / "result.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    @property
    def environment(self) -> Row:
        return dict(json.loads((self.folder / "environment.json").read_text(encoding="utf-8")))

    @property
    def history(self) -> list[Row]:
        return list(self._rows())

    def _rows(self) -> Iterator[Row]:
        path = self.folder / "history.jsonl"
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def _keep_history(self, epochs: int) -> None:
        # What was written after the checkpoint is about to be computed again; a last line may be half written.
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:epochs] if path.exists() else []
        write(path, "".join(line + "\n" for line in lines))


def open_study(study: Study, folder: Path, resume: bool) -> None:
    """Makes the folder this study's own.

    Raises:
        UserError: it holds another study, other files, or this study while ``resume`` was not asked for.
    """
    file, text = folder / "study.json", study.model_dump_json(by_alias=True, indent=2)
    if file.exists():
        if file.read_text(encoding="utf-8") != text:
            raise UserError(
                f"--out: {folder} must be empty or hold this study, it holds another: choose another folder"
            )
        if not resume:
            raise UserError(
                f"--out: {folder} already holds this study: --resume continues it, or choose another folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out: {folder} must be empty or hold this study, it holds other files")
    folder.mkdir(parents=True, exist_ok=True)
    write(file, text)


def read_study(folder: Path) -> Study:
    """The study that a folder holds."""
    file = folder / "study.json"
    if not file.exists():
        raise UserError(f"{folder}: holds no study (no study.json): give the folder that 'run' wrote")
    return Study.model_validate_json(file.read_text(encoding="utf-8"))


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run was made: what its numbers may depend on."""
    return {
        "torchreg": torchreg.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all, even if the process is killed midway."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def _commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
