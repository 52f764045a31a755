"""Networks of torchvision and timm, and how a network begins: its initial values, and which of them stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import torchreg
from torchreg.selection.parameters import each_parameter

from .. import config
from ..errors import UserError, did_you_mean
from .data import Examples
from .data.vision import torchvision_module
from .imports import constructed


def of_torchvision(settings: config.Model, examples: Examples) -> nn.Module:
    """A classifier of torchvision, with as many outputs as the data needs, and as many channels.

    Weights that torchvision has are for three channels and other classes: the last layer is then a new one.
    """
    key, name = "model.torch", settings.torch or ""
    models = torchvision_module("models", key)
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"{key}: unknown name {name!r}, {did_you_mean(name, known)}")
    channels, outputs = _channels(key, examples), examples.task.outputs
    make = models.get_model_builder(name)
    if settings.options.get("weights") is None:
        made: nn.Module = constructed("model", make, name, settings.options, table=settings, num_classes=outputs)
        return made if channels == 3 else _with_channels(made, channels, name)
    if channels != 3:
        raise UserError(f"model.weights: are for images of 3 channels, got {channels}: remove the key")
    made = constructed("model", make, name, settings.options, table=settings)
    last, layer = [(place, module) for place, module in made.named_modules() if not list(module.children())][-1]
    if not isinstance(layer, nn.Linear):
        raise UserError(f"model.weights: {name} ends in no linear layer to replace: remove the key")
    _replace(made, last, nn.Linear(layer.in_features, outputs, bias=layer.bias is not None))
    return made


def of_timm(settings: config.Model, examples: Examples) -> nn.Module:
    """A model of timm, with as many outputs as the data needs, and as many channels."""
    key, name = "model.timm", settings.timm or ""
    try:
        timm: Any = import_module("timm")
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}: needs timm, which cannot be imported ({reason}): pip install timm") from None
    if not timm.is_model(name):
        raise UserError(f"{key}: unknown name {name!r}, {did_you_mean(name, timm.list_models())}")
    given = {"num_classes": examples.task.outputs, "in_chans": _channels(key, examples)}

    def make(**options: Any) -> nn.Module:
        made: nn.Module = timm.create_model(name, **options)
        return made

    made: nn.Module = constructed("model", make, name, settings.options, table=settings, **given)
    return made


def draw(net: nn.Module, init: Callable[[Tensor], Any]) -> None:
    """Draws the weights anew; the biases become 0."""
    with torch.no_grad():
        for param, is_bias in _drawn(net):
            if is_bias:
                param.zero_()
            else:
                init(param)


def scale(net: nn.Module, factor: float) -> None:
    """Multiplies the initial weights and biases."""
    with torch.no_grad():
        for param, _ in _drawn(net):
            param.mul_(factor)


def freeze(net: nn.Module, patterns: Sequence[str]) -> None:
    """Keeps the parameters that a pattern names as they are."""
    params = dict(net.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        named = [name for name in params if fnmatchcase(name, pattern)]
        if not named:
            raise UserError(
                f"model.freeze: {pattern!r} matches none of the parameters {_some(list(params))}: "
                "a pattern matches whole names, as 'linear1.*' does"
            )
        for name in named:
            params[name].requires_grad_(False)
    if not any(param.requires_grad for param in params.values()):
        raise UserError(f"model.freeze: must leave parameters to train, got {', '.join(patterns)}, which are all")


def _drawn(net: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """The parameters that layers draw at random, and whether it is a bias; no scales, tokens or learned rates."""
    for place, *_ in each_parameter(net):
        reason = torchreg.weights.reason(place)
        if reason in (None, "bias"):
            for param in (place.param,) if place._computed is None else place._computed.stored:
                yield param, reason == "bias"


def _channels(key: str, examples: Examples) -> int:
    if len(examples.shape) != 3:
        raise UserError(f"{key}: is for images of channels, height and width, got inputs of shape {examples.shape}")
    return examples.shape[0]


def _with_channels(net: nn.Module, channels: int, name: str) -> nn.Module:
    """The network with a first convolution of so many channels."""
    place, layer = next(((p, m) for p, m in net.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if layer is None or layer.in_channels != 3 or layer.groups != 1:
        raise UserError(f"model.torch: {name} takes images of 3 channels, got {channels}: choose another")
    options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "padding_mode")}
    _replace(
        net,
        place,
        nn.Conv2d(channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None, **options),  # type: ignore[arg-type]
    )
    return net


def _replace(net: nn.Module, place: str, layer: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    setattr(net.get_submodule(parent), name, layer)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
