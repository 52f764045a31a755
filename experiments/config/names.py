"""How settings are called in folders, tables and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any


def slug(name: str) -> str:
    """The name as that of a folder."""
    return re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "_"


def text_of(value: Any) -> str:
    """A swept key's value as text."""
    return value if isinstance(value, str) else json.dumps(value)


def short(keys: Iterable[str]) -> list[str]:
    """Keys by their last part, where that tells them apart."""
    keys = list(keys)
    lasts = [key.rpartition(".")[2] for key in keys]
    return [last if lasts.count(last) == 1 else key for last, key in zip(lasts, keys, strict=True)]


def point_of(values: Mapping[str, Any]) -> str:
    """Swept keys and their values, to be read."""
    shown = [f"{value:.4g}" if isinstance(value, float) else text_of(value) for value in values.values()]
    return ", ".join(f"{key} {value}" for key, value in zip(short(values), shown, strict=True))
