"""How penalties compare, print and check their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from torchreg.selection.modules import kind_of


class Described:
    """A mixin for frozen dataclasses that compare by their fields, also by tensors; their repr is the call."""

    def __post_init__(self) -> None:
        """Checks the fields."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
            _equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)  # type: ignore[arg-type]
        )

    def __hash__(self) -> int:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return hash((type(self), *(v if isinstance(v, float | str | int) else type(v) for v in values)))

    def __repr__(self) -> str:
        shown = [(field.name, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        parts = [_shown(value) for _, value in shown[:1]]
        parts += [f"{name}={_shown(value)}" for name, value in shown[1:] if value is not None]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _require(self, name: str, expectation: str, holds: Callable[[float], bool]) -> None:
        """Converts the field to a float; raises an error if it is no number or not in its range."""
        owner, value = type(self).__name__, getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            got = repr(value) if isinstance(value, (bool, str, int, float, type(None))) else kind_of(value)
            raise TypeError(f"{owner}: {name} must be a number, got {got}")
        if not holds(float(value)):
            raise ValueError(f"{owner}: {name} must be {expectation}, got {value!r}")
        object.__setattr__(self, name, float(value))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"<{len(value)} tensors>"
    if isinstance(value, Tensor) and value.numel() > 16:
        return f"<tensor of shape {tuple(value.shape)}>"
    return f"tensor({value.tolist()!r})" if isinstance(value, Tensor) else repr(value)
