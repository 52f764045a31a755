"""Rates of dropout layers, and the normal noise by which a loss is differentiated by them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from torchreg import functional as f
from torchreg.nn.concrete import ConcreteDropout
from torchreg.nn.dropout import GaussianDropout

Bounds = tuple[float, float]
Noisy = ConcreteDropout | GaussianDropout


class Rate:
    """The rate of one layer: the parameter ``logit_p``, or the number ``p``."""

    def __init__(self, layer: Noisy) -> None:
        self.layer = layer

    @property
    def param(self) -> nn.Parameter | None:
        return self.layer.logit_p if isinstance(self.layer, ConcreteDropout) else None

    @property
    def value(self) -> float:
        return self.layer.p.item() if isinstance(self.layer, ConcreteDropout) else self.layer.p

    @value.setter
    def value(self, p: float) -> None:
        if isinstance(self.layer, ConcreteDropout):
            with torch.no_grad():
                self.layer.logit_p.fill_(math.log(p / (1 - p)))
        else:
            self.layer.p = p

    def leaf(self, bounds: Bounds) -> Tensor:
        """The log-odds, to differentiate by."""
        if self.param is not None:
            return self.param.detach().clone().requires_grad_()
        return torch.tensor(_logit(_within(self.value, bounds)), dtype=torch.float64).requires_grad_()

    @torch.no_grad()
    def move(self, by: float, bounds: Bounds) -> None:
        """Adds to the log-odds, and stays in the bounds."""
        if self.param is not None:
            self.param.add_(by).clamp_(*map(_logit, bounds))
            return
        logit = _logit(_within(self.value, bounds)) + by
        self.value = _within(1 / (1 + math.exp(-logit)), bounds)


def rates_of(model: nn.Module) -> dict[str, Rate]:
    """The rates that can be tuned, by the layers' names."""
    return {name: Rate(layer) for name, layer in model.named_modules() if isinstance(layer, Noisy)}


@contextmanager
def noise(logits: Mapping[Rate, Tensor], sign: int) -> Iterator[None]:
    """Layers multiply by normal noise of the variance of their dropout, which is differentiable in the log-odds."""
    layers = [rate.layer for rate in logits]
    before = [vars(layer).get("forward") for layer in layers]
    for rate, logit in logits.items():
        rate.layer.forward = partial(_noisy, rate.layer, logit, sign)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward  # type: ignore[method-assign]


def _noisy(layer: Noisy, logit: Tensor, sign: int, input: Tensor) -> Tensor:
    if isinstance(layer, GaussianDropout):
        shape = layer._shape(input)
    else:
        is_linear = isinstance(layer.layer, nn.Linear)
        shape = tuple(input.shape) if is_linear else layer._over_channels(input)
    drawn = f.drawn(torch.randn, shape, input.device, None, input.dtype)
    deviation = (logit / 2).exp().to(input.device, input.dtype)  # its square is p / (1 - p)
    noisy = input * (1 + sign * deviation * drawn)
    return layer.layer(noisy) if isinstance(layer, ConcreteDropout) else noisy


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _within(p: float, bounds: Bounds) -> float:
    return min(max(p, bounds[0]), bounds[1])
