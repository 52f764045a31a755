"""The training loop, in the order of execution: of one run, or of several as one stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments.config import Run
from experiments.training import data
from experiments.training.bars import Bar
from experiments.training.measure import describe, evaluate, penalties
from experiments.training.outcomes import outcomes
from experiments.training.progress import Progress, Store
from experiments.training.record import Record, Row
from experiments.training.setup import Autocast, Setup, losses, set_up
from torchreg import Regularizer, Stacked


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
        batches: positions in the split; of a stack with a row for each member.
        in_loss: regularizers of mode "loss".
        amp: mixed precision, if any.
        each_step: a learning rate's schedule that counts steps, if any.
        criterion: the mean loss of a batch, from outputs and targets.
        augment: alters a batch at random, if anything does.

    Returns:
        The losses ``(steps,)``; of a stack ``(steps, members)``.
    """
    model.train()
    forward = model.each if isinstance(model, Stacked) else model
    made: list[Tensor] = []
    for batch in batches:
        optimizer.zero_grad()
        x, y = split.x[batch], split.y[batch]
        if augment is not None:
            x, y = augment(x, y)
        with nullcontext() if amp is None else amp.context():
            loss = losses(model, criterion, forward(x), y)
        for regularizer in in_loss:
            loss = loss + regularizer.value()
        if amp is None:
            loss.sum().backward()
            optimizer.step()
        else:
            amp.scaler.scale(loss.sum()).backward()
            amp.scaler.step(optimizer)
            amp.scaler.update()
        made.append(loss.detach())  # not read: a step need not wait for the device
        if each_step is not None:
            each_step.step()
    return torch.stack(made)


def make_steps(setup: Setup, batches: Sequence[Tensor]) -> Tensor:
    """:func:`train_epoch` with all that a run or a stack needs."""
    each_step = setup.scheduler if setup.is_each_step else None
    split, criterion = setup.examples.train, setup.examples.task.loss
    return train_epoch(
        setup.model, setup.optimizer, split, batches, setup.in_loss, setup.amp, each_step, criterion, setup.augment
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
    with Bar(name, total, "epoch", done=progress.epoch) as bar:
        while not progress.is_over:
            (first, *_) = progress.members
            if watch is not None and first.last and watch(first.last):
                progress.prune(described)
                break
            found = []
            for _ in range(progress.next):
                made = make_steps(setup, setup.batches())
                found.append(made.view(len(made), -1))
                if setup.scheduler is not None and not setup.is_each_step:
                    setup.scheduler.step()
            strengths = {} if setup.tuned is None else {"strengths": setup.tuned.strengths}
            rows = [
                {**figures, **examples.task.mark, "penalty": penalty, **strengths}
                for figures, penalty in zip(evaluate(setup.model, examples), penalties(setup), strict=True)
            ]
            faults = [
                _fault(own, figures, progress.epoch, setup.steps)
                for own, figures in zip(torch.cat(found).unbind(1), rows, strict=True)
            ]
            progress.advance(rows, faults, described)
            bar.update(len(found))
    return progress.finish(described)


def _fault(losses: Tensor, figures: Row, epoch: int, steps: int) -> str | None:
    """Where the losses since that epoch, or the figures, are not finite, if they are not."""
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if not broken and all(math.isfinite(value) for value in figures.values() if isinstance(value, float)):
        return None
    last = epoch * steps + (broken[0] if broken else len(losses) - 1) + 1
    what = f"the loss is {losses[broken[0]].item()} at" if broken else "the weights are not finite after"
    return f"{what} step {last} (epoch {(last - 1) // steps + 1})"
