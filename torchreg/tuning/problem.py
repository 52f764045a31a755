"""What is to be minimized, and how the members of a stack are trained to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.parameters import ParamInfo
from torchreg.penalties import Penalty
from torchreg.regularizer import Mode, Regularizer
from torchreg.selectors import Selector
from torchreg.stacked import Stacked

Examples = tuple[Tensor, Tensor]
Criterion = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """Training examples, a loss, a penalty of strength 1, and how to get to the minimum."""

    train: Examples
    valid: Examples
    criterion: Criterion
    penalty: Penalty | Mapping[str, Penalty]
    mode: Mode
    select: Selector | Callable[[ParamInfo], bool]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None  # None: full batches, to the minimum
    epochs: int
    batch_size: int | None
    patience: int | None
    tolerance: float
    seed: int

    @property
    def batches(self) -> int:
        """How many an epoch has."""
        return -(-len(self.train[1]) // (self.batch_size or len(self.train[1])))

    def regularizer(self, stack: Stacked, strengths: Sequence[float]) -> Regularizer:
        """The penalty on each member at its strength."""
        regularizer = Regularizer(stack, self.penalty, mode=self.mode, select=self.select)
        regularizer.scale = torch.tensor(strengths, dtype=torch.float64)
        return regularizer


@torch.no_grad()
def measure(stack: Stacked, criterion: Criterion, examples: Examples, at_once: int = 4096) -> tuple[Tensor, ...]:
    """Each member's mean loss and error, and the standard errors that these have for being means over examples.

    The error is the rate of wrong classes, or the root of the mean square if targets are no classes.
    """
    was_training = stack.training
    stack.eval()
    each, single = [], torch.func.vmap(lambda output, target: criterion(output[None], target[None]))
    every = torch.func.vmap(single, in_dims=(0, None))
    for x, y in zip(*(part.split(at_once) for part in examples), strict=True):
        outputs = stack(x)
        wrong = outputs.argmax(-1) != y if is_classes(y) else (outputs - y).square().flatten(2).mean(-1)
        each.append(torch.stack([every(outputs, y).double(), wrong.double()]))
    stack.train(was_training)
    losses, errors = torch.cat(each, dim=-1)
    count = losses.shape[-1]
    deviation = losses.std(-1) if count > 1 else torch.zeros(len(losses))
    loss, error = losses.mean(-1), errors.mean(-1)
    if is_classes(examples[1]):
        return loss, error, deviation / count**0.5, (error * (1 - error) / count).sqrt()
    root = error.sqrt()
    spread = errors.std(-1) if count > 1 else torch.zeros(len(errors))
    return loss, root, deviation / count**0.5, spread / count**0.5 / (2 * root).clamp(min=1e-300)


def is_classes(targets: Tensor) -> bool:
    """Whether targets are the numbers of classes."""
    return not (targets.is_floating_point() or targets.is_complex())


def in_double(examples: Examples) -> Examples:
    """The examples in double precision, but for numbers of classes."""
    x, y = (part.double() if part.is_floating_point() else part for part in examples)
    return x, y


def usual_criterion(targets: Tensor) -> Criterion:
    """Cross entropy for numbers of classes, else the mean square."""
    return F.cross_entropy if is_classes(targets) else F.mse_loss
