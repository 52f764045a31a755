"""The complexity of layers that learn what to drop, as a penalty."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchreg
from tests.helpers import assert_close
from tests.unit.gating import network
from torchreg import L2, Complexity, Regularizer
from torchreg.nn import VariationalDropout


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_the_regularizer_adds_the_layers_complexity_once(mode):
    model = network()
    regularizer = Regularizer(model, Complexity(0.01), mode=mode)
    expected = 0.01 * sum(model[i].complexity() for i in (0, 2, 3))
    assert_close(regularizer.value(), expected)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    if mode == "loss":
        regularizer.value().backward()
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with regularizer.attach(optimizer):
            optimizer.step()
    for param, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(0 * param if param.grad is None else param.grad, 0 * param if gradient is None else gradient)


def test_the_complexity_counts_once_where_torch_func_differentiates_the_formulas_themselves():
    regularizer = Regularizer(network(), Complexity(0.01))
    one = torch.ones((), dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="no derivative"):  # by the weights; that by a factor is right
        found = torch.func.grad(lambda scale: scale * regularizer.value())(one)
    assert_close(found, regularizer.value())


def test_terms_tell_the_divergences_from_the_gates():
    model = network()
    terms = Regularizer(model, Complexity(1.0)).terms()
    assert terms.keys() == {"KL", "L0"}
    assert_close(terms["KL"], model[0].complexity() + model[3].complexity())
    assert_close(terms["L0"], model[2].complexity())


def test_second_derivatives_of_the_penalized_loss_are_those_of_the_formula():
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64))
    value = Regularizer(layer, Complexity(1.0)).value()
    (first,) = torch.autograd.grad(value, layer.log_sigma2, create_graph=True)
    (expected,) = torch.autograd.grad(layer.complexity(), layer.log_sigma2, create_graph=True)
    assert_close(
        torch.autograd.grad(first.square().sum(), layer.log_sigma2)[0],
        torch.autograd.grad(expected.square().sum(), layer.log_sigma2)[0],
    )


def test_other_penalties_leave_the_rates_alone():
    shown = str(Regularizer(network(), L2(1e-4)))
    assert shown.count("learned drop rate") == 3
    assert "0.layer.weight" in shown


def test_a_schedule_brings_the_divergence_in():
    model = network()
    regularizer = Regularizer(model, Complexity(1.0), schedule=torchreg.linear(steps=10, start=0.0, end=1.0, after=5))
    for _ in range(5):
        assert regularizer.value() == 0
        regularizer.step()
    regularizer.step()
    assert_close(regularizer.value(), 0.1 * sum(model[i].complexity() for i in (0, 2, 3)))


def test_a_copy_of_the_regularizer_goes_with_the_copied_model():
    regularizer = Regularizer(network(), Complexity(1.0))
    twin = copy.deepcopy(regularizer)
    with torch.no_grad():
        regularizer.model[0].log_sigma2.add_(1)
    assert twin.value() != regularizer.value()


def test_a_model_without_such_layers_and_sums_with_other_penalties_are_refused():
    with pytest.raises(ValueError, match=r"must choose at least one parameter, got none of .*not learned to drop"):
        Regularizer(nn.Linear(2, 2), Complexity(1.0))
    for model in (nn.Linear(2, 2), network()):
        with pytest.raises(
            ValueError, match=r"must not be part of a sum, got Complexity\(1.0\) \+ L2\(1.0\): make one"
        ):
            Regularizer(model, Complexity(1.0) + L2(1.0))


@pytest.mark.parametrize("pattern", ["*.weight", "*log_sigma2"])
def test_a_pattern_must_match_all_that_the_complexity_is_a_function_of(pattern):
    with pytest.raises(ValueError, match=r"is a function of its layer's other parameters, which have .*one pattern"):
        Regularizer(network(), {pattern: Complexity(1.0), "*": L2(0.1)})
    whole = {"0.*": Complexity(1.0), "2.log_alpha": Complexity(2.0), "*": L2(0.1)}
    assert set(Regularizer(network(), whole).terms()) == {"KL", "L0", "L2"}


@pytest.mark.parametrize("frozen", [["log_sigma2"], ["layer.weight"]])
def test_frozen_parameters_do_not_make_the_complexity_less(frozen):
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64))
    for name, param in layer.named_parameters():
        param.requires_grad_(name not in frozen)
    value = Regularizer(layer, Complexity(1.0)).value()
    assert_close(value, layer.complexity())
    value.backward()
    free = layer.layer.weight if frozen == ["log_sigma2"] else layer.log_sigma2
    assert free.grad.any()


def test_training_with_the_divergence_finds_the_inputs_that_matter():
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    y = x[:, :3].sum(1, keepdim=True)
    layer = VariationalDropout(nn.Linear(20, 1), log_sigma2=-5.0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    Regularizer(layer, Complexity(1 / 512), mode="grad").attach(optimizer)
    for _ in range(1500):
        optimizer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        optimizer.step()
    kept = layer.pruned().weight[0] != 0
    assert kept[:3].all()
    assert not kept[3:].any()
