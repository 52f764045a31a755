"""The names of settings in folders, tables and figures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Windows takes these names for devices, in any case and with anything after a dot.
_DEVICES = re.compile(r"^(con|prn|aux|nul|(com|lpt)[0-9¹²³])(?![^.])", re.IGNORECASE)
_LONGEST = 150  # characters of a folder's name, so that a run's files stay below the 260 of a path on Windows


def slug(name: str) -> str:
    """The name as a part of a folder's: letters, digits, and ``_ . + -``."""
    return re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "_"


def folder_name(name: str) -> str:
    """A name of letters, digits and ``_ . + - @ = ,`` as one that Linux, macOS and Windows take for a folder.

    Example:
        >>> [folder_name(name) for name in ("L1@0.1", "aux", "nul.txt", "v1.")]
        ['L1@0.1', 'aux_', 'nul_.txt', 'v1_']
    """
    taken = _DEVICES.sub(r"\1_", re.sub(r"\.+$", "_", name), count=1)
    if len(taken) < _LONGEST and len(taken.encode()) < 256:
        return taken
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{taken[:120].encode()[:240].decode(errors='ignore')}-{digest}"


def text_of(value: Any) -> str:
    """A swept key's value as text."""
    return value if isinstance(value, str) else json.dumps(value)


def short(keys: Iterable[str]) -> list[str]:
    """The keys, shortened to their last part if that is unique."""
    keys = list(keys)
    lasts = [key.rpartition(".")[2] for key in keys]
    return [last if lasts.count(last) == 1 else key for last, key in zip(lasts, keys, strict=True)]


def point_of(values: Mapping[str, Any]) -> str:
    """Swept keys and their values as text."""
    shown = [f"{value:.4g}" if isinstance(value, float) else text_of(value) for value in values.values()]
    return ", ".join(f"{key} {value}" for key, value in zip(short(values), shown, strict=True))
