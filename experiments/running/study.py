"""A study: all runs, one after another, in one folder."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .. import config
from ..config import Run, Study
from ..errors import RecordError, UserError, oneline
from ..training import build, ranks, solving
from ..training.bars import Bar
from ..training.data import Examples
from ..training.files import sealed, unsealed, write
from ..training.loop import train
from ..training.losses import check_loss
from ..training.measure import describe
from ..training.metrics import named_by
from ..training.record import Record, Row, open_study
from ..training.setup import losses
from ..training.solving import solve
from ..training.together import side_by_side
from . import stacks

BROKEN = ("diverged", "failed")
_REHEARSED = 100_000  # steps of a schedule that are tried before the study begins
_MEASURED = 1000  # validation examples on which metrics are tried


def run_study(study: Study, folder: Path, device: torch.device, resume: bool = False) -> list[str]:
    """Makes every run that is not finished; returns a line for each that diverged or failed.

    Raises:
        UserError: a run cannot be made, or the folder is not free; nothing has been written then. Or a record is
            damaged or cannot be written.
    """
    known = check(study)
    broken = []
    with ranks.held_by_first(open_study(study, folder, resume)), Bar(study.name, len(study.runs), "run") as bar:
        ranks.by_first(known.begin)(folder)
        for group in stacks.groups(study.runs):
            together = stacks.make_together(group, folder, device)
            if together:
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
    except (RecordError, ranks.LostError):
        raise
    except (Exception, SystemExit) as error:  # whatever a run raises is its own fault, and not that of the others
        ranks.check_all_failed(error)
        for own, other in ((run.average, record.of_average(run)), (run, record)):
            if own is not None and other is not None:
                result = other.fail(own, device, oneline(error), time.monotonic() - started)
        return result, True


@dataclass(frozen=True)
class Known:
    """What the rehearsal tells of the data: the task, and of the user's own data a line of text and a digest."""

    task: str
    texts: Sequence[str]
    digests: Mapping[str, str]

    def begin(self, folder: Path) -> None:
        """Says what the user's own data was taken for; the first time it notes its digests, later it compares them.

        Raises:
            UserError: the data is not that with which the study began.
        """
        for text in self.texts:
            tqdm.write(text)
        path = folder / "data.json"
        before = unsealed(path) if path.exists() else {}
        for settings, digest in self.digests.items():
            if before.get(settings, digest) != digest:
                source = config.Data.model_validate_json(settings).source
                raise UserError(
                    f"data: {source} gives other examples than when the study in {folder} began: "
                    "restore it, or choose another folder"
                )
        if self.digests and not self.digests.items() <= before.items():
            write(path, sealed(json.dumps({**before, **self.digests}, indent=2)))


def check(study: Study) -> Known:
    """Tries every arm on the CPU, so that errors in the last arm appear before the first arm runs."""
    tasks: dict[str, str] = {}
    texts: dict[str, str] = {}
    digests: dict[str, str] = {}
    for run in study.probes:
        try:
            examples = _rehearse(run)
        except UserError as error:
            at = f" (at {', '.join(f'{key} = {value!r}' for key, value in run.values.items())})" if run.values else ""
            lines = [f"arms[{run.arm}].{line}{at}" for line in str(error).splitlines()]
            raise UserError("\n".join(lines)) from error
        tasks.setdefault(examples.task.name, run.arm)
        settings = run.data.model_dump_json(by_alias=True, exclude_defaults=True)
        if run.data.is_own and settings not in texts:
            texts[settings], digests[settings] = examples.text, examples.digest
    if len(tasks) > 1:
        arms = ", ".join(f"arms[{arm}] {name}" for name, arm in tasks.items())
        raise UserError(f"data: must have the same task in all arms, which one report compares, got {arms}")
    return Known(next(iter(tasks)), list(dict.fromkeys(texts.values())), digests)


def _rehearse(run: Run) -> Examples:
    """Builds the run and makes a step with its largest and its smallest batch, or with a process's share of them."""
    ranks.check(run)
    examples = build.examples(run, torch.device("cpu"))
    augment = build.augmentation(run.data, examples)
    torch.manual_seed(run.seed)
    model = build.network(run, examples)
    optimizer = build.optimizer(run.optimizer, model)
    scheduler, each_step = build.scheduler(run.scheduler, optimizer)
    regularizers = build.regularizers(side_by_side([run]), model, optimizer)
    build.auto_strength(run.auto_strength, regularizers, optimizer, examples)
    activities = build.activities(run, model)
    build.controller(run.sparsity, optimizer, steps=1)
    build.dropout_schedule(run.dropout_schedule, model, optimizer)
    build.average(run.train, model, optimizer, examples)
    metrics = named_by(run.train.metrics, examples.task, torch.device("cpu"))
    size = run.train.batch_size
    try:
        for whole in {min(size, len(examples.train)), len(examples.train) % size or size}:
            count = max(1, whole // ranks.count())
            x, y = examples.train.x[:count].clone(), examples.train.y[:count]
            if augment is not None:
                x, y = augment(x, y)
            outputs = model(x)
            if outputs.shape != (wanted := (len(y), examples.task.outputs)):
                raise ValueError(f"its output must have the shape {wanted}, got {tuple(outputs.shape)}")
            check_loss(examples.task, outputs, y)
            loss = losses(model, examples.task, outputs, y)
            for activity in activities:
                loss = loss + activity.value()
            loss.backward()
            optimizer.step()
        describe(model, examples)
        if metrics is not None:
            with torch.no_grad():
                metrics.check(model.eval()(examples.valid.x[:_MEASURED].clone()), examples.valid.y[:_MEASURED])
        if run.train.solve:
            solve(model, examples, solving.strength(run, model, regularizers))
    except UserError:  # of the loss, a metric, or what is solved for
        raise
    except (Exception, SystemExit) as error:  # whatever a user's model raises
        raise UserError(f"model: cannot be trained on {tuple(x.shape)} {examples.noun}: {oneline(error)}") from error
    if scheduler is not None:
        steps = -(-len(examples.train) // (size * run.train.accumulate))
        count = run.train.epochs * (steps if each_step else 1)
        try:
            with warnings.catch_warnings(action="ignore"):
                for _ in range(min(count, _REHEARSED)):
                    scheduler.step()
        except Exception as error:
            raise UserError(f"scheduler: cannot make the {count} steps of the run: {oneline(error)}") from error
    return examples


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
    errors = result["train_error"], result["test_error"]
    is_share = result.get("task", "classes") == "classes"
    train, test = (f"{100 * error:5.1f} %" if is_share else f"RMSE {error:.4g}" for error in errors)
    return f"train {train}   test {test}   {result['epochs']} epochs in {result['seconds']:.1f} s"
