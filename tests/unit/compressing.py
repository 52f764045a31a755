"""Models with units that are dead, for the tests of compression."""

import torch
from torch import nn

from tests.helpers import assert_close
from torchreg.diagnostics.dead_units import compress

SIDE = 9  # of the maps that convolutions get


def randomized(model, seed=0):
    """The model in double precision, with weights and running statistics that are all different."""
    model = model.double().eval()
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype))
            tensor.abs_() if name.endswith("running_var") else None
    return model


def build(*modules, seed=0):
    """The modules in sequence, randomized."""
    return randomized(nn.Sequential(*modules), seed)


def kill(layer, units, *, also_outgoing=()):
    """Sets all that comes into some units of a layer to zero; their biases stay."""
    layer.weight.data[list(units)] = 0
    for reader in also_outgoing:
        reader.weight.data[:, list(units)] = 0


def silence(layer, columns):
    """Sets what a layer reads from some columns to zero."""
    layer.weight.data[:, list(columns)] = 0


def image(channels=2, dims=2):
    return torch.randn(3, channels, *[SIDE] * dims, dtype=torch.float64)


def widths(model):
    """The number of outputs of each linear layer and convolution, as the layers and as their weights have it."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    named = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in layers]
    assert named == [m.weight.shape[0] for m in layers]
    return named


def size(model):
    return sum(p.numel() for p in model.parameters())


def assert_same_outputs(small, model, x):
    with torch.no_grad():
        assert_close(small(x), model(x))


def assert_compresses(model, x, expected):
    """To these widths, with the same outputs."""
    small = compress(model)
    assert widths(small) == expected
    assert_same_outputs(small, model, x)
    assert (size(small) < size(model)) == (expected != widths(model))
    return small
