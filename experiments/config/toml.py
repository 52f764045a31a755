"""A tree of tables and lists as the text of a TOML file; Python reads TOML and does not write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .sections import Tree

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WIDE = 100  # characters, above which a table gets a heading instead of a line


def dumped(tree: Tree) -> str:
    """The text of a TOML file with this tree, which tomllib reads as the same tree."""
    return "\n".join(_lines(tree, "")).strip() + "\n"


def _lines(tree: Tree, at: str) -> Iterator[str]:
    """The keys of a table, then the tables in it, as TOML wants them."""
    apart = [key for key, value in tree.items() if _is_apart(key, value, at)]
    for key, value in tree.items():
        if key not in apart:
            yield f"{_key(key)} = {_value(value)}"
    for key in apart:
        value, name = tree[key], at + _key(key)
        for table in value if isinstance(value, list) else [value]:
            yield from ("", f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
            yield from _lines(table, f"{name}.")


def _is_apart(key: str, value: Any, at: str) -> bool:
    """Whether it is written below a heading: tables at the top, and what would make a line too long."""
    is_list = isinstance(value, list) and bool(value) and all(isinstance(inner, dict) for inner in value)
    if not isinstance(value, dict) and not is_list:
        return False
    return (not at and bool(value)) or len(f"{_key(key)} = {_value(value)}") > _WIDE


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)  # numbers, true and false are JSON's


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
