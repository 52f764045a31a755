"""The training loop, in the order of execution: of one run, or of several as one stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchreg import Regularizer, Stacked

from ..config import Run
from . import data, ranks
from .activity import Activity
from .averaging import Average
from .bars import Bar
from .gradients import Clip, shares
from .graphs import Batches, Graphs
from .measure import are_finite, describe, measured
from .outcomes import outcomes
from .progress import Progress, Store
from .record import Record, Row
from .setup import Autocast, Setup, losses, set_up
from .solving import solve

_CLASSES = data.Classes(2)  # whose loss is the cross-entropy, of any number of classes


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    split: data.Split,
    batches: Sequence[Tensor],
    in_loss: Sequence[Regularizer] = (),
    amp: Autocast | None = None,
    each_step: LRScheduler | None = None,
    task: data.Task = _CLASSES,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    accumulate: int = 1,
    clip: Clip | None = None,
    average: Average | None = None,
    activities: Sequence[Activity] = (),
    graphs: Graphs | None = None,
    gradients: ranks.Gradients | None = None,
) -> Tensor:
    """Makes a step for each batch of the examples, or for several; returns the losses, which are read after the epoch.

    Args:
        model: is set to training mode.
        optimizer: of its parameters.
        split: inputs and targets.
        batches: positions in the split; of a stack with a row for each member.
        in_loss: regularizers of mode "loss".
        amp: mixed precision, if any.
        each_step: a learning rate's schedule that counts steps, if any.
        task: knows the mean loss of a batch.
        augment: alters a batch at random, if anything does.
        accumulate: the batches of a step, whose loss is the mean over all their examples.
        clip: limits the gradient of the loss and of regularizers of mode "loss"; other modes act in the step.
        average: of the weights, if there is one.
        activities: penalties on the outputs of modules, which are means over a batch as its loss is.
        graphs: make the steps, if they are recorded.
        gradients: averages those of several processes, each of which has its share of every batch.

    Returns:
        The losses ``(steps,)``; of a stack ``(steps, members)``; of several processes those whose mean is the loss.
    """
    model.train()
    forward = model.each if isinstance(model, Stacked) else model

    def loss_of(x: Tensor, y: Tensor, share: Tensor | float | None, size: int, is_first: bool) -> Tensor:
        if isinstance(share, Tensor) and isinstance(task, data.Classes):
            y = task.counting(y, share)
        with nullcontext() if amp is None else amp.context():
            loss = losses(model, task, forward(x), y)
        for activity in activities:
            loss = loss + activity.value(ranks.weight(size))
        if share is not None:
            loss = (share * loss).to(loss.dtype)
        if is_first:  # a penalty counts once in a step
            for regularizer in in_loss:
                loss = loss + regularizer.value()
        return loss

    def step(group: Batches, whole: Sequence[int]) -> Tensor:
        optimizer.zero_grad()
        parts: list[Tensor] = []
        for (x, y), share, size in zip(group, shares(model, task, group, whole), whole, strict=True):
            compute = partial(loss_of, x, y, share, size, is_first=not parts)
            loss = compute() if gradients is None else gradients.of(compute, is_last=len(parts) == len(group) - 1)
            (loss.sum() if amp is None else amp.scaler.scale(loss.sum())).backward()
            parts.append(loss.detach())  # not read: a step need not wait for the device
        if clip is not None:
            if amp is not None:
                amp.scaler.unscale_(optimizer)
            clip(model)
        if amp is None:
            optimizer.step()
        else:
            amp.scaler.step(optimizer)
            amp.scaler.update()
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    made: list[Tensor] = []
    examples, sizes = split.batches(ranks.shares(batches)), iter([batch.shape[-1] for batch in batches])
    while group := list(islice(examples, accumulate)):
        if augment is not None:
            group = [augment(x, y) for x, y in group]
        compute = partial(step, whole=list(islice(sizes, accumulate)))
        made.append(compute(group) if graphs is None else graphs(compute, group))
        if average is not None:
            average.after_step(model)
        if each_step is not None:
            each_step.step()
    return torch.stack(made)


def make_steps(setup: Setup, batches: Sequence[Tensor], epoch: int = 1) -> Tensor:
    """:func:`train_epoch` with all that a run or a stack needs in that epoch, counted from 1.

    Or the last layer's solution in place of steps.
    """
    if setup.ridge is not None:
        return solve(setup.model, setup.examples, setup.ridge)
    return train_epoch(
        setup.model,
        setup.optimizer,
        setup.train,
        batches,
        in_loss=setup.in_loss,
        amp=setup.amp,
        each_step=setup.schedule_in(epoch),
        task=setup.examples.task,
        augment=setup.augment,
        accumulate=setup.accumulate,
        clip=setup.clip,
        average=setup.average,
        activities=setup.activities,
        graphs=setup.graphs,
        gradients=setup.gradients,
    )


def train(run: Run, device: torch.device, record: Record, watch: Callable[[Row], bool] | None = None) -> Row:
    """Trains one run, from its checkpoint if it has one, and returns the result it recorded.

    ``watch`` gets the figures of each epoch except the last; it prunes the run if it returns True.

    On the CPU a run that was killed and resumed ends with the bits of one that was not, given the same number of
    threads: a checkpoint holds the whole state, down to torch's random generators.
    """
    (result,) = train_together([run], device, [record], watch=watch)
    return result


def train_together(
    runs: Sequence[Run],
    device: torch.device,
    records: Sequence[Record],
    store: Store | None = None,
    watch: Callable[[Row], bool] | None = None,
) -> list[Row]:
    """Trains the runs as one stack, whose checkpoints are in the store; without a store, the one run alone."""
    setup = set_up(runs, device, stacked=store is not None)
    progress = Progress(runs, records, setup, device, store)
    progress.restore()
    examples = setup.examples

    def described(model: nn.Module) -> Row:
        return {**describe(model, examples), "outcomes": outcomes(model, examples)}

    total, name = runs[0].train.epochs, runs[0].folder if store is None else f"{len(runs)} runs"
    with Bar(name, total, "epoch", progress.epoch, len(runs)) as bar:
        while not progress.is_over:
            (first, *_) = progress.members
            if watch is not None and first.last and ranks.by_first(watch)(first.last):
                progress.prune(described)
                break
            found = []
            for epoch in range(progress.epoch + 1, progress.epoch + progress.next + 1):
                setup.begin_epoch(epoch)
                made = ranks.mean(make_steps(setup, setup.batches(), epoch))
                found.append(made.view(len(made), -1))
                setup.end_epoch(epoch)
            ranks.equalize(setup.model)
            rows, averaged = measured(setup), None
            if setup.average is not None and setup.average.is_begun:
                with setup.average.applied(setup.model):
                    averaged = measured(setup)
            faults = [
                _fault(own, figures, setup, progress.epoch)
                for own, figures in zip(torch.cat(found).unbind(1), rows, strict=True)
            ]
            progress.advance(rows, faults, described, averaged)
            bar.update(len(found))
    return progress.finish(described)


def _fault(losses: Tensor, figures: Row, setup: Setup, epoch: int) -> str | None:
    """Where the losses since that epoch, or the figures, are not finite, if they are not."""
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if not broken and are_finite(figures):
        return None
    place = broken[0] if broken else len(losses) - 1
    last = setup.steps_before(epoch) + place + 1
    parts = "weights" if are_finite(figures["penalty"]) else "weights or their penalty"
    what = f"the loss is {losses[broken[0]].item()} at" if broken else f"the {parts} are not finite after"
    return f"{what} step {last} (epoch {epoch + place // setup.steps + 1})"
