"""Errors of the user, each in one line: the key, what was expected, what was given."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

import torchreg

M = TypeVar("M", bound=BaseModel)
# The folders of this package, of the library, and of Python's own modules.
_OTHERS = {Path(module.__file__ or "").parent for module in (sys.modules[__package__], torchreg, traceback)}
_ALIKE = 0.9  # of two words that differ by a letter
_SYNONYMS = {"learning_rate": "lr", "lambda": "strength", "decay": "weight_decay"}  # which have few letters in common

_WORDING = {
    "^(Input|String|Tuple|Value) should": "must",
    "^(Value error|Assertion failed), ": "",
    "dictionary or instance of .*": "table",
    "tuple": "list",
    " after validation, not .*": "",
    r"match pattern .*\[\\w.*": "be of the form package.module:Class",
    r"match pattern .*": "be a name on one line",
}


class UserError(Exception):
    """An error that the user can correct; the command line prints its text and exits with code 2."""


class RecordError(UserError):
    """A file of a record that is damaged or cannot be written: it ends the study, and not one run of it."""


class StorageError(RecordError):
    """A storage that cannot be reached, or refuses: what it holds may be whole."""


def oneline(error: BaseException) -> str:
    """The text of an exception in one line; with the place if that is in the user's own files."""
    try:
        said = str(error)
    except Exception:  # of the user's own class, whose __str__ is wrong
        said = ""
    text = " ".join(said.split()).encode(errors="backslashreplace").decode() or type(error).__name__
    if not isinstance(error, (ValueError, TypeError, RuntimeError, UserError)):
        text = f"{type(error).__name__}: {text}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<"]
    own = [f for f in frames if "site-packages" not in f.filename and _OTHERS.isdisjoint(Path(f.filename).parents)]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A hint with the nearest valid word in any case of letters, or with all valid words if few or none is near.

    Example:
        >>> did_you_mean("Adamw", ["Adam", "AdamW", "Muon", "RAdam", "SGD"])
        "did you mean 'AdamW'?"
    """
    valid = sorted(valid)
    if (synonym := _SYNONYMS.get(word)) in valid:
        return f"did you mean {synonym!r}?"
    written = {known.casefold(): known for known in reversed(valid)}
    near = get_close_matches(word.casefold(), written, n=1, cutoff=0.5)
    if near and len(valid) > 4:
        return f"did you mean {written[near[0]]!r}?"
    return f"valid: {', '.join(valid)}" if valid else "there are no keys here"


def validated(
    cls: type[M],
    tree: Mapping[str, Any],
    prefix: str = "",
    also: Sequence[str] = (),
    places: Mapping[str, str] = MappingProxyType({}),
) -> M:
    """The tree as a ``cls``.

    Args:
        cls: a section.
        tree: of its keys.
        prefix: begins each line of an error.
        also: keys that are valid at its top besides the class's own.
        places: where keys belong that stand at its top, or in one of its tables, by mistake.

    Raises:
        UserError: a line for each fault.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        header = re.sub(r"\[.*\]", "", prefix)  # arms[L1].regularizers is written [[arms.regularizers]]
        raise UserError("\n".join(prefix + line for line in faults(error, cls, also, header, places))) from None


def faults(
    error: ValidationError,
    cls: type[BaseModel] | None = None,
    also: Sequence[str] = (),
    header: str = "",
    places: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """A line for each error, without errors that only follow from another one; ``header`` begins those of tables."""
    found = error.errors()
    paths = [fault["loc"] for fault in found]
    return [
        _line(fault, cls, also, header, places)
        for fault in found
        if not any(len(path) > len(fault["loc"]) and path[: len(fault["loc"])] == fault["loc"] for path in paths)
    ]


def _line(
    fault: Mapping[str, Any],
    cls: type[BaseModel] | None,
    also: Sequence[str],
    header: str,
    places: Mapping[str, str],
) -> str:
    where = ".".join(map(str, fault["loc"]))
    *above, key = fault["loc"] or ("",)
    if fault["type"] == "extra_forbidden" and cls is not None:
        keys = [*keys_of(cls, above), *(also if not above else ())]
        is_misspelt = get_close_matches(str(key), keys, n=1, cutoff=_ALIKE)
        word = _SYNONYMS.get(str(key), str(key))
        is_here = len(above) > 1 or is_misspelt or word in keys  # deeper keys may be options of the user's own
        elsewhere = "" if is_here else places.get(word) or place_of(word, cls)
        return f"{where}: unknown key, {elsewhere or did_you_mean(str(key), keys)}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    message = fault["msg"]
    for pydantic, ours in _WORDING.items():
        message = re.sub(pydantic, ours, message)
    advice = ""
    if fault["type"] in ("list_type", "tuple_type"):
        advice = ": put it in brackets, as in [1, 2]"
        if isinstance(fault["input"], dict):
            advice = f": put it in brackets, as in {key} = [{{ ... }}], or begin its tables with [[{header}{where}]]"
    return f"{where}: {message}, got {fault['input']!r:.200}{advice}"


def keys_of(cls: type[BaseModel], path: Sequence[int | str] = ()) -> list[str]:
    """The valid keys of a section, or of one inside it that a path of keys leads to."""
    for part in path:
        if isinstance(part, str) and part in cls.model_fields:  # else a key that the user chose
            cls = _section_in(cls.model_fields[part].annotation) or cls
    return [field.alias or name for name, field in cls.model_fields.items()]


def place_of(key: str, cls: type[BaseModel]) -> str:
    """Where to write a key that the class or other tables of it have; nothing if none or many do."""
    if key in cls.model_fields:
        table = f"[[{key}]]" if get_origin(cls.model_fields[key].annotation) is tuple else f"[{key}]"
        return f"it is no part of another table: write {key} = ... above the first table, or begin {table}"
    sections = {name: _section_in(field.annotation) for name, field in cls.model_fields.items()}
    keys = {name: {*keys_of(one), *getattr(one, "usual", ())} for name, one in sections.items() if one is not None}
    places = [name for name, own in keys.items() if key in own]
    if not 1 <= len(places) <= 3:
        return ""
    is_list = get_origin(cls.model_fields[places[0]].annotation) is tuple
    example = f"{places[0]} = [{{ {key} = ... }}]" if is_list else f"{places[0]}.{key}"
    return f"it belongs in {' or '.join(places)}" + (f", as {example}" if len(places) == 1 else "")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for inner in get_args(annotation) if (section := _section_in(inner))), None)
