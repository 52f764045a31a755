"""Each parameter of a model, with the places it stands in."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class ParamInfo:
    """One place of a parameter in a model: what selectors and penalties see of it.

    Args:
        name: its full name in the model, such as ``"features.0.weight"``.
        param: the parameter.
        module: the module that owns it.
        parent: the module that holds that module, if any.
    """

    name: str
    param: nn.Parameter
    module: nn.Module
    parent: nn.Module | None = None


def each_parameter(model: nn.Module) -> Iterator[list[ParamInfo]]:
    """Each parameter of the model once, with every place it stands in: several places if it is tied."""
    places: dict[nn.Parameter, list[ParamInfo]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        parent = modules[prefix.rpartition(".")[0]] if prefix else None
        for own_name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{own_name}" if prefix else own_name
            places.setdefault(param, []).append(ParamInfo(name, param, module, parent))
    yield from places.values()
