"""Training the members of a stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.ensemble.stacked import Stacked
from torchreg.tuning.path.losses import member_losses
from torchreg.tuning.path.problem import Problem, measure
from torchreg.tuning.path.solver import solve


def fit(stack: Stacked, strengths: Sequence[float], problem: Problem, steps: int | None = None) -> None:
    """Trains each member at its strength on the same batches; ``steps`` limits the number of steps.

    A member that does not improve on the validation examples for ``patience`` epochs stops with its best values.
    """
    if problem.optimizer is None:
        solve(stack, strengths, problem, steps or problem.epochs)
        return
    losses = member_losses(stack, problem.criterion)
    regularizer = problem.regularizer(stack, strengths)
    optimizer = problem.optimizer(stack.parameters())
    if problem.mode != "loss":
        regularizer.attach(optimizer)
    stopping = Stopping(stack, problem.patience) if problem.patience else None
    order, made = torch.Generator().manual_seed(problem.seed), 0
    x, y = problem.train
    stack.train()
    for _ in range(problem.epochs):
        chosen = torch.randperm(len(y), generator=order, device="cpu").to(y.device)
        for batch in chosen.split(problem.batch_size or len(y)):
            optimizer.zero_grad()
            loss = losses(stack(x[batch]), y[batch])
            if problem.mode == "loss":
                loss = loss + regularizer.value()
            loss.sum().backward()
            optimizer.step()
            made += 1
            if made == steps:
                return
        if stopping is not None and stopping.after_epoch(measure(stack, problem.criterion, problem.valid)[0]):
            break
    if stopping is not None:
        stopping.take_best()


class Stopping:
    """Early stopping of each member separately."""

    def __init__(self, stack: Stacked, patience: int) -> None:
        self.stack, self.patience = stack, patience
        self.lowest = [float("inf")] * len(stack)
        self.best: list[dict[str, Tensor]] = [{} for _ in range(len(stack))]
        self.waited = [0] * len(stack)

    def after_epoch(self, losses: Tensor) -> bool:
        """Records each member's validation loss; returns whether all members have stopped."""
        for member, loss in enumerate(losses.tolist()):
            if member in self.stack.frozen:
                continue
            self.waited[member] += 1
            if loss < self.lowest[member]:
                self.lowest[member], self.waited[member] = loss, 0
                self.best[member] = self.stack.state_of(member)
            elif self.waited[member] >= self.patience:
                self.stack.load_member(member, self.best[member])
                self.stack.freeze(member)
        return len(self.stack.frozen) == len(self.stack)

    def take_best(self) -> None:
        """Gives each member the values of its best epoch; a member without a finite loss keeps its last values."""
        for member, state in enumerate(self.best):
            if state and member not in self.stack.frozen:
                self.stack.load_member(member, state)
