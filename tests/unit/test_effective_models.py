"""Effective penalties on models that are wrapped, compiled, parametrized, adapted, copied or changed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.helpers import assert_bit_equal, assert_close, by_pickle
from tests.unit.adapting import (
    CASES,
    LoRA,
    adapted,
    all_updates,
    batch,
    by_autograd,
    gradients,
    product,
    two_layers,
    update,
)
from torchreg import L2, Effective, Regularizer


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "data parallel"])
def test_wrapped_models(wrap):
    model = two_layers()
    regularizer = Regularizer(wrap(model), Effective(L2(1.0), product))
    assert_close(regularizer.value(), product(model).square().sum() / 2)
    assert regularizer.entries[0].name == "product()"
    model = adapted()
    regularizer = Regularizer(wrap(model), Effective(L2(1.0), update, modules=LoRA))
    assert_close(regularizer.value(), sum(w.square().sum() / 2 for w in all_updates(model)))
    assert all(a.name.endswith(".update()") for a in regularizer.entries if a.penalty)


def test_a_compiled_loss_is_the_eager_one():
    model = two_layers()
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    compiled = torch.compile(lambda x: model(x).square().mean() + regularizer.value(), backend="aot_eager")
    compiled(batch()).backward()
    expected = by_autograd(two_layers, CASES["product"][2], L2(1.0))
    assert_close(gradients(model), expected, 1e-10)


def test_layers_with_the_attributes_of_peft():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(4, 3).requires_grad_(False)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})
            self.scaling = {"default": 2.0}

        def get_delta_weight(self, adapter):
            return self.lora_B[adapter].weight @ self.lora_A[adapter].weight * self.scaling[adapter]

    model = nn.Sequential(Layer(), nn.Tanh())

    def change(layer):
        return layer.get_delta_weight("default")

    regularizer = Regularizer(model, Effective(L2(1.0), change, modules=Layer))
    row = regularizer.entries[0]
    assert (row.name, row.status) == (
        "0.change()",
        "L2(1.0) (computed by change of lora_A.default.weight, lora_B.default.weight)",
    )
    layer = model[0]
    weight = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert_close(regularizer.value(), weight.square().sum() / 2, 1e-6)


def test_parametrized_layers_inside_the_function():
    model = two_layers()
    parametrizations.weight_norm(model[0])
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    assert_close(regularizer.value(), product(model).square().sum() / 2)
    named = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "2.weight"]
    assert sorted(regularizer.entries[0].computed.originals) == named
    spectral = two_layers()
    parametrizations.spectral_norm(spectral[0])
    spectral.train()
    before = copy.deepcopy(spectral.state_dict())
    Regularizer(spectral, Effective(L2(1.0), product)).value().backward()
    assert_bit_equal(spectral.state_dict(), before)  # no power iteration was made


def test_the_weights_of_functional_call_are_seen():
    model = two_layers()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.regularizer = Regularizer(model, Effective(L2(1.0), product))

        def forward(self, x):
            return self.model(x).sum() * 0 + self.regularizer.value()

    doubled = {f"model.{name}": 2 * param for name, param in model.named_parameters()}
    value = torch.func.functional_call(Whole(), doubled, (batch(),))
    assert_close(value, 16 * product(model).square().sum() / 2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["copy", "pickle"])
def test_a_copy_acts_on_its_own_model(duplicate):
    model = adapted()
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules=LoRA))
    twin, its = duplicate((model, regularizer))
    with torch.no_grad():
        twin[0].A.zero_()
    assert_close(its.value(), all_updates(model)[1].square().sum() / 2)
    assert its.value() < regularizer.value()


def test_layers_that_come_later_are_penalized_too():
    model = adapted()
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules=LoRA))
    model.append(LoRA(3, 3).double())
    expected = sum(update(layer).square().sum() / 2 for layer in model if isinstance(layer, LoRA))
    assert_close(regularizer.value(), expected)
    model[0].A = nn.Parameter(torch.zeros_like(model[0].A))
    with pytest.raises(ValueError, match=r"must hold the parameters it had, 0.update\(\) were replaced: make the"):
        regularizer.value()
