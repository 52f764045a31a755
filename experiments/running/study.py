"""A study: all runs, one after another, in one folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from experiments.config import Run, Study
from experiments.errors import RecordError, UserError, oneline
from experiments.running import stacks
from experiments.training import build, data
from experiments.training.bars import Bar
from experiments.training.loop import train
from experiments.training.measure import describe
from experiments.training.record import Record, Row, open_study

BROKEN = ("diverged", "failed")
_REHEARSED = 100_000  # steps of a schedule that are tried before the study begins


def run_study(study: Study, folder: Path, device: torch.device, resume: bool = False) -> list[str]:
    """Makes every run that is not finished; returns a line for each that diverged or failed.

    Raises:
        UserError: a run cannot be made, or the folder is not free; nothing has been written then. Or a record is
            damaged or cannot be written.
    """
    check(study)
    broken = []
    with open_study(study, folder, resume), Bar(study.name, len(study.runs), "run") as bar:
        for group in stacks.groups(study.runs):
            together = stacks.make_together(group, folder, device)
            bar.update(len(together))
            for run in group:
                result, is_new = together.get(run.folder), True
                if result is None:
                    result, is_new = make_once(run, folder, device)
                    bar.update(is_new=is_new)
                if result["status"] in BROKEN:
                    broken.append(f"{result['status']}: {run.folder}: {result['reason']}")
                if is_new:
                    bar.write(f"{run.folder:<32} {_summary(result)}")
    return broken


def make_once(
    run: Run, folder: Path, device: torch.device, watch: Callable[[Row], bool] | None = None
) -> tuple[Row, bool]:
    """The result of a run, and whether it had to be made; one that failed before is made again."""
    record = Record(folder / "runs" / run.folder, run)
    before = record.result
    if before is not None and before["status"] != "failed":
        return before, False
    started = time.monotonic()
    try:
        return train(run, device, record, watch), True
    except RecordError:
        raise
    except (Exception, SystemExit) as error:  # whatever a run raises is its own fault, and not that of the others
        return record.fail(run, device, oneline(error), time.monotonic() - started), True


def check(study: Study) -> None:
    """Tries every arm on the CPU, so that errors in the last arm appear before the first arm runs."""
    for run in study.probes:
        try:
            _rehearse(run)
        except UserError as error:
            at = f" (at {', '.join(f'{key} = {value!r}' for key, value in run.values.items())})" if run.values else ""
            lines = [f"arms[{run.arm}].{line}{at}" for line in str(error).splitlines()]
            raise UserError("\n".join(lines)) from error


def _rehearse(run: Run) -> None:
    """Builds the run and makes a step with its largest and its smallest batch."""
    images = data.load(run.data, torch.device("cpu"))
    torch.manual_seed(run.seed)
    model = build.model(run.model, images)
    optimizer = build.optimizer(run.optimizer, model)
    scheduler, each_step = build.scheduler(run.scheduler, optimizer)
    regularizers = build.regularizers([run], model, optimizer)
    build.auto_strength(run.auto_strength, regularizers, optimizer, images.valid)
    build.controller(run.sparsity, optimizer, steps=1)
    build.dropout_schedule(run.dropout_schedule, model, optimizer)
    size = run.train.batch_size
    try:
        for count in {min(size, len(images.train)), len(images.train) % size or size}:
            x, y = images.train.x[:count].clone(), images.train.y[:count]
            outputs = model(x)
            if outputs.shape != (len(y), images.classes):
                raise ValueError(
                    f"its output must have the shape {(len(y), images.classes)}, got {tuple(outputs.shape)}"
                )
            cross_entropy(outputs, y).backward()
            optimizer.step()
        describe(model)
    except (Exception, SystemExit) as error:  # whatever a user's model raises
        raise UserError(f"model: cannot be trained on {tuple(x.shape)} images: {oneline(error)}") from error
    if scheduler is not None:
        count = run.train.epochs * (-(-len(images.train) // size) if each_step else 1)
        try:
            with warnings.catch_warnings(action="ignore"):
                for _ in range(min(count, _REHEARSED)):
                    scheduler.step()
        except Exception as error:
            raise UserError(f"scheduler: cannot make the {count} steps of the run: {oneline(error)}") from error


def make(
    runs: Sequence[Run], folder: Path, device: torch.device, judge: Callable[[int, Row], bool] | None = None
) -> list[Row]:
    """Makes the unfinished runs of one setting, seed after seed, until one diverges, fails or is pruned.

    ``judge`` may give up a run, by its figures at a step: an epoch, counted over all seeds.
    """
    results: list[Row] = []
    for i, run in enumerate(runs):

        def watch(row: Row, before: int = i * run.train.epochs) -> bool:
            return judge is not None and judge(before + row["epoch"], row)

        results.append(make_once(run, folder, device, watch)[0])
        if results[-1]["status"] != "done":
            break
    return results


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
    return (
        f"train {100 * result['train_error']:5.1f} %   test {100 * result['test_error']:5.1f} %   "
        f"{result['epochs']} epochs in {result['seconds']:.1f} s"
    )
