"""Layers that compute their weight from stored tensors, for the tests of such weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm


class Same(nn.Module):
    def forward(self, w):
        return w


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


class Polar(nn.Module):
    """Two stored tensors for one weight."""

    def forward(self, size, direction):
        return size.exp() * direction

    def right_inverse(self, w):
        return torch.zeros_like(w), w


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(shape).double() / 4) for shape in ((4, 2), (2, 4)))

    def forward(self, w):
        return w + self.a @ self.b


class Equalized:
    """A forward pre-hook of another library, such as those of GANs with equalized learning rates."""

    name = "weight"

    def compute_weight(self, layer):
        return layer.weight_orig / 2

    def __call__(self, layer, inputs):
        layer.weight = self.compute_weight(layer)


def equalized(layer):
    layer.weight_orig = nn.Parameter(layer.weight.detach())
    del layer._parameters["weight"]
    layer.weight = layer.weight_orig.detach()
    layer.register_forward_pre_hook(Equalized())
    return layer


def by(*steps):
    def change(layer):
        for step in steps:
            parametrize.register_parametrization(layer, "weight", step())
        return layer

    return change


def linear():
    return nn.Linear(4, 4).double()


def transposed():
    return nn.ConvTranspose1d(4, 3, 2).double()


LAYERS = {
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "weight norm of a transposed convolution": lambda: parametrizations.weight_norm(transposed(), dim=1),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "older weight norm": lambda: weight_norm(linear()),
    "older spectral norm": lambda: spectral_norm(linear()),
    "another hook": lambda: equalized(linear()),
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 5),
    "pruned twice": lambda: prune.random_structured(prune.l1_unstructured(linear(), "weight", 5), "weight", 1, dim=0),
    "symmetric": lambda: by(Symmetric)(linear()),
    "two tensors": lambda: by(Polar)(linear()),
    "a chain": lambda: by(Symmetric, LowRank)(linear()),
}
MASKS = {"pruned", "pruned twice"}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def inputs_of(model):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, 3, generator=draw).double()
    return x if isinstance(model[0], nn.ConvTranspose1d) else x[..., 0]


def weight_of(model):
    """The weight that the last forward pass used, differentiable: torch computes it in a pass in evaluation mode."""
    model.eval()(torch.ones_like(inputs_of(model)))
    weight = model[0].weight
    model.train()
    return weight
