"""The loss that a study names: the targets that it takes, and whether it fits a model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import loss as torchs

from ..config import Component
from ..errors import UserError, oneline
from .data import Classes, Examples, Task
from .data.tasks import Form
from .imports import component

KEY = "train.loss"
LOSSES: dict[str, type[nn.Module]] = {
    name: getattr(torchs, name) for name in torchs.__all__ if name not in ("NLLLoss2d", "LinearCrossEntropyLoss")
}
_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_FORMS: dict[type[nn.Module], Form] = {
    nn.CrossEntropyLoss: "classes",
    nn.NLLLoss: "classes",
    nn.MultiMarginLoss: "classes",
    nn.MultiLabelMarginLoss: "classes",
    nn.SoftMarginLoss: "signs",
    nn.HingeEmbeddingLoss: "signs",
}


def named_by(settings: Component | None) -> nn.Module | None:
    """The loss that a study names, if it does."""
    if settings is None:
        return None
    table = {name: _with_lists(cls) for name, cls in LOSSES.items()}
    loss: nn.Module = component(KEY, nn.Module, settings, table)
    if (reduction := getattr(loss, "reduction", "mean")) != "mean":
        raise UserError(f"{KEY}.reduction: must be 'mean', over the examples of a batch, got {reduction!r}")
    return loss


def with_loss(examples: Examples, loss: nn.Module | None) -> Examples:
    """The examples, whose task is judged by the loss; None: by that of the task itself."""
    if loss is None:
        return examples
    task = examples.task
    if isinstance(task, Classes):
        return replace(examples, task=replace(task, loss=loss, form=_form(loss, task.classes)))
    if _is_of_torch(loss) and not isinstance(loss, _OF_NUMBERS):
        names = ", ".join(cls.__name__ for cls in _OF_NUMBERS)
        name = type(loss).__name__
        raise UserError(f"{KEY}: {name} is not for a regression: take {names}, or a class of your own")
    return replace(examples, task=replace(task, loss=loss))


def _with_lists(cls: type[nn.Module]) -> Callable[..., nn.Module]:
    """The constructor of a loss, which makes tensors of lists, such as the weights of classes."""

    @wraps(cls)
    def make(*args: Any, **given: Any) -> nn.Module:
        tensors = {name: torch.tensor(value) * 1.0 for name, value in given.items() if isinstance(value, list)}
        return cls(*args, **{**given, **tensors})

    return make


def _form(loss: nn.Module, classes: int) -> Form:
    """The numbers of the classes for a loss of the user's own; else what torch's loss takes."""
    if not _is_of_torch(loss):
        return "classes"
    if isinstance(loss, nn.BCEWithLogitsLoss) and classes == 2:
        return "one output"
    return next((form for cls, form in _FORMS.items() if isinstance(loss, cls)), "one-hot")


def _is_of_torch(loss: nn.Module) -> bool:
    """Whether it is one of torch's losses, or derives from one."""
    return isinstance(loss, tuple(LOSSES.values()))


def check_loss(task: Task, outputs: Tensor, y: Tensor) -> None:
    """Tries the loss on a batch.

    Raises:
        UserError: it does not fit, or is no mean over the examples.
    """
    targets, name = task.targets(y, outputs), type(task.loss).__name__
    outputs = outputs.detach().requires_grad_()  # a second time, the model would draw other masks
    shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}"
    if type(task.loss) in (nn.NLLLoss, nn.KLDivLoss) and not _are_log_probabilities(outputs):
        how = "take CrossEntropyLoss, or a model that ends with LogSoftmax"
        raise UserError(f"{KEY}: {name} must get logarithms of probabilities, got other outputs: {how}")
    try:
        limited = task.limited(outputs, y)
        loss = task.loss(limited, targets)
        twice = task.loss(torch.cat([limited, limited]), torch.cat([targets, targets]))
    except (Exception, SystemExit) as error:  # whatever a loss raises on what is not meant for it
        raise UserError(f"{KEY}: {name} does not fit {shapes}: {oneline(error)}") from error
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.is_floating_point() or not loss.requires_grad:
        got = f"{tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else repr(loss)
        raise UserError(f"{KEY}: {name} must give one number that has a gradient, got {got:.80} for {shapes}")
    if not torch.allclose(loss, twice, rtol=1e-3, equal_nan=True):
        raise UserError(
            f"{KEY}: {name} must be a mean over the examples, got {loss.item():.4g} for a batch and "
            f"{twice.item():.4g} for the same batch twice"
        )


def _are_log_probabilities(outputs: Tensor) -> bool:
    return torch.allclose(outputs.logsumexp(1), torch.zeros(()).to(outputs), atol=1e-3)
