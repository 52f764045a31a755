"""Common criteria for a stack of models, in one call for all members, which is faster than ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# Their means are those of the losses that they give for each output or example without a reduction.
_MEANS = {
    *(nn.BCELoss, nn.BCEWithLogitsLoss, nn.HuberLoss, nn.L1Loss, nn.MultiLabelSoftMarginLoss, nn.MultiMarginLoss),
    *(nn.PoissonNLLLoss, nn.SmoothL1Loss, nn.SoftMarginLoss),
}


def losses_at_once(criterion: Callable[[Any, Any], Tensor], shared: bool = True) -> Callable[[Any, Any], Tensor] | None:
    """The criterion as a function of stacked outputs and targets; None for criteria that are not common.

    The targets are those of all members if they are shared, else ``(members, ...)``.
    """
    if criterion is F.mse_loss or (type(criterion) is nn.MSELoss and criterion.reduction == "mean"):
        return partial(_mean_squares, shared=shared)
    if criterion is F.cross_entropy:
        return partial(_cross_entropies, shared=shared, ignored=-100, smoothing=0.0)
    if type(criterion) is nn.CrossEntropyLoss and criterion.reduction == "mean":
        ignored, smoothing, weight = criterion.ignore_index, criterion.label_smoothing, criterion.weight
        return partial(_cross_entropies, shared=shared, ignored=ignored, smoothing=smoothing, weight=weight)
    if isinstance(criterion, nn.Module) and type(criterion) in _MEANS and criterion.reduction == "mean":
        weight = getattr(criterion, "weight", None)
        if weight is None or weight.dim() < 2:
            each: Any = copy(criterion)
            each.reduction = "none"
            return partial(_means, each, shared=shared)
    return None


def _means(each: nn.Module, outputs: Tensor, targets: Tensor, shared: bool) -> Tensor:
    own = targets.expand(len(outputs), *targets.shape) if shared else targets
    losses: Tensor = each(outputs.flatten(0, 1), own.flatten(0, 1))
    return losses.view(len(outputs), -1).mean(1)


def _mean_squares(outputs: Tensor, targets: Tensor, shared: bool) -> Tensor:
    if not shared and outputs.shape != targets.shape:
        raise ValueError(f"the targets must have the outputs' shape {tuple(outputs.shape)}, got {tuple(targets.shape)}")
    return F.mse_loss(outputs, targets.expand_as(outputs), reduction="none").flatten(1).mean(1)


def _cross_entropies(
    outputs: Tensor, targets: Tensor, shared: bool, ignored: int, smoothing: float, weight: Tensor | None = None
) -> Tensor:
    own = targets.expand(len(outputs), *targets.shape) if shared else targets
    options: Any = {"ignore_index": ignored, "reduction": "none", "label_smoothing": smoothing, "weight": weight}
    losses = F.cross_entropy(outputs.flatten(0, 1), own.flatten(0, 1), **options)
    sums = losses.view(len(outputs), -1).sum(1)
    if targets.is_floating_point():
        return sums / (losses.numel() // len(outputs))
    counted = own != ignored
    weights = counted if weight is None else weight[own.where(counted, 0)] * counted
    return sums / weights.flatten(1).sum(1)
