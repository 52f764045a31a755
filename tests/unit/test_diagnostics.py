"""Sparsity and norms of the weights, and of nothing else."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_close, make_model, weights_of
from torchreg import L2, Regularizer
from torchreg.diagnostics import norms, sparsity


@pytest.mark.parametrize("pattern", [[0.0, 0.0, 0.0], [1.0, 0.0, -0.0], [1.0, 2.0, torch.nan]], ids=str)
def test_sparsity_is_the_share_of_exact_zeros(pattern):
    layer = nn.Linear(3, 1)
    layer.weight.data = torch.tensor([pattern])
    assert_close(sparsity(layer), {"weight": sum(value == 0 for value in pattern) / 3})


def test_norms_are_euclidean():
    model = make_model()
    expected = {
        name: value.square().sum().sqrt().item() for name, value in weights_of(model).items() if "weight" in name
    }
    assert_close(norms(model), expected)


@pytest.mark.parametrize("measure", [sparsity, norms])
def test_only_weights_are_measured_each_once(measure):
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.LayerNorm(3), layer)
    assert measure(model).keys() == {"0.weight"}
    assert measure(nn.ReLU()) == {}


@pytest.mark.parametrize("measure", [sparsity, norms])
def test_what_is_penalized_is_measured(measure):
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "norm": nn.LayerNorm((3, 2))})
    model["norm"].weight = model["table"].weight  # tied, and exempt in one of its places only
    assert measure(model).keys() == {e.name for e in Regularizer(model, L2(1.0)).entries if e.penalty}


@pytest.mark.parametrize("measure", [sparsity, norms])
def test_an_empty_weight_is_measured_as_zero(measure):
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(0, 3))
    assert measure(model) in ({"weight": 0.0}, {"weight": 1.0})
