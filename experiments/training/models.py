"""The built-in networks; a study can also name its own class."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated

from pydantic import ConfigDict, Field, PositiveInt, validate_call
from torch import nn

Layer = Callable[[], nn.Module]
Wrapper = Callable[[nn.Module], nn.Module]
Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False)]

_checked = validate_call(config=ConfigDict(strict=True))


def _as_it_is(layer: nn.Module) -> nn.Module:
    return layer


@_checked
def mlp(
    shape: Sizes,
    outputs: PositiveInt,
    hidden: Sizes = (512, 512),
    dropout: Layer | None = None,
    input_dropout: Layer | None = None,
    wrap: Wrapper = _as_it_is,
) -> nn.Sequential:
    """A fully connected ReLU network, with ``dropout()`` after each hidden layer and ``input_dropout()`` before all.

    Each linear layer is wrapped by ``wrap``.
    """
    layers = _named(input_dropout=input_dropout)
    layers["flatten"] = nn.Flatten()
    width = math.prod(shape)
    for i, units in enumerate(hidden, start=1):
        layers[f"linear{i}"], layers[f"relu{i}"] = wrap(nn.Linear(width, units)), nn.ReLU()
        layers |= _named(**{f"dropout{i}": dropout})
        width = units
    layers["output"] = wrap(nn.Linear(width, outputs))
    return nn.Sequential(layers)


@_checked
def cnn(
    shape: Sizes,
    outputs: PositiveInt,
    channels: Sizes = (32, 64),
    hidden: PositiveInt = 128,
    dropout: Layer | None = None,
    input_dropout: Layer | None = None,
    wrap: Wrapper = _as_it_is,
) -> nn.Sequential:
    """3x3 convolutions, each followed by ReLU and 2x2 pooling, then one hidden layer with ``dropout()`` around it.

    Each convolution and linear layer is wrapped by ``wrap``.
    """
    if len(shape) != 3:
        raise ValueError(f"it needs images of channels, height and width, got inputs of shape {shape}: use mlp")
    depth, height, width = shape
    layers = _named(input_dropout=input_dropout)
    for i, filters in enumerate(channels, start=1):
        layers[f"conv{i}"], layers[f"relu{i}"] = wrap(nn.Conv2d(depth, filters, 3, padding=1)), nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        depth, height, width = filters, height // 2, width // 2
    layers |= {"flatten": nn.Flatten(), **_named(dropout1=dropout)}
    layers |= {"hidden": wrap(nn.Linear(depth * height * width, hidden)), "relu": nn.ReLU()}
    layers |= {**_named(dropout2=dropout), "output": wrap(nn.Linear(hidden, outputs))}
    return nn.Sequential(layers)


def _named(**layers: Layer | None) -> OrderedDict[str, nn.Module]:
    """The layers that are not None, by name, so that names do not change when an arm adds dropout."""
    return OrderedDict((name, make()) for name, make in layers.items() if make is not None)


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn}
