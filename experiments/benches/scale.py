"""Studies of very many runs: what their commands take of time and memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from .. import config
from ..config import Run, Study
from ..config.sections import Tree
from ..config.toml import dumped
from ..errors import UserError
from ..running.study import run_study
from ..training.record import Record, load_sealed, open_study
from .timing import Row, Table, growing

SIZES = (1_000, 3_000, 10_000)  # runs
ORIGINALS = 3  # seeds of each arm and strength that are really trained
_CPU = torch.device("cpu")
_PENALTIES, _MODES = ("L1", "L2"), ("loss", "grad", "decoupled", "prox")
_STRENGTHS = (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def tables() -> Iterator[Table]:
    """The commands on recorded studies of growing size, and first what importing torch alone takes."""
    yield Table("import torch", (measured("python", ["-c", "import torch"]),), figure="GiB")
    for size in SIZES:
        yield from recorded(size)


def recorded(size: int) -> Iterator[Table]:
    """The seconds of each command on a study of about so many recorded runs, and its peak of resident memory."""
    with tempfile.TemporaryDirectory() as place:
        made = make(Path(place), size)
        count = len(made.study.runs)
        rows = (measured(name, arguments) for name, arguments in made.commands.items())
        for table in growing(f"{count:,} recorded runs: the peak of resident memory, and the time", rows):
            page = (made.folders[0] / "report.html").stat().st_size / 1e6
            yield Table(table.title, table.rows, f"the page has {page:.1f} MB", figure="GiB")


class Made(NamedTuple):
    """A recorded study in two folders, as from two machines."""

    file: Path
    study: Study
    folders: Sequence[Path]

    @property
    def commands(self) -> dict[str, list[str]]:
        """The commands that read it."""
        one, two = map(str, self.folders)
        given = {
            "report": ["report", one],
            "compare": ["compare", one, two],
            "run --resume": ["run", str(self.file), "--resume", "--out", one],
        }
        return {name: ["-m", __package__.rpartition(".")[0], *arguments] for name, arguments in given.items()}


def make(place: Path, runs: int, penalties: int = len(_PENALTIES), strengths: int = len(_STRENGTHS)) -> Made:
    """A study of about so many runs whose records are complete.

    A few seeds of each arm and strength are trained. The records of the others are copies of these in turn, under
    their own seeds.
    """
    arms = _arms(penalties, strengths)
    settings = 1 + (len(arms) - 1) * strengths
    study, originals = (config.resolve(_tree(arms, seeds)) for seeds in (-(-runs // settings), ORIGINALS))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        run_study(originals, place / "originals", _CPU)
    file = place / "scale.toml"
    file.write_text(dumped(_tree(arms, len(study.runs) // settings)))
    folders = place / "one", place / "two"
    for shift, folder in enumerate(folders):
        with open_study(study, folder, resume=False):
            for run in study.runs:
                original = Record(place / "originals" / "runs" / run.place / f"seed{(run.seed + shift) % ORIGINALS}")
                _copy(original, run, Record(folder / "runs" / run.folder, run))
    return Made(file, study, folders)


def _tree(arms: Sequence[Tree], seeds: int) -> Tree:
    return {
        "name": "scale",
        "seeds": list(range(seeds)),
        "data": {"name": "digits", "train_size": 300, "label_noise": 0.2},
        "model": {"name": "mlp", "hidden": [16]},
        "optimizer": {"name": "AdamW", "lr": 1e-2},
        "train": {"epochs": 10, "batch_size": 50, "stack": False},
        "arms": list(arms),
    }


def _arms(penalties: int, strengths: int) -> list[Tree]:
    varied = [
        {
            "name": f"{penalty}, {mode}",
            "strengths": list(_STRENGTHS[:strengths]),
            "regularizers": [{"penalty": penalty, "mode": mode}],
        }
        for penalty, mode in product(_PENALTIES[:penalties], _MODES)
    ]
    return [{"name": "none"}, *varied]


def _copy(original: Record, run: Run, record: Record) -> None:
    """Writes the record of a run as if it had gone as the original did."""
    result = original.result
    assert result is not None
    state, _ = load_sealed(original.folder / "checkpoint.pt")
    record.begin(run, _CPU)
    for row in original.history:
        record.append(row)
    record.save(run, state)
    record.finish(result)


# A process begins with the peak of the one that started it: so this one, which is large, has a small one start it.
_LAUNCHER = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=sys.stderr)
_, status, used = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - started, used.ru_maxrss)
"""


def measured(name: str, arguments: Sequence[str]) -> Row:
    """Python in a process of its own: its peak of resident memory in GiB, and its seconds.

    The peak is that of its largest process: a report draws in another one.
    """
    done = subprocess.run([sys.executable, "-c", _LAUNCHER, *arguments], capture_output=True, text=True, check=True)
    code, taken, most = map(float, done.stdout.split())
    if code:
        raise UserError(f"bench: {' '.join(arguments)} failed: {done.stderr.strip()}")
    peak = most * (1 if sys.platform == "darwin" else 1024) / 2**30
    return Row(name, peak, peak, peak, taken)
