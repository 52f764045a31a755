"""The rehearsal of a study: what every arm needs is built and tried before the first run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import config
from ..config import Run, Study
from ..errors import UserError, oneline
from ..training import build, continual, graphs, ranks, solving
from ..training.data import Examples, Split
from ..training.files import sealed, unsealed, write
from ..training.losses import check_loss
from ..training.measure import describe
from ..training.metrics import named_by
from ..training.setup import losses
from ..training.solving import solve
from ..training.storage import exists
from ..training.together import side_by_side

_REHEARSED = 100_000  # steps of a schedule that are tried before the study begins
_REMEMBERED = 2  # examples whose Fisher information is computed
_MEASURED = 1000  # validation examples on which metrics are tried


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
        before = unsealed(path) if exists(path) else {}
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
            lines = [_placed(line, run, study) + at for line in str(error).splitlines()]
            raise UserError("\n".join(lines)) from error
        tasks.setdefault(examples.task.name, run.arm)
        settings = run.data.model_dump_json(by_alias=True, exclude_defaults=True)
        if run.data.is_own and settings not in texts:
            texts[settings], digests[settings] = examples.text, examples.digest
    if len(tasks) > 1:
        arms = ", ".join(f"arms[{arm}] {name}" for name, arm in tasks.items())
        raise UserError(f"data: must have the same task in all arms, which one report compares, got {arms}")
    (task,) = tasks
    if study.published is not None:
        study.published.check_task(task)
    return Known(task, list(dict.fromkeys(texts.values())), digests)


def _placed(line: str, run: Run, study: Study) -> str:
    """The line of an error with the arm, whose key it begins with unless all of several arms have it in common."""
    path = line.partition(":")[0].split(".")
    in_all = {other.arm: _value_at(other, path) for other in study.probes}
    if len(in_all) > 1 and all(own == in_all[run.arm] is not None for own in in_all.values()):
        return f"{line} (tried in arm {run.arm!r})"
    return f"arms[{run.arm}].{line}"


def _value_at(run: Run, path: Sequence[str]) -> Any:
    """What a run has at a key, or at the last table on the way to it."""
    tree: Any = run.model_dump(by_alias=True)
    for part in path:
        if isinstance(tree, tuple) and part.isdecimal():
            tree = dict(enumerate(tree)).get(int(part))
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
    return tree


def _rehearse(run: Run) -> Examples:
    """Builds the run and makes a step with its largest and its smallest batch, or with a process's share of them."""
    ranks.check(run)
    continual.check(run)
    examples = build.examples(run, torch.device("cpu"))
    augment = build.augmentation(run.data, examples)
    torch.manual_seed(run.seed)
    model = build.network(run, examples)
    optimizer = build.optimizer(run.optimizer, model)
    scheduler, each_step = build.scheduler(run.scheduler, optimizer)
    rows = side_by_side([run])
    regularizers = build.regularizers(rows, model, optimizer)
    graphs.check(run, optimizer)
    build.auto_strength(run.auto_strength, regularizers, optimizer, examples)
    activities = build.activities(run, model)
    build.controller(run.sparsity, optimizer, 1, build.in_places(rows, regularizers))
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
        few = Split(examples.train.x[:_REMEMBERED], examples.train.y[:_REMEMBERED])
        on_weights = [own for own in run.regularizers if own.activity is None]
        continual.remember(regularizers, on_weights, model, examples, few)
        if run.train.solve:
            solve(model, examples, solving.ridge(run, model, regularizers))
    except UserError:  # of the loss, a metric, or what is solved for
        raise
    except (Exception, SystemExit) as error:  # whatever a user's model raises
        raise UserError(f"model: cannot be trained on {tuple(x.shape)} {examples.noun}: {oneline(error)}") from error
    if scheduler is not None:
        turns, epochs = continual.turns_of(run, examples), run.train.epochs
        steps = continual.steps_of(turns, size * run.train.accumulate, run.epochs_of_turn, epochs)
        count = steps if each_step else epochs
        try:
            with warnings.catch_warnings(action="ignore"):
                for _ in range(min(count, _REHEARSED)):
                    scheduler.step()
        except Exception as error:
            raise UserError(f"scheduler: cannot make the {count} steps of the run: {oneline(error)}") from error
    return examples
