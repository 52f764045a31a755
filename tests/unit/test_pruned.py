"""Models without what was dropped: they compute the same, and how much smaller they are."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from tests.unit.gating import each_kind, each_layer, network
from torchreg import compress
from torchreg.diagnostics import compression
from torchreg.nn import HardConcrete, pruned

# -- ordinary layers ----------------------------------------------------------------------------------------------


@each_kind
@each_layer
def test_what_is_pruned_computes_the_same(kind, make, shape):
    layer = kind(make()).eval()
    with torch.no_grad():
        getattr(layer, layer.rates).normal_(0, 3)
    x = torch.randn(shape, dtype=torch.float64)
    ordinary = layer.pruned()
    assert type(ordinary) is type(layer.layer)
    assert_close(ordinary(x), layer(x))


def test_pruning_a_model_replaces_every_layer_and_leaves_the_model_alone():
    model = network().eval()
    before = copy.deepcopy(model.state_dict())
    ordinary = pruned(model)
    assert [type(layer) for layer in ordinary] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    x = torch.randn(5, 6, dtype=torch.float64)
    assert_close(ordinary(x), model(x))
    assert_bit_equal(dict(model.state_dict()), dict(before))
    assert type(pruned(model[0])) is nn.Linear


def test_a_layer_used_twice_stays_one_layer():
    shared = HardConcrete(nn.Linear(3, 3))
    ordinary = pruned(nn.ModuleList([shared, shared]))
    assert ordinary[0] is ordinary[1]


def test_what_closed_gates_leave_can_be_compressed():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), HardConcrete(nn.Linear(8, 3)))
    with torch.no_grad():
        model[2].log_alpha[2:] = -10
    small = compress(pruned(model))
    assert small[0].out_features == 2
    x = torch.randn(4, 6)
    assert_close(small(x), model.eval()(x), tolerance=1e-5)


# -- how much smaller ---------------------------------------------------------------------------------------------


def test_compression_counts_weights_units_bits_and_bytes():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data[1:] = 0
    counted = compression(model)
    assert counted.weights == 18 / 10
    assert counted.units == 18 / 6
    assert counted.bits == pytest.approx(32 * 18 / (32 * 10 + math.log2(math.comb(12, 4))))
    assert counted.bytes == 4 * (4 + 2) + 4 * (1 + 2)  # 4-1-2 without zeros, with three biases
    assert compression(nn.Sequential(nn.ReLU())) == (1, 1, 1, 0)
    assert compression(nn.ModuleList([nn.Linear(2, 2)])).units is None


def narrowed(units, hidden):
    """A network of which so many inputs and hidden units are left, without zeros among their weights."""
    sizes = [784, *hidden, 10]
    layers = [nn.Linear(before, after) for before, after in pairwise(sizes)]
    with torch.no_grad():
        for layer, inputs, outputs in zip(layers, units, [*units[1:], 10], strict=True):
            layer.weight[:, inputs:] = 0
            layer.weight[outputs:] = 0
            layer.bias[outputs:] = 0
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


@pytest.mark.parametrize(
    ("units", "hidden", "published"),
    [
        ((245, 160, 55), (500, 300), 195_100),  # structured Bayesian pruning
        ((266, 88, 33), (300, 100), 107_092),  # L0
        ((97, 71, 33), (300, 100), 38_696),  # VIBNet
    ],
)
def test_the_bytes_are_those_of_the_published_table(units, hidden, published):
    """Utku Evci et al., "Rigging the Lottery", 2020, table 2."""
    assert compression(narrowed(units, hidden)).bytes == published


def test_the_bytes_of_a_sparse_network_count_a_mask_and_the_values():
    """RigL+ of the same table: 375-62-51 in 16,113 bytes, with 88.6 % zeros among the weights that are left."""
    model = narrowed((375, 62, 51), (300, 100))
    many = 0
    with torch.no_grad():
        for place, (outputs, inputs) in zip((0, 2, 4), ((62, 375), (51, 62), (10, 51)), strict=True):
            order = torch.arange(max(outputs, inputs))
            chance = torch.rand(outputs, inputs)
            chance[order % outputs, order % inputs] = 2.0  # each unit and input stays
            kept = chance >= chance.flatten().topk(round(0.114 * chance.numel())).values[-1]
            model[place].weight[:outputs, :inputs] *= kept
            many += chance.numel()
    assert compression(model).bytes == pytest.approx(many / 8 + 4 * 0.114 * many + 4 * (62 + 51 + 10), abs=10)
    assert compression(model).bytes == pytest.approx(16_113, rel=0.005)  # the share is published to three digits


def test_the_bytes_of_a_dense_network_are_those_of_its_parameters():
    dense = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    assert compression(dense).bytes == 4 * sum(param.numel() for param in dense.parameters())
    assert compression(nn.ModuleList([nn.Linear(2, 2)])).bytes is None
