"""Where a model holds its drop rates: in layers, and as numbers."""

from __future__ import annotations

import inspect
import math
from types import CodeType
from typing import NamedTuple

from torch import nn

from torchreg.nn.seeded import Seeded

LAYERS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    getattr(nn.modules.dropout, "_DropoutNd", nn.Dropout),  # the base class of these
    Seeded,
)


class Number(NamedTuple):
    """A rate that a module holds as a number."""

    name: str  # of the module
    module: nn.Module
    attribute: str

    @property
    def rate(self) -> float:
        return float(getattr(self.module, self.attribute))

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"{self.name or 'the model'} ({kind}, {self.attribute}={getattr(self.module, self.attribute)})"


def is_idle(layer: nn.Module) -> bool:
    """Whether a dropout layer has the rate 0."""
    rate = getattr(layer, "p", None)  # layers that learn have a tensor or other parameters
    return isinstance(rate, int | float) and rate == 0


def layers_in(model: nn.Module) -> dict[str, nn.Module]:
    """The dropout layers of torch and torchreg, and subclasses of these."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


def torchs_numbers(model: nn.Module) -> list[Number]:
    """The rates of ``nn.MultiheadAttention`` and of recurrent layers. Their modules do nothing else in training mode.

    A recurrent layer drops between its layers, so that one layer alone drops nothing.
    """
    return [
        Number(name, module, "dropout")
        for name, module in model.named_modules()
        if (isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1))
        and not isinstance(module, Seeded)
        and module.dropout > 0
    ]


def others_numbers(model: nn.Module) -> list[Number]:
    """What may be rates of other modules: their numbers in (0, 1] whose name, or whose module, says that they drop.

    A number that no method uses, and that something in the module has as its rate, is only the configuration of that.
    """
    numbers = [
        Number(name, module, attribute)
        for name, module in model.named_modules()
        if not is_torchs(module)
        for attribute, value in vars(module).items()
        if type(value) is float and 0 < value <= 1 and _is_rate(type(module).__name__.lower(), attribute.lower())
    ]
    layers = [Number(name, layer, "p") for name, layer in layers_in(model).items()]
    known = [number for number in layers if isinstance(getattr(number.module, "p", None), float)]
    known += [*torchs_numbers(model), *numbers]
    return [number for number in numbers if not _is_configuration(number, known)]


def _is_configuration(number: Number, known: list[Number]) -> bool:
    same = {other.module for other in known if math.isclose(other.rate, number.rate, rel_tol=1e-6)} - {number.module}
    return not same.isdisjoint(number.module.modules()) and not _is_used(number)


def _is_used(number: Number) -> bool:
    """Whether a method other than the constructor has the attribute's name in its code."""
    if "forward" in vars(number.module):
        return True
    methods = {name for kind in type(number.module).__mro__ if not _is_of_torch(kind) for name in vars(kind)}
    found = [inspect.unwrap(getattr(type(number.module), name)) for name in methods - {"__init__", "extra_repr"}]
    return any(number.attribute in _names(part.__code__) for part in found if inspect.isfunction(part))


def _names(code: CodeType) -> set[str]:
    """The names in the code of a function, and of the functions in it."""
    return set(code.co_names).union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


def _is_rate(kind: str, attribute: str) -> bool:
    return "drop" in attribute or attribute == "p" or ("drop" in kind and attribute in ("prob", "rate"))


def is_torchs(module: nn.Module) -> bool:
    """Whether it is a module of torch or a dropout layer, which is known, or a transformation of images."""
    return isinstance(module, LAYERS) or _is_of_torch(type(module))


def _is_of_torch(kind: type) -> bool:
    return kind is object or kind.__module__.startswith(("torch.", "torchvision.transforms."))


def held_by(module: nn.Module, in_sequentials: bool = True) -> dict[str, nn.Module]:
    """The dropout layers with a rate that a module holds itself, or in a list, a dictionary or a ``Sequential``."""
    found = {}
    for key, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or (in_sequentials and type(child) is nn.Sequential):
            found.update({f"{key}.{rest}": layer for rest, layer in held_by(child, in_sequentials).items()})
        elif isinstance(child, LAYERS) and not is_idle(child):
            found[key] = child
    return found


def numbers_in(model: nn.Module) -> list[Number]:
    """All rates that are held as numbers, of torch's modules and of others."""
    return torchs_numbers(model) + others_numbers(model)


def shown(module: nn.Module) -> str:
    """The module in one line; torch's own with the prefix ``nn.``."""
    kind = type(module)
    return f"{'nn.' * kind.__module__.startswith('torch.nn.')}{kind.__name__}({module.extra_repr()})"
