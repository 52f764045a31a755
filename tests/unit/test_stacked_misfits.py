"""Models that a stack computes one by one, and models that it refuses."""

import warnings

import pytest
import torch
from torch import nn

from tests.helpers import assert_close
from tests.unit.stacking import (
    Looks,
    X,
)
from torchreg import L1, L2, ActivityRegularizer, Complexity, Regularizer, Stacked
from torchreg import nn as layers
from torchreg.nn import seed_dropout


def test_what_cannot_be_vectorized_is_named_and_computed_one_by_one():
    models = [nn.Sequential(nn.Linear(6, 6), layers.Dropout(0.5), Looks()) for _ in range(2)]
    for seed, model in enumerate(models):
        seed_dropout(model, seed)
    stack = Stacked(models)
    with pytest.warns(UserWarning, match=r"2 \(Looks\) cannot be vectorized"):
        outputs = stack(X.float())
    assert_close(outputs, torch.stack([model(X.float()) for model in models]), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack(X.float())
    assert not stack.vectorize


def test_a_first_attempt_that_fails_leaves_no_trace():
    models = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Looks()) for _ in range(2)]
    stack = Stacked(models)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="cannot be vectorized"):
        outputs = stack(X.float())
    torch.manual_seed(0)
    assert_close(outputs, torch.stack([model(X.float()) for model in models]), 1e-6)
    for member, model in zip(stack.members(), models, strict=True):
        assert_close(dict(member.named_buffers()), dict(model.named_buffers()), 1e-6)


class Rebinding(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_buffer_that_is_put_in_anothers_place_is_refused(vectorize):
    stack = Stacked([Rebinding() for _ in range(2)], vectorize=vectorize)
    with pytest.raises(RuntimeError, match="must write into the buffer calls"):
        stack(X)


def test_a_stack_in_another_module_is_not_taken_for_one_model():
    stack = Stacked([nn.Linear(6, 6)] * 2)
    with pytest.raises(ValueError, match="must be the stack itself, got a Sequential that holds one"):
        Regularizer(nn.Sequential(stack), L1(1.0))
    with pytest.raises(ValueError, match="must not be a stack"):
        ActivityRegularizer(stack, L1(1.0))


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def test_an_lstm_is_stacked_one_way_or_the_other():
    models = [nn.LSTM(6, 4) for _ in range(2)]
    stack = Stacked(models)
    with warnings.catch_warnings(action="ignore"):
        outputs, (hidden, _) = stack(X.float().unsqueeze(1))
    for member, model in enumerate(models):
        expected, (last, _) = model(X.float().unsqueeze(1))
        assert_close(outputs[member], expected, 1e-5)
        assert_close(hidden[member], last, 1e-5)


def test_a_fault_of_the_model_is_the_models():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Stacked([nn.Linear(2, 2)] * 2)(torch.ones(3, 5))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "at least one module"),
        ([nn.Linear(2, 2), nn.Linear(2, 3)], "out_features=2.*in the first.*out_features=3.*in number 2"),
        ([nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.2))], r"0 is Dropout\(p=0.1"),
        ([nn.Linear(2, 2), nn.Linear(2, 2).double()], "float32.*float64"),
        ([nn.Linear(2, 2), nn.Linear(2, 2).eval()], "in training, .*in the first and .*in evaluation"),
        ([nn.LazyLinear(2)], "no shape yet"),
        ([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 4)], "'num_heads': 2.*'num_heads': 4"),
        ([nn.TransformerEncoderLayer(8, 2, activation=name) for name in ("relu", "gelu")], "relu.*gelu"),
        ([nn.Linear(2, 2), hooked()], "with 1 forward hooks"),
        ([Stacked([nn.Linear(2, 2)]) for _ in range(2)], "holds a stack itself"),
    ],
)
def test_models_that_are_not_equal_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        Stacked(models)


def test_other_mistakes_are_one_line_each():
    with pytest.raises(TypeError, match="Modules, got int"):
        Stacked([3])
    stack = Stacked([nn.Linear(2, 2)] * 3)
    regularizer = Regularizer(stack, L2(1.0))
    for wrong in (torch.ones(2), torch.ones(3, 1), -torch.ones(3), torch.tensor([1.0, float("inf"), 1.0])):
        with pytest.raises(ValueError, match="a tensor of 3 of them, one a member"):
            regularizer.scale = wrong
    with pytest.raises(ValueError, match="0-d tensor"):
        Regularizer(nn.Linear(2, 2), L2(1.0)).scale = torch.ones(3)
    with pytest.raises(ValueError, match="stack of models"):
        Regularizer(Stacked([nn.Sequential(layers.HardConcrete(nn.Linear(2, 2)))] * 2), Complexity(1.0))
