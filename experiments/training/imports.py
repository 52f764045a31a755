"""What a study names by its module, and how it is made. Errors name the key."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from pydantic import ValidationError

from ..config import Component, Section
from ..errors import UserError, did_you_mean, faults, keys_of, oneline


def imported(key: str, path: str, kind: Any) -> Callable[..., Any]:
    """What a study names by its module, unless it says that it makes something else than an object of the kind.

    Nothing is called before. A function without an annotation is taken at its word if a user wrote it: those of Python
    itself, such as ``sys:exit``, make none of the kinds.
    """
    found = found_at(key, path)
    made = found if inspect.isclass(found) else _annotated(found)
    if not (is_users_function(found) and made is None) and not (inspect.isclass(made) and issubclass(made, kind)):
        raise UserError(
            f"{key}: must name a class of {kind.__name__}, or a function of yours that makes one, "
            f"got {path!r}, {' '.join(repr(found).split()):.80}"
        )
    make: Callable[..., Any] = found
    return make


def found_at(key: str, path: str) -> Any:
    """What ``package.module:name`` is."""
    module, _, name = path.partition(":")
    try:
        return attrgetter(name)(import_module(module))
    except ModuleNotFoundError as error:
        where = ""
        if error.name == module.partition(".")[0]:
            where = f": it is neither installed nor in {Path.cwd()}, start in the folder that holds it"
        raise UserError(f"{key}: {path!r} cannot be imported: {oneline(error)}{where}") from error
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise UserError(f"{key}: {path!r} cannot be imported: {oneline(error)}") from error


def is_users_function(found: Any) -> bool:
    """Whether it is a function that is not Python's own."""
    return inspect.isfunction(found) and found.__module__.partition(".")[0] not in sys.stdlib_module_names


def _annotated(function: Any) -> Any:
    """What a function says that it returns, if it does."""
    try:
        returned = get_type_hints(function).get("return")
    except Exception:  # no function, or with a name that cannot be found
        return None
    return get_origin(returned) or returned


def constructed(
    key: str,
    make: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    *args: Any,
    table: Section | None = None,
    **given: Any,
) -> Any:
    """``make(*args, **given, **options)``, with each option checked against the constructor's signature.

    ``table`` is the one that the options stand in. An unknown key may be one of its own that is misspelt.
    """
    accepted = _parameters(make)
    own = [name for name in accepted[len(args) :] if name not in given]
    for option in options if accepted else ():
        if option not in own:
            is_inside = isinstance(table, Component) and option in table.args
            others = [] if table is None or is_inside else keys_of(type(table))
            where = f"{key}.args.{option}" if is_inside else f"{key}.{option}"
            raise UserError(f"{where}: unknown key, {did_you_mean(option, {*own, *others})}")
    if accepted:
        given = {name: value for name, value in given.items() if name in accepted}
    try:
        return make(*args, **given, **options)
    except ValidationError as error:
        raise UserError("\n".join(f"{key}.{line}" for line in faults(error))) from None
    except (Exception, SystemExit) as error:  # whatever a constructor raises is about what it was given
        text = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise UserError(f"{key}: {name}({text}) cannot be made: {oneline(error)}") from error


def component(
    key: str, kind: Any, settings: Component, table: Mapping[str, Callable[..., Any]], *args: Any, **given: Any
) -> Any:
    """The object that a table of the study names, of the given kind."""
    if settings.class_ is None:
        name = settings.name or ""
        make = found_in(f"{key}.name", name, table)
        return constructed(key, make, name, settings.options, *args, table=settings, **given)
    make = imported(f"{key}.class", settings.class_, kind)
    built = constructed(key, make, settings.class_, settings.options, *args, table=settings, **given)
    if not isinstance(built, kind):
        raise UserError(f"{key}.class: must make a {kind.__name__}, got {settings.class_!r}, which makes {built!r:.80}")
    return built


def found_in(key: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """What a name stands for."""
    if name not in table:
        raise UserError(f"{key}: unknown name {name!r}, {did_you_mean(name, table)}")
    return table[name]


def required(make: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a constructor cannot do without."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in parameters.items() if p.default is p.empty and p.kind in named]


def _parameters(make: Callable[..., Any]) -> list[str]:
    """The names of a constructor's arguments; an empty list if it accepts any, or has no signature."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return []
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else list(parameters)
