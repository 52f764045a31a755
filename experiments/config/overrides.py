"""``--set KEY=VALUE``, which sets a key of a study's tree."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from ..errors import UserError
from .sections import Tree

# A part of a key: text in quotes, as in TOML, in which any letter may stand, or else all up to the next dot.
_PART = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^.=]*?)\s*([.=]|\Z)""")
_SPECIAL = re.compile(r"""[.=]|^\s|^["']|\s$""")  # of a name that must be quoted


def override(tree: Tree, text: str) -> None:
    """Sets ``a.b=value``. Below ``arms`` a key is an arm's name; one with a dot in it is quoted, as in TOML."""
    key, path, value = _parsed(text)
    node: Any = tree
    for depth, part in enumerate(path[:-1]):
        if isinstance(node, list):
            named = {arm["name"]: arm for arm in node if isinstance(arm, dict) and isinstance(arm.get("name"), str)}
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
        path.append(_unquoted(place[1], text))
        end, mark = place.end(), place[2]
    if mark != "=" or not all(path):
        raise UserError(f"--set: must be key=value, got {text!r}")
    key, value = text[: end - 1], text[end:].strip()
    try:
        document = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        document = {}
    if len(document) == 1:
        return key, path, document["value"]
    if value.startswith(('"', "'")):
        raise UserError(f"--set {key.strip()}: the quotes around the value must match, as in TOML, got {value}")
    return key, path, value  # a bare word, such as a path


def _unquoted(part: str, text: str) -> str:
    if not part.startswith(('"', "'")):
        return part
    try:
        return str(tomllib.loads(f"value = {part}")["value"])
    except ValueError:
        raise UserError(f"--set: the quotes in the key do not match, got {text!r}") from None


def _names(tables: dict[str, Any], where: str) -> str:
    if not tables:
        return "its tables have none; set the whole list"
    special = next((name for name in tables if _SPECIAL.search(name)), None)
    hint = "" if special is None else f"; quote one with a dot, as in {where}.{_quoted(special)}.KEY"
    return f"its names are {', '.join(map(repr, tables))}{hint}"


def _quoted(name: str) -> str:
    is_plain = name.isprintable() and "'" not in name
    return f"'{name}'" if is_plain else json.dumps(name, ensure_ascii=False)
