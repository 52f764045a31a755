"""Which examples a trained model errs on: a bit for each, so that two models are compared example by example."""

from __future__ import annotations

from base64 import b64decode, b64encode
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from experiments.training.data import Examples, Split, Task
from experiments.training.record import Row

_EVALUATED_AT_ONCE = 4096  # examples; bounds the memory an evaluation takes


def outcomes(model: nn.Module, examples: Examples) -> Row:
    """The wrong classes of the validation and test examples, in evaluation mode, as :func:`packed`."""
    splits = {"valid": examples.valid, "test": examples.test}
    return {name: packed(_errors(model, split, examples.task)) for name, split in splits.items()}


@torch.no_grad()
def _errors(model: nn.Module, split: Split, task: Task) -> np.ndarray:
    model.eval()
    found = [task.scores(model(x)).argmax(1) != y for x, y in split.in_order(_EVALUATED_AT_ONCE)]
    return torch.cat(found).cpu().numpy()


def packed(wrong: np.ndarray) -> Row:
    """Errors as their number of examples and a text of a bit for each: 1,250 bytes, in base64, for 10,000 examples.

    Example:
        >>> packed(np.array([True, False, False]))
        {'count': 3, 'wrong': 'gA=='}
    """
    return {"count": len(wrong), "wrong": b64encode(np.packbits(wrong).tobytes()).decode()}


def unpacked(row: Row) -> np.ndarray:
    """The errors in a record, as booleans that cannot be written to."""
    return _unpacked(row["wrong"], row["count"])


@lru_cache(maxsize=1024)
def _unpacked(wrong: str, count: int) -> np.ndarray:
    found = np.unpackbits(np.frombuffer(b64decode(wrong), dtype=np.uint8), count=count).view(bool)
    found.flags.writeable = False
    return found
