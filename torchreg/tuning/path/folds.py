"""Folds: training and validation examples, the same for all strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg.tuning.path.problem import Examples, is_classes

Split = tuple[Examples, Examples]


def splits(train: Examples, valid: Examples | None, folds: int | Sequence[tuple[Any, Any]], seed: int) -> list[Split]:
    """Pairs of training and validation examples. Folds are drawn from the seed, with the classes spread evenly.

    Raises:
        ValueError: there are no examples, fewer examples than folds, or only one class in a training part.
    """
    _check_examples("train", train)
    if valid is not None:
        _check_examples("valid", valid)
        found = [(train, valid)]
    else:
        pairs = _drawn(train[1], folds, seed) if isinstance(folds, int) else [_indices(pair) for pair in folds]
        found = [(_chosen(train, ours), _chosen(train, theirs)) for ours, theirs in pairs]
    if not found:
        raise ValueError("strength_path: folds must be at least one, got none")
    for number, (ours, theirs) in enumerate(found):
        where = "" if len(found) == 1 else f" of fold {number + 1}"
        _check_examples(f"the training part{where}", ours)
        _check_examples(f"the validation part{where}", theirs)
        if is_classes(ours[1]) and len(ours[1].unique()) < 2:
            raise ValueError(
                f"strength_path: the training part{where} must have two classes or more, got only "
                f"{int(ours[1].flatten()[0])}: take fewer folds, or give valid"
            )
    return found


def _check_examples(what: str, examples: Examples) -> None:
    x, y = examples
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise TypeError(f"strength_path: {what} must be two tensors, got {type(x).__name__} and {type(y).__name__}")
    if not len(y) or len(x) != len(y):
        raise ValueError(
            f"strength_path: {what} must hold as many targets as inputs and at least one, got {len(x)} inputs and "
            f"{len(y)} targets"
        )


def _drawn(y: Tensor, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    if isinstance(folds, bool) or not 2 <= folds <= len(y):
        raise ValueError(f"strength_path: folds must be from 2 to the {len(y)} examples, got {folds!r}; or give valid")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed), device="cpu").to(y.device)
    if is_classes(y) and y.ndim == 1:
        order = order[y[order].argsort(stable=True)]  # dealt to the folds class by class
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(y), device=y.device) % folds
    return [((fold != number).nonzero().flatten(), (fold == number).nonzero().flatten()) for number in range(folds)]


def _indices(pair: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    parts = (torch.as_tensor(part, device="cpu") for part in pair)
    ours, theirs = (part.nonzero().flatten() if part.dtype == torch.bool else part.long() for part in parts)
    return ours, theirs


def _chosen(examples: Examples, indices: Tensor) -> Examples:
    x, y = examples
    return x[indices.to(x.device)], y[indices.to(y.device)]
