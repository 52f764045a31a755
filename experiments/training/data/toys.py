"""The small data sets that scikit-learn brings with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import config
from .examples import Source

NAMES = ("digits", "diabetes", "breast_cancer", "wine")
_DIGITS_TEST = 797  # of 1,797 digits: 1,000 are left for training and validation


def read(settings: config.Data) -> Source:
    """The data set of that name."""
    from sklearn import datasets  # slow to import, and only these data sets need it

    if settings.name == "digits":
        train, test = _digits(datasets.load_digits())
        return Source(*train, test, labels=tuple(map(str, range(10))))
    found: Any = getattr(datasets, f"load_{settings.name}")()
    x = torch.from_numpy(found.data)
    if settings.name == "diabetes":
        return Source(x, torch.from_numpy(found.target), task="regression")
    return Source(x, torch.from_numpy(found.target).long(), labels=tuple(map(str, found.target_names)))


def _digits(digits: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # which images are tests never changes
    test, rest = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return (x[rest], y[rest]), (x[test], y[test])
