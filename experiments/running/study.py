"""A study: all its runs, made by an engine in one folder."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch

from ..config import Study
from ..errors import UserError
from ..training import ranks
from ..training.bars import Bar
from ..training.record import Row, open_study
from . import stacks
from .engines import Engine, Local, outcomes
from .rehearsal import check
from .tasks import Alone, Made, Outcome, Task, Together

BROKEN = ("diverged", "failed")


def run_study(
    study: Study, folder: Path, device: torch.device, resume: bool = False, engine: Engine | None = None
) -> list[str]:
    """Makes every run that is not finished; returns a line for each that diverged or failed.

    Args:
        study: the study.
        folder: for its records.
        device: on which its runs are made.
        resume: go on with a study in the folder.
        engine: where the runs are made; by default in this process.

    Raises:
        UserError: a run cannot be made, or the folder is not free; nothing has been written then. Or a record is
            damaged or cannot be written.
    """
    known = check(study)
    broken: dict[str, str] = {}
    with (
        ranks.held_by_first(open_study(study, folder, resume)),
        Bar(study.name, len(study.runs), "run") as bar,
        (engine or Local()).open(folder, device) as pool,
    ):
        ranks.by_first(known.begin)(folder)
        waiting = deque[Task](_tasks(study))
        for outcome in outcomes(pool, lambda: waiting.popleft() if waiting else None):
            made, others = _made(outcome)
            waiting.extendleft(reversed(others))
            for run, (result, is_new) in made.items():
                bar.update(is_new=is_new)
                if result["status"] in BROKEN:
                    broken[run] = f"{result['status']}: {run}: {result['reason']}"
                if is_new:
                    bar.write(f"{run:<32} {_summary(result)}")
        ranks.by_first(stacks.tidy)(folder)
    return [broken[run.folder] for run in study.runs if run.folder in broken]


def _tasks(study: Study) -> Iterator[Task]:
    for group in stacks.groups(study.runs):
        if len(group) > 1 and group[0].train.stack is not False:
            yield Together(group)
        else:
            yield from map(Alone, group)


def _made(outcome: Outcome) -> tuple[dict[str, Made], list[Task]]:
    """The results that a task has brought, by the folders of the runs; and the tasks that take its place."""
    task, result, failure = outcome
    if isinstance(task, Together):
        if failure is not None:
            print(f"note: {len(task.runs)} runs are made one after another: {failure}", file=sys.stderr)
        made = {name: Made(row, is_new=True) for name, row in (result or {}).items()}
        return made, [Alone(run) for run in task.runs if run.folder not in made]
    if failure is not None:
        result = Made({"status": "failed", "reason": failure}, is_new=True)
    return {task.run.folder: result}, []


def pick_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``."""
    available = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not available:
        raise UserError(f"--device: cuda is not available here (torch {torch.__version__}): use cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _summary(result: Row) -> str:
    if result["status"] in BROKEN:
        return f"{result['status']}: {result['reason']}"
    errors = result["train_error"], result["test_error"]
    is_share = result.get("task", "classes") == "classes"
    train, test = (f"{100 * error:5.1f} %" if is_share else f"RMSE {error:.4g}" for error in errors)
    return f"train {train}   test {test}   {result['epochs']} epochs in {result['seconds']:.1f} s"
