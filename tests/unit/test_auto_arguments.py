"""The numbers that AutoStrength and AutoRate take: what is no number, or out of range, is one clear line."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.unit.tuning import HELD_OUT, X
from torchreg import L2, Regularizer
from torchreg.nn import ConcreteDropout
from torchreg.tuning import AutoRate, AutoStrength

INPUTS = X.shape[1]


def make_strength(**options):
    return AutoStrength(Regularizer(nn.Linear(INPUTS, 1), L2(0.3), mode="prox"), HELD_OUT, nn.MSELoss(), **options)


def make_rate(**options):
    return AutoRate(ConcreteDropout(nn.Linear(INPUTS, 1)), HELD_OUT, HELD_OUT, nn.MSELoss(), **options)


NO_NUMBERS = [None, "a", "ab", [], (1, 2, 3), {1: 2, 3: 4}, {0.1, 0.5}, 1j, True, math.nan, torch.ones(3)]
WRONG = {
    "lr": [*NO_NUMBERS, 0.0, math.inf, 10**400],
    "every": [*NO_NUMBERS, 0, 1.0],
    "bounds": [*NO_NUMBERS, 1.5, ("a", "b"), (None, 1), (1j, 2), (False, 0.5), (0.1, math.nan), (0.1, 10**400)],
    "batch_size": [*NO_NUMBERS, 0, 1.5],
    "seed": [*NO_NUMBERS, 1.5, 2**63, -(10**400)],
}


@pytest.mark.parametrize("make", [make_strength, make_rate])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_is_no_number_or_out_of_range_is_one_clear_line(make, name, value):
    with pytest.raises(ValueError, match=rf"\AAuto(Strength|Rate): {name} must be [^\n]*, got [^\n]+\Z"):
        make(**{name: value})


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0])
def test_a_spread_is_a_number_above_one(value):
    with pytest.raises(ValueError, match=r"\AAutoStrength: spread must be > 1, got [^\n]+\Z"):
        make_strength(spread=value)


@pytest.mark.parametrize("value", [None, 5, "ab", [None]])
def test_a_regularizer_is_one_or_several(value):
    with pytest.raises(TypeError, match="AutoStrength: regularizer must be a Regularizer or several, got"):
        AutoStrength(value, HELD_OUT, nn.MSELoss())


@pytest.mark.parametrize(
    ("examples", "got"),
    [
        (X, "one tensor"),
        (None, "None"),
        (3, "3"),
        ([X], "a list of 1: Tensor"),
        ((X, X, X), "a tuple of 3: Tensor, Tensor, Tensor"),
        ((X.numpy(), X.numpy()), "a tuple of 2: ndarray, ndarray"),
        (TensorDataset(X, X), "a TensorDataset, which holds single examples: put it into a DataLoader"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_inputs_and_targets_is_told_at_once(examples, got):
    said = rf"\AAutoStrength: examples must be inputs and targets, or batches of both, got {got}\Z"
    with pytest.raises(TypeError, match=said):
        AutoStrength(Regularizer(nn.Linear(INPUTS, 1), L2(0.3), mode="prox"), examples, nn.MSELoss())


def test_batches_may_be_in_whatever_can_be_passed_through():
    class Numbered:
        def __getitem__(self, place):
            return [HELD_OUT, HELD_OUT][place]

    regularizer = Regularizer(nn.Linear(INPUTS, 1), L2(0.3), mode="prox")
    for batches in (
        Numbered(),
        [HELD_OUT],
        (HELD_OUT, HELD_OUT),
        iter([HELD_OUT]),
        DataLoader(TensorDataset(*HELD_OUT)),
    ):
        AutoStrength(regularizer, batches, nn.MSELoss())


@pytest.mark.parametrize(("criterion", "got"), [(None, "None"), (nn.MSELoss, r"<class .*>: write MSELoss\(\)")])
def test_a_criterion_can_be_called(criterion, got):
    regularizer = Regularizer(nn.Linear(INPUTS, 1), L2(0.3), mode="prox")
    with pytest.raises(TypeError, match=f"criterion must be a function of outputs and targets, got {got}"):
        AutoStrength(regularizer, HELD_OUT, criterion)


def test_arguments_in_another_order_are_told_in_one_line():
    with pytest.raises(TypeError, match=r"got a Tensor: the order is regularizer, validation, criterion\Z"):
        AutoStrength(HELD_OUT, Regularizer(nn.Linear(INPUTS, 1), L2(0.3), mode="prox"), nn.MSELoss())


@pytest.mark.parametrize("make", [make_strength, make_rate])
@pytest.mark.parametrize(
    "pair", [(0.1, 0.5), [0.1, 0.5], np.array([0.1, 0.5]), torch.tensor([0.1, 0.5], dtype=torch.float64)]
)
def test_numbers_may_be_of_other_kinds(make, pair):
    auto = make(bounds=pair, lr=np.float64(0.1), every=np.int64(2), batch_size=np.int32(3), seed=np.int64(5))
    assert auto.bounds == (0.1, 0.5)
    assert (auto.lr, auto.every) == (0.1, 2)
    assert {type(number) for number in (*auto.bounds, auto.lr)} == {float}
