"""The numbers of a regularizer that are logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.sharding import as_plain
from torchreg.regularizer.assignment import Assignment


def regularizers_of(thing: Any) -> tuple[Any, ...]:
    """Those that an AutoStrength tunes, or the regularizer itself; none of a schedule."""
    own = (thing,) if callable(getattr(thing, "terms", None)) else ()
    found: tuple[Any, ...] = getattr(thing, "regularizers", own)
    return found


def penalized(thing: Any) -> list[Assignment]:
    """The parameters with a penalty, also those that are frozen now."""
    return [a for each in regularizers_of(thing) for a in getattr(each, "entries", ()) if a.penalty is not None]


@torch.no_grad()
def logged(thing: Any, name: str, sparsity: bool) -> dict[str, float]:
    """The penalties by kind, the scale or what is tuned, and the share of zeros.

    Training goes on as if nobody had asked: no random number is drawn and no state is changed.

    Args:
        thing: a regularizer, or an object that tunes one, or that tunes rates.
        name: the names of the numbers begin with it, as in ``"regularizer/L1"``.
        sparsity: whether zeros are counted.
    """
    values: dict[str, Any] = {}
    for regularizer in regularizers_of(thing):
        for kind, value in regularizer.terms().items():
            values[kind] = values[kind] + value.to(values[kind].device) if kind in values else value
    keys = {"strengths": "strength", "scale": "scale", "rates": "rate"}  # what changes in training comes first
    if (attribute := next((each for each in keys if hasattr(thing, each)), None)) is not None:
        values[keys[attribute]] = getattr(thing, attribute)
    if sparsity and (share := _zeros(penalized(thing))) is not None:
        values["sparsity"] = share
    return {f"{name}/{key}": number for key, value in values.items() for key, number in _numbers(key, value)}


def _zeros(entries: list[Assignment]) -> float | None:
    """The share of exact zeros in all the weights together; None if there is none."""
    found = {a.key: a.param for a in entries}.values()
    total = sum(w.numel() for w in found)
    nonzero = sum(int(as_plain(w.count_nonzero(), local=False)) for w in found)
    return (total - nonzero) / total if total else None


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """A number with its name; of a dict or of the members of a stack each."""
    if isinstance(value, Mapping):
        for inner, own in value.items():
            yield from _numbers(f"{key}/{inner}", own)
    elif isinstance(value, Tensor) and value.ndim:
        for member, own in enumerate(value.tolist()):
            yield f"{key}/{member}", own
    else:
        yield key, float(value)
