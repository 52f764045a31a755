"""What a training needs: of one run, or of several that are trained as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import torchreg
from torchreg import Regularizer, Stacked

from .. import config
from ..config import Run
from . import build, continual, data, metrics, ranks, solving
from . import graphs as recorded
from .activity import Activity
from .averaging import Average
from .gradients import Clip
from .graphs import Graphs
from .metrics import Metrics
from .together import side_by_side


@dataclass(frozen=True)
class Autocast:
    """Mixed precision: half precision where it is safe, with scaled gradients for float16."""

    device: str
    scaler: torch.amp.GradScaler

    def context(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.float16 if self.device == "cuda" else torch.bfloat16)


@dataclass
class Setup:
    """The network of a run, or the stack of several, with all that acts on it."""

    examples: data.Examples
    model: nn.Module
    optimizer: Optimizer
    regularizers: list[Regularizer]
    penalized: list[list[config.Regularizer | None]]  # the settings of each regularizer in each run
    shuffles: list[torch.Generator]
    batch_size: int
    turns: list[data.Split]  # what is trained on: all examples, or those of one task after another
    epochs_of_turn: int
    turn: int = 0
    scheduler: LRScheduler | None = None
    is_each_step: bool = False
    tuned: torchreg.tuning.AutoStrength | None = None
    amp: Autocast | None = None
    augment: data.Augmentation | None = None
    activities: list[Activity] = field(default_factory=list)
    ridge: solving.Ridge | None = None  # with which the last layer is solved for; None: steps are made
    accumulate: int = 1
    clip: Clip | None = None
    average: Average | None = None
    metrics: Metrics | None = None
    graphs: Graphs | None = None
    gradients: ranks.Gradients | None = None
    unsharded: nn.Module | None = None  # a copy of a sharded model, for the weights of an epoch
    seed: int = 0
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def train(self) -> data.Split:
        """What is trained on now."""
        return self.turns[self.turn]

    @property
    def steps(self) -> int:
        """The number of steps in an epoch of now."""
        return continual.steps_of([self.train], self.batch_size * self.accumulate, 1, 1)

    def steps_before(self, epoch: int) -> int:
        """The number of steps in so many epochs."""
        return continual.steps_of(self.turns, self.batch_size * self.accumulate, self.epochs_of_turn, epoch)

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state that a checkpoint must contain."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler} | self.others
        parts["average"] = self.average
        parts |= {f"regularizers.{i}": regularizer for i, regularizer in enumerate(self.regularizers)}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def in_loss(self) -> list[Regularizer]:
        return [regularizer for regularizer in self.regularizers if regularizer.mode == "loss"]

    def batches(self) -> Sequence[Tensor]:
        """The positions of an epoch's examples, in a new order for each run; of a stack ``(members, batch)``."""
        count, device = len(self.train), self.train.y.device
        orders = [torch.randperm(count, generator=shuffle) for shuffle in self.shuffles]
        order = torch.stack(orders) if isinstance(self.model, Stacked) else orders[0]
        batches: Sequence[Tensor] = order.to(device).split(self.batch_size, dim=-1)
        return batches

    def begin_epoch(self, epoch: int) -> None:
        """Turns to the next task, if it is due; lets each of several processes draw its own numbers in that epoch.

        Epochs are counted from 1. What is remembered of a task is taken here and not when it ends, so that the figures
        after its last epoch have the penalty of its steps.
        """
        turn, place = divmod(epoch - 1, self.epochs_of_turn)
        if turn and not place:
            each, learned = [row[0] for row in self.penalized], self.turns[turn - 1]
            continual.remember(self.regularizers, each, self.model, self.examples, learned)
        self.turn = turn
        if ranks.is_several():
            seed, device = ranks.seed_of(self.seed, epoch), self.examples.train.y.device
            torch.manual_seed(seed)
            build.seeded(self.model, seed, device)

    def whole_model(self) -> nn.Module:
        """The model; of a sharded one a copy in which all weights are whole."""
        if self.unsharded is None:
            return self.model
        self.unsharded.load_state_dict(ranks.whole(self.model.state_dict()))
        return self.unsharded

    def schedule_in(self, epoch: int) -> LRScheduler | None:
        """The schedule that counts the steps of that epoch, counted from 1, if any does."""
        is_ours = self.average is None or not self.average.sets_rate(epoch)
        return self.scheduler if self.is_each_step and is_ours else None

    def end_epoch(self, epoch: int) -> None:
        """Averages the weights and sets the learning rate after that epoch, counted from 1."""
        if self.average is not None:
            self.average.after_epoch(self.model, epoch)
            if self.average.sets_rate(epoch):
                return
        if self.scheduler is not None and not self.is_each_step:
            self.scheduler.step()


def set_up(runs: Sequence[Run], device: torch.device, stacked: bool = False) -> Setup:
    """Builds what the runs need; if they are stacked, they differ in their seeds and strengths alone."""
    first = runs[0]
    examples = build.examples(first, device)
    augment = build.augmentation(first.data, examples)  # may draw from torch's generator, before it is seeded
    models = []
    for run in runs:
        torch.manual_seed(run.seed)
        models.append(build.seeded(build.network(run, examples).to(device), run.seed, device))
    unsharded = deepcopy(models[0]) if ranks.is_several() and first.train.shard else None
    model = Stacked(models) if stacked else ranks.prepared(models[0], first)
    optimizer = build.optimizer(first.optimizer, model, like=models[0] if stacked else model)
    scheduler, is_each_step = build.scheduler(first.scheduler, optimizer)
    average = build.average(first.train, model, optimizer, examples)  # of the model before anything is attached to it
    rows = side_by_side(runs)
    regularizers = build.regularizers(rows, model, optimizer)
    penalized = [row for row in rows if not build.is_of_activities(row)]
    scaler = torch.amp.GradScaler(device.type, enabled=first.train.amp and device.type == "cuda")
    train = first.train
    turns = continual.turns_of(first, examples)
    made = Setup(examples, model, optimizer, regularizers, penalized, [], train.batch_size, turns, first.epochs_of_turn)
    made.scheduler, made.is_each_step = scheduler, is_each_step
    made.accumulate, made.average = train.accumulate, average
    made.tuned = build.auto_strength(first.auto_strength, regularizers, optimizer, examples)
    places, steps = build.in_places(rows, regularizers), made.steps_before(train.epochs)
    made.others = {
        "scaler": scaler,
        "controller": build.controller(first.sparsity, optimizer, steps, places),
        "dropout_schedule": build.dropout_schedule(first.dropout_schedule, model, optimizer),
        "auto_strength": made.tuned,
    }
    made.amp = Autocast(device.type, scaler) if train.amp else None
    if train.clip_norm is not None or train.clip_value is not None:
        made.clip = Clip(train.clip_norm, train.clip_value)
    made.metrics = metrics.named_by(train.metrics, examples.task, device)
    made.augment = augment
    made.activities = build.activities(first, model)
    made.ridge = solving.ridge(first, model, regularizers) if first.train.solve else None
    made.graphs = recorded.graphs(first, model, optimizer, device)
    made.gradients = ranks.gradients_of(model) if made.ridge is None else None
    made.unsharded, made.seed = unsharded, first.seed
    made.shuffles = [torch.Generator().manual_seed(run.seed) for run in runs]
    return made


def losses(model: nn.Module, task: data.Task, outputs: Tensor, y: Tensor) -> Tensor:
    """The mean loss of the outputs for the targets of a split; of a stack one for each member."""
    outputs, targets = task.limited(outputs, y), task.targets(y, outputs)
    if isinstance(model, Stacked):
        return model.per_member(task.loss, shared=False)(outputs, targets)
    return task.loss(outputs, targets)
