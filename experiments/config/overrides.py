"""``--set KEY=VALUE``, which sets a key of a study's tree."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from ..errors import UserError
from .sections import Tree

# Quoted text, in which any letter may stand, or else all up to the next dot.
_PART = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([^.=]*?))\s*([.=]|\Z)""")
_SPECIAL = re.compile(r"""[.=]|^\s|^["']|\s$""")  # of a name that must be quoted


def override(tree: Tree, text: str) -> None:
    """Sets ``a.b=value``. Below ``arms`` a key is an arm's name; one with a dot in it is quoted, as in TOML."""
    key, path, value = _parsed(text)
    node: Any = tree
    for depth, part in enumerate(path[:-1]):
        if isinstance(node, list):
            named = {arm["name"]: arm for arm in node if isinstance(arm, dict) and "name" in arm}
            if part not in named:
                where = ".".join(path[:depth])
                raise UserError(f"--set {key}: no table in {where} has the name {part!r}: {_names(named, where)}")
            node = named[part]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        if not isinstance(node, (dict, list)):
            raise UserError(f"--set {key}: {'.'.join(path[: depth + 1])} must be a table, got {node!r}")
    if not isinstance(node, dict):
        whole = ".".join(path[:-1])
        raise UserError(f"--set {key}: {whole} must be a table, got a list: set all of it, as in {whole}=[...]")
    node[path[-1]] = value


def _parsed(text: str) -> tuple[str, list[str], Any]:
    """The key as it is written, its parts and the value."""
    path, end, mark = [], 0, "."
    while mark == ".":
        place = _PART.match(text, end)
        if place is None:
            break
        path.append(place[1] or place[2] or place[3])
        end, mark = place.end(), place[4]
    if mark != "=" or not all(path):
        raise UserError(f"--set: must be key=value, got {text!r}")
    key, value = text[: end - 1], text[end:]
    try:
        document = tomllib.loads(f"value = {value}")
        return key, path, document["value"] if len(document) == 1 else value
    except (ValueError, RecursionError):
        return key, path, value  # a bare word, such as a path


def _names(tables: dict[str, Any], where: str) -> str:
    if not tables:
        return "its tables have none; set the whole list"
    quoted = next((name for name in tables if _SPECIAL.search(str(name))), None)
    hint = "" if quoted is None else f"; quote one with a dot, as in {where}.{quoted!r}.KEY"
    return f"its names are {', '.join(map(repr, tables))}{hint}"
