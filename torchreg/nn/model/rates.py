"""Where a model holds its drop rates: in layers, and as numbers."""

from __future__ import annotations

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
        and module.dropout > 0
    ]


def others_numbers(model: nn.Module) -> list[Number]:
    """What may be rates of other modules: their numbers in (0, 1] whose name, or whose module, says that they drop."""
    return [
        Number(name, module, attribute)
        for name, module in model.named_modules()
        if not is_torchs(module)
        for attribute, value in vars(module).items()
        if type(value) is float and 0 < value <= 1 and _is_rate(type(module).__name__.lower(), attribute.lower())
    ]


def _is_rate(kind: str, attribute: str) -> bool:
    return "drop" in attribute or attribute == "p" or ("drop" in kind and attribute in ("prob", "rate"))


def is_torchs(module: nn.Module) -> bool:
    """Whether it is a module of torch or a dropout layer, which is known, or a transformation of images."""
    return isinstance(module, LAYERS) or type(module).__module__.startswith(("torch.", "torchvision.transforms."))


def held_by(module: nn.Module) -> dict[str, nn.Module]:
    """The dropout layers with a rate that a module holds itself, or in a list or dictionary."""
    found = {}
    for key, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found.update({f"{key}.{rest}": layer for rest, layer in held_by(child).items()})
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
