"""A search over keys of a study: every point that Optuna chooses, with all seeds, in one folder."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from statistics import fmean

import torch

from ..config import Run, Study
from ..config.names import point_of
from ..errors import UserError
from ..training.bars import Bar
from ..training.record import Log, Record, open_study
from ..training.storage import files_below, is_local
from . import search
from .catalog import counts
from .engines import Engine, Local, outcomes
from .rehearsal import check
from .search import Search
from .tasks import Outcome, Setting


def run_sweep(
    study: Study,
    folder: Path,
    device: torch.device,
    resume: bool = False,
    engine: Engine | None = None,
    storage: str | None = None,
) -> list[str]:
    """Makes every run that is not finished; returns a line for each error.

    With an engine that makes several runs at a time, the points of a grid and those drawn at random are the same, in
    whatever order; other samplers learn from what is known when they are asked.

    Args:
        study: the study.
        folder: for its records.
        device: on which its runs are made.
        resume: go on with a study in the folder.
        engine: where the runs are made; by default in this process.
        storage: of Optuna's, where the searches are; by default a journal in the folder.

    Raises:
        UserError: there is nothing to search, a run cannot be made, or the folder is not free; nothing has been
            written then.
    """
    if study.sweep is None:
        raise UserError("sweep: is missing: what to search, such as [sweep.space] 'optimizer.lr' = [1e-3, 1e-2]")
    if storage is None and not is_local(folder):
        raise UserError(f"--storage: is needed with {folder}, where no journal can be: such as sqlite:///FILE")
    search.check(study.sweep)
    data = check(study)
    if storage is not None:
        search.opened(storage)
    is_share = data.task == "classes"
    with open_study(study, folder, resume), (engine or Local()).open(folder, device) as pool:
        data.begin(folder)
        searches = _searches(study, folder, storage)
        _reopen(study, searches, folder)
        tasks = _tasks(study, searches)
        total = sum(counts(study).values())
        seeds = len({run.seed for run in study.runs})
        known = seeds * sum(len(one.told) for one in searches.values())
        faults = []
        with Bar(study.name, total, "run", done=known) as bar:
            for outcome in outcomes(pool, lambda: next(tasks, None)):
                first = outcome.task.runs[0]
                line, is_fault = _told(outcome, searches, is_share)
                faults += [f"{first.place}: {line}"] if is_fault else []
                bar.write(f"{f'{first.arm} {point_of(first.point)}':<40} {line}")
                bar.note = _best(searches.values(), is_share)
                bar.update(len(outcome.task.runs))
        return faults + [fault for one in searches.values() if (fault := _fault(one))]


def _searches(study: Study, folder: Path, storage: str | None) -> dict[str, Search]:
    search.opened.cache_clear()  # the folder may have been replaced since
    log, where = Log(folder / "trials.jsonl"), search.address_of(storage, folder)
    return {
        arm: Search(arm, study.sweep, log, where, search.name_of(study.name, arm, storage, folder))
        for arm in dict.fromkeys(run.arm for run in study.runs if run.values)
        if study.sweep is not None
    }


def _reopen(study: Study, searches: Mapping[str, Search], folder: Path) -> None:
    """Lets the searches try the points again whose records are missing, as where their folders were removed."""
    made = {"/".join(path.parts[1:-1]) for path in files_below(folder, "runs/*/*/seed*/result.json")}
    for arm, ours in searches.items():
        runs = [run for run in study.runs if run.arm == arm]
        lost = [
            trial.number
            for trial, status, _ in ours.told
            if not _is_recorded([run.at(dict(trial.values)) for run in runs], status, made, folder)
        ]
        for number in lost:
            ours.reopen(number)
        if lost:
            points = "1 point is" if len(lost) == 1 else f"{len(lost)} points are"
            print(f"note: {arm}: {points} made again, whose records are missing", file=sys.stderr)


def _is_recorded(runs: Sequence[Run], status: str, made: Collection[str], folder: Path) -> bool:
    """Whether all runs of a point that has ended are there: of one that was given up, those up to the one that was."""
    count = len(list(takewhile(lambda run: run.folder in made, runs)))
    if count == len(runs) or status == "done" or not count:
        return count == len(runs)
    last = Record(folder / "runs" / runs[count - 1].folder).result
    return last is not None and last["status"] != "done"


def _tasks(study: Study, searches: dict[str, Search]) -> Iterator[Setting]:
    for _, group in groupby(study.runs, key=lambda run: run.place):
        runs = list(group)
        if (ours := searches.get(runs[0].arm)) is None:
            yield Setting(runs)
            continue
        for trial in ours.trials():
            here = [run.at(dict(trial.values)) for run in runs]
            yield Setting(here, ours.judge(trial.number), trial.number)


def _told(outcome: Outcome, searches: Mapping[str, Search], is_share: bool) -> tuple[str, bool]:
    """Reports the outcome of a trial to the search; returns it as text, and whether it is an error of the study."""
    task, results = outcome.task, outcome.result
    ours = searches.get(task.runs[0].arm)
    if outcome.failure is not None:  # the search is not told of a failure: --resume tries the point again
        return f"failed: {outcome.failure}", True
    last = results[-1]
    metric = ours.sweep.metric if ours is not None else "valid_error"
    if last["status"] == "failed":
        return f"failed: {last['reason']}", True
    value = None if last["status"] == "diverged" else fmean(result[metric] for result in results)
    if ours is not None:
        ours.tell(task.number, last["status"], value)
    if value is None:
        return f"diverged: {last['reason']}", ours is None
    return _shown(metric, value, is_share) if last["status"] == "done" else f"pruned after epoch {last['epoch']}", False


def _best(searches: Iterable[Search], is_share: bool) -> str:
    """The lowest metric so far, with its point."""
    done = [(value, one, trial) for one in searches for trial, status, value in one.told if status == "done"]
    if not done:
        return ""
    value, one, trial = min(done, key=lambda found: found[0])
    return f"best {_shown(one.sweep.metric, value, is_share)} ({one.arm}, {point_of(trial.values)})"


def _fault(search: Search) -> str:
    """The message for a search without any finished point."""
    statuses = [status for _, status, _ in search.told]
    if "done" in statuses or not search.is_over or search.open:
        return ""
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("diverged", "pruned") if status in statuses)
    return f"{search.arm}: no point came to its end: {counts}"


def _shown(metric: str, value: float, is_share: bool) -> str:
    if metric == "valid_loss":
        return f"validation loss {value:.4f}"
    return f"validation error {100 * value:.2f} %" if is_share else f"validation RMSE {value:.4g}"
