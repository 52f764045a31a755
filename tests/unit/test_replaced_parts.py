"""A model whose parts were replaced after its regularizer was made: the penalty must never go to what is gone."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.cases import each_step_mode
from tests.helpers import make_model, train
from torchreg import L2, Regularizer


def new_parameter(model):
    model[2].weight = nn.Parameter(torch.ones(3, 8, dtype=torch.float64))


def new_layer(model):
    model[2] = nn.Linear(8, 3, dtype=torch.float64)


def no_layer(model):
    del model[2]


def half_squares(*tensors):
    return sum(tensor.detach().square().sum().item() for tensor in tensors) / 2


each_change = pytest.mark.parametrize("change", [new_parameter, new_layer, no_layer])


@each_change
def test_the_value_is_refused(change):
    model = make_model()
    regularizer = Regularizer(model, L2(1.0))
    change(model)
    for read in (regularizer.value, regularizer.terms):
        with pytest.raises(ValueError, match=r"must hold the parameters it had, 2\.weight were replaced: make the Reg"):
            read()


@each_change
@each_step_mode
def test_a_step_is_refused(change, mode):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L2(1.0), mode=mode).attach(optimizer)
    train(model, optimizer, steps=1)
    change(model)
    with pytest.raises(ValueError, match=r"2\.weight were replaced"):
        optimizer.step()


def test_a_module_that_moves_with_its_parameters_is_no_replacement():
    model = make_model()
    regularizer = Regularizer(model, L2(1.0))
    value = regularizer.value().item()
    model[0] = nn.Sequential(model[0])
    parametrizations.weight_norm(nn.Linear(2, 2))
    assert regularizer.value().item() == value


def test_a_frozen_layer_may_be_replaced_and_the_new_one_counts():
    model = make_model()
    model[2].requires_grad_(False)
    regularizer = Regularizer(model, L2(1.0))
    new_layer(model)
    assert regularizer.value().item() == pytest.approx(half_squares(model[0].weight, model[2].weight))
