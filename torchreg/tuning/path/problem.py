"""The problem of a path: what is minimized, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.ensemble.stacked import Stacked
from torchreg.penalties import Penalty
from torchreg.penalties.given import in_words
from torchreg.regularizer import Mode, Regularizer
from torchreg.selection.modules import kind_of
from torchreg.selection.parameters import ParamInfo
from torchreg.selection.selectors import Selector
from torchreg.tuning.path.losses import each_loss, member_losses

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
    tolerance: float  # without an optimizer: the distance from the minimum, in units of the strength
    seed: int
    floor: float = 0.0  # the distance that rounding allows

    def regularizer(self, stack: Stacked, strengths: Sequence[float]) -> Regularizer:
        """A regularizer with the members' strengths."""
        regularizer = Regularizer(stack, self.penalty, mode=self.mode, select=self.select)
        regularizer.scale = torch.tensor(strengths, dtype=torch.float64, device="cpu")
        return regularizer

    def limit(self, strength: float) -> float:
        """How far from its minimum a member of that strength may stop."""
        return max(self.tolerance * strength, self.floor)


@torch.no_grad()
def measure(stack: Stacked, criterion: Criterion, examples: Examples, at_once: int = 4096) -> tuple[Tensor, ...]:
    """Each member's loss and error, and the standard errors of both over the examples.

    The error is the rate of wrong classes (for a single output by its sign), of the targets that count in the loss. If
    the targets are no classes, it is the root mean square, also of those that count.
    """
    was_training, (x, y) = stack.training, examples
    outputs = torch.cat([stack.eval()(part) for part in x.split(at_once)], dim=1)
    stack.train(was_training)
    found = each_loss(member_losses(stack, criterion), criterion, outputs, y)
    if is_classes(y):
        wrong = _are_wrong(outputs, y).flatten(1)
        counted = found.counted.flatten() if found.counted.numel() == wrong.shape[1] else torch.ones_like(wrong[0])
        error = wrong[:, counted].double().mean(1)
        return found.loss, error, found.deviation, (error * (1 - error) / max(found.examples, 1)).sqrt()
    squares = (outputs - y).square().double().masked_fill(~found.counted, 0.0)
    sums, counts = squares.reshape(len(stack), len(y), -1).sum(2), found.counted.reshape(len(y), -1).sum(1)
    mean, number = sums.sum(1) / counts.sum(), int(counts.count_nonzero())
    spread = (sums - counts * mean[:, None]).norm(dim=1) / counts.sum()  # of a ratio of means
    spread, root = spread * (number / max(number - 1, 1)) ** 0.5, mean.sqrt()
    return found.loss, root, found.deviation, spread / (2 * root).clamp(min=1e-300)


def _are_wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the class is wrong, for each member and target: by the largest output, or the sign of a single one."""
    if outputs.ndim > 2 and outputs.shape[2] > 1:
        return outputs.argmax(2) != targets
    return (outputs.flatten(1) > 0) != targets.flatten()


def check_examples(model: nn.Module, criterion: Criterion, examples: Examples) -> None:
    """Raises ``ValueError`` unless the examples are finite, the targets fit the outputs, and the loss is a number."""
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
    loss = criterion(outputs, y[:2])
    if loss.numel() != 1:
        raise ValueError(
            f"strength_path: criterion must return one number, got a tensor of shape {tuple(loss.shape)} for two "
            "examples: use reduction='mean'"
        )


def check_given(owner: str, penalty: object, **examples: object) -> None:
    """Raises ``TypeError`` unless the penalty is one, or a mapping to some, and the examples are pairs."""
    for rule in penalty.values() if isinstance(penalty, Mapping) else (penalty,):
        if not isinstance(rule, Penalty):
            raise TypeError(f"{owner}: penalty must be a Penalty such as L1(1.0), got {in_words(rule)}")
    check_pairs(owner, **examples)


def check_pairs(owner: str, **examples: object) -> None:
    """Raises ``TypeError`` unless the examples are pairs."""
    for name, pair in examples.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            size = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
            raise TypeError(f"{owner}: {name} examples must be a pair (inputs, targets), got {kind_of(pair)}{size}")


def check_makes_models(make_model: object) -> None:
    """Raises ``TypeError`` for a model in place of a function that makes one."""
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            "strength_path: the first argument is a function that makes the model, as in lambda: nn.Linear(...), "
            f"got {kind_of(make_model)}"
        )


def descending(owner: str, strengths: Sequence[float]) -> list[float]:
    """The strengths from the strongest to the weakest. Raises ``ValueError`` unless they are positive numbers."""
    if isinstance(strengths, Real):
        raise TypeError(f"{owner}: strengths must be a list of numbers, got {strengths!r}: write [{strengths!r}]")
    try:
        if isinstance(strengths, str):  # each letter could be a number
            raise TypeError
        found = [float(strength) for strength in strengths]
    except (TypeError, ValueError):
        raise TypeError(f"{owner}: strengths must be a list of numbers, got {strengths!r:.80}") from None
    for strength in found:
        if not 0 < strength < math.inf:
            raise ValueError(f"{owner}: strengths must be finite and > 0, got {strength!r}")
    if not found:
        raise ValueError(f"{owner}: strengths must be at least one, got none")
    return sorted(found, reverse=True)


def is_classes(targets: Tensor) -> bool:
    """Whether the targets are class numbers."""
    return not (targets.is_floating_point() or targets.is_complex())


def in_double(examples: Examples) -> Examples:
    """The examples in double precision, except for class numbers."""
    x, y = (part.double() if part.is_floating_point() else part for part in examples)
    return x, y


def criterion_in_double(criterion: Criterion) -> Criterion:
    """The criterion with its weights, as of classes, in double precision."""
    if isinstance(criterion, nn.Module):
        return deepcopy(criterion).double()
    if isinstance(criterion, partial):
        kept = {key: v.double() if _is_floating(v) else v for key, v in criterion.keywords.items()}
        return partial(criterion.func, *criterion.args, **kept)
    return criterion


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def usual_criterion(targets: Tensor) -> Criterion:
    """Cross entropy for class numbers, else the mean square."""
    return F.cross_entropy if is_classes(targets) else F.mse_loss
