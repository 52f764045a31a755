"""Studies of very many runs: what their commands take of time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
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
from ..running.engines import Engine, Local, Pool, Processes, Ray, outcomes
from ..running.study import run_study
from ..training.record import Record, load_sealed, open_study
from .timing import Clock, Row, Table, growing

SIZES = (1_000, 3_000, 10_000)  # runs
ORIGINALS = 3  # seeds of each arm and strength that are really trained
JOBS = (1, 2, 4)  # at a time
_COMMAND = ("-m", str(__package__).rpartition(".")[0])
_CPU = torch.device("cpu")
_PENALTIES, _MODES = ("L1", "L2"), ("loss", "grad", "decoupled", "prox")
_STRENGTHS = (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def tables(clock: Clock) -> Iterator[Table]:
    """The commands on recorded studies of growing size, and first what importing torch alone takes."""
    yield from workers()
    yield overhead()
    yield Table("import torch", (measured("python", ["-c", "import torch"]),), figure="GiB")
    for size in SIZES:
        yield from recorded(size)


def workers(runs: int = 8, epochs: int = 1000) -> Iterator[Table]:
    """A study of runs of some 10 s with one thread each, by several processes, and how much faster that is than by one.

    The seconds are those of the whole command, with the start of Python, the rehearsal and the report.
    """
    tree = _tree([{"name": "none"}], runs)
    train = {**tree["train"], "epochs": epochs, "evaluate_every": epochs}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "workers.toml"
        file.write_text(dumped({**tree, "model": {"name": "mlp", "hidden": [512, 512]}, "train": train}))
        rows: list[Row] = []
        for jobs in JOBS:
            given = ["run", str(file), "--out", f"{place}/{jobs}", "--jobs", str(jobs), "--device", "cpu"]
            taken = measured("", [*_COMMAND, *given], OMP_NUM_THREADS="1").seconds
            speedup = (rows[0].seconds if rows else taken) / taken
            rows.append(Row(f"{jobs} at a time, ideal {min(jobs, _cores())}", speedup, speedup, speedup, taken))
            title = f"{runs} runs of {rows[0].seconds / runs:.0f} s on {_cores()} cores, one thread each"
            yield Table(title, tuple(rows), figure="speed-up")


def overhead(tasks: int = 400) -> Table:
    """What an engine takes for a task that does nothing, after its start."""
    nothing, rows = _Nothing(config.resolve(_tree([{"name": "none"}], 1)).runs), []
    with ExitStack() as stack:
        engines: dict[str, Engine] = {"local": Local(), "processes, 2 at a time": Processes(2)}
        with suppress(UserError):  # Ray is not installed
            engines["ray, 2 at a time"] = stack.enter_context(Ray(jobs=2).connected())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "study.json").write_text("{}")  # which nodes look for
        for name, engine in engines.items():
            with engine.open(folder, _CPU) as pool:
                taken = [_seconds(pool, [nothing] * count) / count for count in (4, tasks)]  # the first ones start it
                rows.append(Row(name, 1e3 * taken[1], 1e3 * taken[1], 1e3 * taken[1], taken[1]))
    return Table(f"a task that does nothing, of {tasks}", tuple(rows), figure="ms")


@dataclass(frozen=True)
class _Nothing:
    runs: Sequence[Run]

    def perform(self, folder: Path, device: torch.device) -> None:
        """Does nothing."""


def _seconds(pool: Pool, tasks: list[_Nothing]) -> float:
    started = time.perf_counter()
    for _ in outcomes(pool, lambda: tasks.pop() if tasks else None):
        pass
    return time.perf_counter() - started


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recorded(size: int) -> Iterator[Table]:
    """The seconds of each command on a study of about so many recorded runs, and its peak of resident memory."""
    with tempfile.TemporaryDirectory() as place:
        made = make(Path(place), size)
        count = len(made.study.runs)
        rows = (measured(name, arguments) for name, arguments in made.commands.items())
        title = f"{count:,} recorded runs: the peak of resident memory, and the time"
        for table in growing(title, rows, made.commands, figure="GiB"):
            yield table
        page = (made.folders[0] / "report.html").stat().st_size / 1e6
        yield replace(table, note=f"the page has {page:.1f} MB")


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
        return {name: [*_COMMAND, *arguments] for name, arguments in given.items()}


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


def measured(name: str, arguments: Sequence[str], **environment: str) -> Row:
    """Python in a process of its own, with that in its environment: its peak of memory in GiB, and its seconds.

    The peak is that of its largest process: a report draws in another one.
    """
    command, env = [sys.executable, "-c", _LAUNCHER, *arguments], {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    code, taken, most = map(float, done.stdout.split())
    if code:
        raise UserError(f"bench: {' '.join(arguments)} failed: {done.stderr.strip()}")
    peak = most * (1 if sys.platform == "darwin" else 1024) / 2**30
    return Row(name, peak, peak, peak, taken)
