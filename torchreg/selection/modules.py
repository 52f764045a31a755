"""Choosing modules of a model, and naming what there was to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

Choice = str | nn.Module | type[nn.Module] | Callable[[str, nn.Module], bool]


def chosen(
    owner: str, model: nn.Module, modules: Choice | Iterable[Choice], argument: str = "modules"
) -> dict[str, nn.Module]:
    """The modules that any of the choices matches, each once, under its first name.

    Args:
        owner: whose errors these are.
        model: any module; it is among the choices, under the name ``""``.
        modules: a pattern on full names, a module, a type, a predicate ``(name, module) -> bool``, or several of these.
        argument: what the owner calls them.

    Raises:
        ValueError: one of the choices matches no module.
        TypeError: ``modules`` are none of the above.
    """
    choices = [modules] if isinstance(modules, str) or callable(modules) else modules
    if not isinstance(choices, Iterable):
        raise TypeError(f"{owner}: {argument} must be a pattern, type or predicate, got {modules!r}")
    places = list(model.named_modules(remove_duplicate=False))
    names = listed([name or "'' (the model)" for name, _ in places])
    found: set[nn.Module] = set()
    for choice in choices:
        matched = {module for name, module in places if _matches(choice, name, module, f"{owner}: {argument}")}
        if not matched:
            raise ValueError(f"{owner}: {argument} must choose some, {choice!r} matches none of {names}")
        found |= matched
    if not found:
        raise ValueError(f"{owner}: {argument} must choose some of {names}, got {modules!r}")
    return {name: module for name, module in model.named_modules() if module in found}


def _matches(choice: Choice, name: str, module: nn.Module, what: str) -> bool:
    if isinstance(choice, str):
        return fnmatchcase(name, choice)
    if isinstance(choice, nn.Module):
        return module is choice
    if isinstance(choice, type):
        return isinstance(module, choice)
    if callable(choice):
        return choice(name, module)
    raise TypeError(f"{what} must be patterns, types or predicates, got {choice!r}")


def listed(names: list[str], most: int = 12) -> str:
    """The names, or the first of many."""
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "a model without parameters"
