"""The JSON schema of a study's file, by which an editor completes and checks it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from .sections import Section, Tree
from .study import Settings, _Arm, _Head

_EXTENDS = {"type": "string", "description": "The file, relative to this one, that this file is laid on."}
_COMMENTED = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)


def schema(names: Mapping[str, Iterable[str]]) -> Tree:
    """The JSON schema (draft 7) of a study's file.

    An arm may hold a part of a table, and so may a file that extends another one: keys are required only in lists and
    at the top of a file that extends none.

    Args:
        names: what an editor offers for keys such as ``"Optimizer.name"``; other text is valid too, as in another
            version of torch.
    """
    head, base, arm = (cls.model_json_schema(by_alias=True) for cls in (_Head, Settings, _Arm))
    sections = {**head["$defs"], **base["$defs"]}
    del sections["_Arm"]
    for name, section in {**sections, "Settings": base}.items():
        for key, field in section.get("properties", {}).items():
            if (offered := names.get(f"{name}.{key}")) is not None:
                section["properties"][key] = _offering(field, sorted(offered))
        if name not in ("Regularizer", "Lower"):  # entries of lists, which are always whole
            section.pop("required", None)
    sections["Sweep"]["properties"]["space"]["additionalProperties"] = {
        "anyOf": [{"type": "array", "minItems": 1}, {"$ref": "#/$defs/Dimension"}]
    }
    settings = base["properties"]
    arms: Tree = head["properties"]["arms"] | {
        "items": {
            "type": "object",
            "description": "The study with some keys changed.",
            "properties": {**arm["properties"], **settings},
            "required": ["name"],
            "additionalProperties": False,
        }
    }
    needed = [key for cls in (_Head, Settings) for key, field in cls.model_fields.items() if field.is_required()]
    tree: Tree = {
        "type": "object",
        "properties": {"extends": _EXTENDS, **head["properties"], **settings, "arms": arms},
        "additionalProperties": False,
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": needed},
        "$defs": dict(sorted(sections.items())),
    }
    by_name = {cls.__name__: cls for cls in _subclasses(Section)}
    _describe(_Head, tree["properties"])
    for fields in (tree["properties"], arms["items"]["properties"]):
        _describe(Settings, fields)
    for name, section in sections.items():
        if name in by_name and "properties" in section:
            _describe(by_name[name], section["properties"])
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A study", **_plain(tree)}


def _offering(field: Tree, names: list[str]) -> Tree:
    """The field with names to choose from: its own values, or those of the key ``name`` in its table."""
    offer = {"anyOf": [{"enum": names}, {"type": "string"}]}
    is_table = "$ref" in str(field)
    return {"allOf": [field, {"properties": {"name": offer}}]} if is_table else offer


def _describe(cls: type[BaseModel], fields: Tree) -> None:
    """Adds what the source says of a section's keys, in the comments behind them."""
    for base in reversed(cls.__mro__):
        if issubclass(base, Section):
            for name, text in _COMMENTED.findall(inspect.getsource(base)):
                field = cls.model_fields.get(name)
                key = (field.alias if field else None) or name
                if key in fields:
                    said = re.sub(r"\bNone\b", "left out", text)
                    fields[key] = {**fields[key], "description": said[:1].upper() + said[1:]}


def _subclasses(cls: type[BaseModel]) -> Iterable[type[BaseModel]]:
    for inner in cls.__subclasses__():
        yield inner
        yield from _subclasses(inner)


def _plain(value: Any) -> Any:
    """The tree without null, which a TOML file cannot hold, and without titles, which repeat the keys."""
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return value.replace("``", "`")
    if not isinstance(value, dict):
        return value
    if "anyOf" in value:
        left = [inner for inner in value["anyOf"] if inner != {"type": "null"}]
        value = {**value, "anyOf": left} if len(left) > 1 else {**left[0], **_without(value, "anyOf")}
    if value.get("default", 0) is None:
        value = _without(value, "default")
    return {key: _plain(inner) for key, inner in value.items() if key != "title" or isinstance(inner, dict)}


def _without(tree: Tree, key: str) -> Tree:
    return {name: value for name, value in tree.items() if name != key}
