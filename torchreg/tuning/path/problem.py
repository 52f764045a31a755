"""The problem of a path: what is minimized, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.ensemble.stacked import Stacked
from torchreg.penalties import Penalty
from torchreg.regularizer import Mode, Regularizer
from torchreg.selection.parameters import ParamInfo
from torchreg.selection.selectors import Selector

Examples = tuple[Tensor, Tensor]
Criterion = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """Training examples, a loss, a penalty of strength 1, and the options of the training."""

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

    def regularizer(self, stack: Stacked, strengths: Sequence[float]) -> Regularizer:
        """A regularizer with the members' strengths."""
        regularizer = Regularizer(stack, self.penalty, mode=self.mode, select=self.select)
        regularizer.scale = torch.tensor(strengths, dtype=torch.float64)
        return regularizer


@torch.no_grad()
def measure(stack: Stacked, criterion: Criterion, examples: Examples, at_once: int = 4096) -> tuple[Tensor, ...]:
    """Each member's loss and error, and the standard errors of both as means over examples.

    The error is the rate of wrong classes (for a single output by its sign). If the targets are no classes, it is the
    root mean square.
    """
    was_training, (x, y) = stack.training, examples
    outputs = torch.cat([stack.eval()(part) for part in x.split(at_once)], dim=1)
    stack.train(was_training)
    # The loss of all examples at once, because it need not be a mean over them.
    loss = stack.per_member(criterion)(outputs, y).double()
    if is_classes(y):
        error = _are_wrong(outputs, y).double().flatten(1).mean(1)
        return loss, error, _deviation(criterion, outputs, y), (error * (1 - error) / len(y)).sqrt()
    squares = (outputs - y).square().double().flatten(1).view(len(stack), len(y), -1).mean(2)
    root = squares.mean(1).sqrt()
    spread = squares.std(1) if len(y) > 1 else torch.zeros_like(root)
    return loss, root, _deviation(criterion, outputs, y), spread / len(y) ** 0.5 / (2 * root).clamp(min=1e-300)


def _are_wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the class is wrong, for each member and example: by the largest output, or the sign of a single one."""
    if outputs.ndim > 2 and outputs.shape[2] > 1:
        return outputs.argmax(2) != targets
    return (outputs.flatten(1) > 0) != targets.flatten()


def _deviation(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """The standard error of the loss as a mean over examples; 0 for a single example."""
    one = torch.func.vmap(lambda output, target: criterion(output[None], target[None]))
    losses = torch.func.vmap(one, in_dims=(0, None))(outputs, targets).double()
    if len(targets) < 2:
        return torch.zeros(len(losses), dtype=torch.float64)
    deviation: Tensor = losses.std(1) / len(targets) ** 0.5
    return deviation.nan_to_num(nan=0.0)


def check_examples(model: nn.Module, examples: Examples) -> None:
    """Raises ``ValueError`` unless the examples are finite and the targets have the shape of the outputs."""
    x, y = examples
    for name, part in (("inputs", x), ("targets", y)):
        if part.is_floating_point() and not part.isfinite().all():
            raise ValueError(f"strength_path: {name} must be finite, got NaN or infinite ones")
    was_training = model.training
    with torch.no_grad():
        outputs = model.eval()(x[:2])
    model.train(was_training)
    if not is_classes(y) and outputs.shape != y[:2].shape:
        raise ValueError(
            f"strength_path: targets must have the outputs' shape (n, {', '.join(map(str, outputs.shape[1:]))}), "
            f"got {tuple(y.shape)}: y[:, None] makes a column"
        )


def is_classes(targets: Tensor) -> bool:
    """Whether the targets are class numbers."""
    return not (targets.is_floating_point() or targets.is_complex())


def in_double(examples: Examples) -> Examples:
    """The examples in double precision, except for class numbers."""
    x, y = (part.double() if part.is_floating_point() else part for part in examples)
    return x, y


def usual_criterion(targets: Tensor) -> Criterion:
    """Cross entropy for class numbers, else the mean square."""
    return F.cross_entropy if is_classes(targets) else F.mse_loss
