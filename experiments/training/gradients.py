"""The gradient of a step: the batches that it is a mean over, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchreg import Stacked

from . import ranks
from .data import Task


def shares(
    model: nn.Module, task: Task, batches: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int]
) -> Sequence[Tensor | float | None]:
    """What the mean loss of each batch counts for in the mean over the examples of all; None for a single batch.

    The shares are those of each member, if the members of a stack have other ones. Of several processes each has a part
    of every batch; ``sizes`` are those of the whole ones. Their mean over the processes is the mean over all examples.
    """
    if ranks.is_several():
        return _shares_of_process(task, [y for _, y in batches], sizes)
    if len(batches) == 1:
        return [None]
    weights = [task.weight(y, y.shape[1 if isinstance(model, Stacked) else 0]) for _, y in batches]
    whole = sum(weights)
    return [weight / whole for weight in weights]


def _shares_of_process(task: Task, targets: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor | float]:
    has_some = [ranks.size_of(ranks.part(size)) > 0 for size in sizes]
    weights = [task.weight(y, len(y)) * some for y, some in zip(targets, has_some, strict=True)]
    own = sum(weights)
    whole = ranks.total(own) if isinstance(own, Tensor) else sum(sizes)
    return [ranks.count() * weight / whole for weight in weights]


@dataclass(frozen=True)
class Clip:
    """Limits of the gradient, for each member of a stack its own.

    Args:
        norm: the largest norm of all gradients together, as by :func:`torch.nn.utils.clip_grad_norm_`.
        value: the largest size of an element, as by :func:`torch.nn.utils.clip_grad_value_`; it acts afterwards.
    """

    norm: float | None = None
    value: float | None = None

    def __call__(self, model: nn.Module) -> None:
        if self.norm is not None and isinstance(model, Stacked):
            _clip_norms(model, self.norm)
        elif self.norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.norm)
        if self.value is not None:
            nn.utils.clip_grad_value_(model.parameters(), self.value)


@torch.no_grad()
def _clip_norms(stack: Stacked, most: float) -> None:
    """:func:`torch.nn.utils.clip_grad_norm_` of each member's gradient."""
    gradients = [param.grad for param in stack.parameters() if param.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
