"""Diagnostics of models whose weights are not plain parameters: pruned by torch, without values, or without shapes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.helpers import assert_bit_equal, assert_close
from torchreg import diagnostics

X = torch.ones(2, 4)


class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.two(self.one(x).relu())


def sequence():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def everywhere(model):
    places = [(module, "weight") for module in model.modules() if isinstance(module, nn.Linear)]
    prune.global_unstructured(places, pruning_method=prune.L1Unstructured, amount=0.5)


def twice(model):
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    prune.l1_unstructured(layer, "weight", amount=0.5)
    prune.random_unstructured(layer, "weight", amount=2)
    prune.l1_unstructured(layer, "bias", amount=1)


def a_unit(model):
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    prune.ln_structured(layer, "weight", amount=1, n=2, dim=0)


def and_trained(model):
    a_unit(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(X).square().sum().backward()
    optimizer.step()  # the weight that the last forward pass has left is an old one now


def permanent(model):
    """The same model without masks, by torch's own function."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for name in ("weight", "bias"):
            if hasattr(module, f"{name}_mask"):
                prune.remove(module, name)
    return twin


@pytest.mark.parametrize("make", [sequence, Branched])
@pytest.mark.parametrize("change", [everywhere, twice, a_unit, and_trained])
@pytest.mark.parametrize("example", [None, X])
def test_a_pruned_model_is_counted_as_one_whose_masks_are_permanent(make, change, example):
    torch.manual_seed(0)
    model = make()
    change(model)
    before = copy.deepcopy(model.state_dict())
    found = diagnostics.compression(model, example)
    assert_bit_equal(model.state_dict(), before)
    with torch.no_grad():
        model(X)  # torch copies a computed weight only without its graph
    plain = permanent(model)
    weights = [param for param in plain.parameters() if param.ndim == 2]
    assert found.weights == sum(w.numel() for w in weights) / sum(int((w != 0).sum()) for w in weights)
    assert found == diagnostics.compression(plain, example)
    assert (found.units is None) == (make is Branched and example is None)


@pytest.mark.parametrize("hide", [a_unit, lambda model: nn.utils.spectral_norm(model[0])], ids=["mask", "older hook"])
def test_units_behind_what_computes_a_weight_stay_also_before_the_first_run(hide):
    model = sequence().eval()
    hide(model)
    small = diagnostics.compress(model)
    assert [tuple(param.shape) for param in small.parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert_close(small(X), model(X))
    assert all(stream.dead == [] for stream in diagnostics.coupled_units(model))


@pytest.mark.parametrize(
    "function",
    [
        diagnostics.compression,
        diagnostics.sparsity,
        diagnostics.norms,
        diagnostics.compress,
        diagnostics.coupled_units,
        lambda model: diagnostics.compression(model, X),
    ],
)
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (sequence().to("meta"), r"0\.weight must have values, it is on the meta device: move the model by to_empty"),
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).to("meta")), r"1\.weight must have values"),
        (
            nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)),
            r"0\.weight has no shape yet: run one batch through the lazy",
        ),
    ],
    ids=["meta", "partly meta", "lazy"],
)
def test_a_model_without_values_is_refused_in_one_line(function, model, said):
    with pytest.raises(ValueError, match=rf"\A(compression|sparsity|norms|compress|coupled_units): {said}[^\n]*\Z"):
        function(model)


@pytest.mark.parametrize("function", [diagnostics.compression, diagnostics.sparsity, diagnostics.norms])
def test_what_is_no_model_is_refused_in_one_line(function):
    with pytest.raises(TypeError, match=r"\A\w+: model must be a torch\.nn\.Module, got dict\Z"):
        function({"weight": X})
