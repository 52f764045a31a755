"""The configuration and the environment of each arm, and first how it differs from the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .cells import Cell

_OF_RUN = {"arm", "seed", "strength", "values"}


class Settings(NamedTuple):
    """What an arm was trained with."""

    label: str
    differs: Sequence[str]  # from what most arms have
    whole: str  # all its keys
    seeds: str
    ran: str  # where, if not as the others


def settings_of(cells: Mapping[str, Cell]) -> list[Settings]:
    """The settings of each arm. The base is the unregularized arm, or else what most arms have."""
    flat = {
        label: _flat(cell.runs[0].model_dump(mode="json", by_alias=True, exclude=_OF_RUN))
        for label, cell in cells.items()
    }
    keys = list(dict.fromkeys(key for one in flat.values() for key in one))
    plain = next((flat[label] for label, cell in cells.items() if cell.is_plain()), None)
    base = plain or {key: _most([one.get(key) for one in flat.values()]) for key in keys}
    common = environment_of(cells)
    found = []
    for label, cell in cells.items():
        own = flat[label]
        differs = [f"{key} = {own.get(key, 'unset')}" for key in keys if own.get(key) != base.get(key)]
        seeds = ", ".join(str(run.seed) for run in cell.runs)
        whole = "\n".join(f"{key} = {value}" for key, value in own.items())
        others = [line for line in _environments(cell) if line != common]
        found.append(Settings(label, differs, whole, seeds, "; ".join(others)))
    return found


def environment_of(cells: Mapping[str, Cell]) -> str:
    """Where most of the runs were made."""
    most: str = _most([line for cell in cells.values() for line in _environments(cell)] or [""])
    return most


def _environments(cell: Cell) -> list[str]:
    """The environments of the runs, each once."""
    rows = [row for record in cell.records for row in record.environments]
    return list(dict.fromkeys(", ".join(f"{k} {v}" for k, v in row.items() if v is not None) for row in rows))


def _most(values: Sequence[Any]) -> Any:
    return max(values, key=values.count)  # of equally frequent ones the first


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    """The values of a tree by their keys, without those that are not set."""
    if isinstance(tree, Mapping) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}
    return {} if tree is None or tree in ({}, []) else {path: _toml(tree)}


def _toml(value: Any) -> str:
    """A value in one line, as a study's file has it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items() if one is not None) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
