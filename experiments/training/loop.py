"""The training loop, in the order of execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from experiments.config import Run
from experiments.training import build, data
from experiments.training.measure import describe, evaluate, penalties
from experiments.training.progress import Progress
from experiments.training.record import Record, Row
from torchreg import Regularizer


@dataclass(frozen=True)
class Autocast:
    """Mixed precision: half precision where it is safe, with scaled gradients for float16."""

    device: str
    scaler: torch.amp.GradScaler

    def context(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.float16 if self.device == "cuda" else torch.bfloat16)


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    split: data.Split,
    batches: Sequence[Tensor],
    in_loss: Sequence[Regularizer] = (),
    amp: Autocast | None = None,
    each_step: LRScheduler | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Makes a step for each batch of the examples; returns the losses, which are read after the epoch.

    Args:
        model: is set to training mode.
        optimizer: of its parameters.
        split: inputs and targets.
        batches: positions in the split.
        in_loss: regularizers of mode "loss".
        amp: mixed precision, if any.
        each_step: a learning rate's schedule that counts steps, if any.
        criterion: the mean loss of a batch, from outputs and targets.
        augment: alters a batch at random, if anything does.
    """
    model.train()
    losses: list[Tensor] = []
    for batch in batches:
        optimizer.zero_grad()
        x, y = split.x[batch], split.y[batch]
        if augment is not None:
            x, y = augment(x, y)
        with nullcontext() if amp is None else amp.context():
            loss = criterion(model(x), y)
        for regularizer in in_loss:
            loss = loss + regularizer.value()
        if amp is None:
            loss.backward()
            optimizer.step()
        else:
            amp.scaler.scale(loss).backward()
            amp.scaler.step(optimizer)
            amp.scaler.update()
        losses.append(loss.detach())  # not read: a step need not wait for the device
        if each_step is not None:
            each_step.step()
    return torch.stack(losses)


def train(run: Run, device: torch.device, record: Record, watch: Callable[[Row], bool] | None = None) -> Row:
    """Trains one run, from its checkpoint if it has one, and returns the result it recorded.

    ``watch`` gets the figures of each epoch except the last; it prunes the run if it returns True.

    On the CPU a run that was killed and resumed ends with the bits of one that was not, given the same number of
    threads: a checkpoint holds the whole state, down to torch's random generators.
    """
    examples = data.load(run.data, device)
    augment = build.augmentation(run.data, examples)
    torch.manual_seed(run.seed)
    model = build.model(run.model, examples).to(device)
    optimizer = build.optimizer(run.optimizer, model)
    scheduler, each_step = build.scheduler(run.scheduler, optimizer)
    regularizers = build.regularizers(run, model, optimizer)
    tuned = build.auto_strength(run.auto_strength, regularizers, optimizer, examples)
    steps = -(-len(examples.train) // run.train.batch_size)
    controller = build.controller(run.sparsity, optimizer, steps=run.train.epochs * steps)
    rates = build.dropout_schedule(run.dropout_schedule, model, optimizer)
    in_loss = [regularizer for regularizer in regularizers if regularizer.mode == "loss"]
    scaler = torch.amp.GradScaler(device.type, enabled=run.train.amp and device.type == "cuda")
    amp = Autocast(device.type, scaler) if run.train.amp else None
    shuffle = torch.Generator().manual_seed(run.seed)

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "controller": controller}
    parts |= {"dropout_schedule": rates, "auto_strength": tuned}
    parts |= {f"regularizers.{i}": regularizer for i, regularizer in enumerate(regularizers)}
    progress = Progress(run, parts, shuffle, record, device)
    progress.restore(record.begin(run, device))
    ends = partial(describe, examples=examples)

    bar = tqdm(total=run.train.epochs, initial=progress.epoch, desc=run.folder, unit="epoch", leave=False, disable=None)
    with bar:
        while not progress.is_over:
            if watch is not None and progress.last and watch(progress.last):
                return progress.pruned(ends)
            order = torch.randperm(len(examples.train), generator=shuffle).to(device)
            losses = train_epoch(
                model,
                optimizer,
                examples.train,
                order.split(run.train.batch_size),
                in_loss,
                amp,
                scheduler if each_step else None,
                examples.task.loss,
                augment,
            )
            if scheduler is not None and not each_step:
                scheduler.step()

            figures = evaluate(model, examples)
            broken = (~losses.isfinite()).nonzero().flatten().tolist()
            if broken or not all(map(math.isfinite, figures.values())):
                last = progress.epoch * steps + (broken[0] if broken else steps - 1) + 1
                what = f"the loss is {losses[broken[0]].item()} at" if broken else "the weights are not finite after"
                return progress.diverged(f"{what} step {last} (epoch {progress.epoch + 1})")
            strengths = {} if tuned is None else {"strengths": tuned.strengths}
            progress.advance({**figures, **examples.task.mark, "penalty": penalties(regularizers), **strengths})
            bar.update()
    return progress.finish(ends)
