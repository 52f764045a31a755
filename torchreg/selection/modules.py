"""Selecting modules of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from types import GeneratorType

from torch import Tensor, nn

ModuleFilter = str | nn.Module | type[nn.Module] | Callable[[str, nn.Module], bool]


def check_model(owner: str, model: nn.Module) -> None:
    """Raises ``TypeError`` unless the model is a module."""
    if isinstance(model, nn.Module):
        return
    given: object = model
    if isinstance(given, type):
        raise TypeError(f"{owner}: model must be a torch.nn.Module, got the class {given.__name__}: pass an instance")
    is_listed = isinstance(given, list | tuple) and given and all(isinstance(each, Tensor) for each in given)
    is_of_parameters = is_listed or isinstance(given, GeneratorType | Mapping | Tensor)
    advice = ": pass the model itself, not its parameters" if is_of_parameters else ""
    raise TypeError(f"{owner}: model must be a torch.nn.Module, got {type(given).__name__}{advice}")


def select_modules(
    owner: str, model: nn.Module, modules: ModuleFilter | Iterable[ModuleFilter], argument: str = "modules"
) -> dict[str, nn.Module]:
    """The modules that any of the filters matches, each once, under its first name.

    Args:
        owner: the name with which error messages begin.
        model: any module; it can be selected itself, under the name ``""``.
        modules: a pattern on full names, a module, a type, a predicate ``(name, module) -> bool``, or several of these.
        argument: the name of the owner's argument.

    Raises:
        ValueError: one of the filters matches no module.
        TypeError: ``modules`` is of another kind.
    """
    filters = [modules] if isinstance(modules, str) or callable(modules) else modules
    if not isinstance(filters, Iterable):
        raise TypeError(
            f"{owner}: {argument} must be a pattern, type or predicate, or several of these, got {modules!r}"
        )
    places = list(model.named_modules(remove_duplicate=False))
    names = listed([name or "'' (the model)" for name, _ in places])
    classes = listed(list(dict.fromkeys(type(module).__name__ for _, module in places)))
    found: set[nn.Module] = set()
    for wanted in filters:
        matched = {module for name, module in places if _matches(wanted, name, module, f"{owner}: {argument}")}
        if not matched:
            got = f"the class {wanted.__name__}" if isinstance(wanted, type) else repr(wanted)
            among = classes if isinstance(wanted, type) else names
            raise ValueError(f"{owner}: {argument} must select some, {got} matches none of {among}")
        found |= matched
    if not found:
        raise ValueError(f"{owner}: {argument} must select some of {names}, got {modules!r}")
    return {name: module for name, module in model.named_modules() if module in found}


def _matches(wanted: ModuleFilter, name: str, module: nn.Module, what: str) -> bool:
    if isinstance(wanted, str):
        return fnmatchcase(name, wanted)
    if isinstance(wanted, nn.Module):
        return module is wanted
    if isinstance(wanted, type):
        return isinstance(module, wanted)
    if callable(wanted):
        return wanted(name, module)
    raise TypeError(f"{what} must be patterns, types or predicates, got {wanted!r}")


def kind_of(value: object) -> str:
    """The kind of a value with its article, as "a list"; the name of a class, as "the class L1"."""
    if value is None or isinstance(value, type):
        return "None" if value is None else f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1] in tuple('aeiouAEIO') else 'a'} {name}"


def listed(names: list[str], most: int = 12) -> str:
    """The names in one line, of many only the first."""
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "a model without parameters"
