"""Ridge paths: which layer they solve, what they leave as it was, corners, and what is refused."""

import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.helpers import assert_bit_equal, assert_close
from torchreg import L1
from torchreg.tuning import evidence, generalized_cv, leave_one_out, ridge_path, strength_path
from torchreg.tuning.ridge import spectrum

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=DRAW, dtype=torch.float64)
Y = X[:, :2] + torch.randn(30, 2, generator=DRAW, dtype=torch.float64)


def head(features=4, outputs=2, bias=True):
    return nn.Linear(features, outputs, bias=bias).double()


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)]
    return nn.Sequential(*layers).double()


def state_close(path, other, strength, tolerance=1e-9):
    assert_close(path.state_at(strength), other.state_at(strength), tolerance)


def test_the_features_are_those_of_evaluation_mode_and_the_model_stays_as_it_was():
    model = network()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    path = ridge_path(model, (X, Y), strengths=[0.1], batch_size=7)
    assert_bit_equal(dict(model.state_dict()), dict(before))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert path.head == "4"
    features = model.eval()[:-1](X).detach()
    state_close(path, ridge_path(head(8), (features, Y), strengths=[0.1]), 0.1)
    model.get_submodule(path.head).load_state_dict(path.state_at(0.1))
    assert_close(F.mse_loss(model(X), Y).item(), path[0].train_loss, 1e-10)


class Registered(nn.Module):
    """The layers are registered in another order than they are called in, and one is called by keyword."""

    def __init__(self):
        super().__init__()
        self.top, self.body, self.spare = nn.Linear(5, 2), nn.Linear(4, 5), nn.Linear(4, 2)

    def forward(self, x):
        self.spare(x)
        return self.top(input=torch.tanh(self.body(x)))


def test_the_head_is_the_layer_that_makes_the_output():
    assert ridge_path(Registered().double(), (X, Y)).head == "top"
    assert ridge_path(head(), (X, Y)).head == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(head(), nn.Softmax(1)), "got one that was changed after the last one, '0'"),
        (lambda: nn.Sequential(nn.Flatten()), "got one that no nn.Linear made"),
        (lambda: weight_norm(head()), "the weight of the model must be a plain parameter"),
        (lambda: shared(), "must be called once, got 2 calls"),
        (lambda: tied(), "the weight of 2 must be its own"),
        (lambda: Switching(), "got several layers"),
    ],
)
def test_a_model_whose_last_layer_has_no_closed_form_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ridge_path(make(), (X, torch.cat([Y, Y], 1)), batch_size=15)


def shared():
    layer = head(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied():
    model = nn.Sequential(head(4, 4), nn.ReLU(), head(4, 4))
    model[2].weight = model[0].weight
    return model


class Switching(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.calls = nn.ModuleList([head(4, 4), head(4, 4)]), 0

    def forward(self, x):
        self.calls += 1
        return self.heads[self.calls % 2](x)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((X[:1], Y[:1]), "at least two, got shapes (1, 4) and (1, 2)"),
        ((X[:0], Y[:0]), "at least two"),
        ((X, Y[:9]), "as many targets as inputs"),
        ((X, Y[:, 0]), "got (30,): y[:, None] makes it"),
        ((X, torch.arange(30) % 2), "got class numbers: torch.nn.functional.one_hot(y, 2).float() makes it"),
        ((X.clone().fill_(math.nan), Y), "features must be finite"),
        ((X, Y / 0), "targets must be finite"),
        ((X * 1e200, Y), "features must have finite squares"),
        ((X, Y * 1e200), "targets must have finite squares"),
        ((X.clone().fill_(0.1), Y), "features must differ between examples, got equal ones: give strengths"),
        ((X.reshape(5, 6, 4), torch.zeros(5, 6, 2)), "must have the shape (examples, features), got (5, 6, 4)"),
    ],
)
def test_examples_that_have_no_solution_are_refused_in_one_line(train, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ridge_path(head(), train)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"strengths": [0.0]}, {"strengths": []}, {"strengths": [math.nan]}])
@pytest.mark.parametrize("bias", [True, False])
def test_strengths_must_be_positive(options, bias):
    with pytest.raises(ValueError, match="ridge_path: strengths must be"):
        ridge_path(head(bias=bias), (X, Y), **options)


@pytest.mark.parametrize("options", [{"count": 0}, {"ratio": 1.0}, {"batch_size": 0}, {"count": True}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"ridge_path: {next(iter(options))} must be"):
        ridge_path(head(), (X, Y), **options)


def test_a_factory_and_a_dataset_are_refused():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got a function"):
        ridge_path(lambda: head(), (X, Y))
    with pytest.raises(TypeError, match="must be a pair"):
        ridge_path(head(), X)
    with pytest.raises(TypeError, match="must be two tensors"):
        ridge_path(head(), (X, Y.tolist()))


@pytest.mark.parametrize("choose", [generalized_cv, leave_one_out, evidence])
def test_a_path_of_another_loss_is_refused(choose):
    path = strength_path(lambda: head(), L1(1.0), (X, Y), (X, Y), count=2, verbose=False)
    with pytest.raises(TypeError, match="must be that of ridge_path, for squared errors, got a StrengthPath"):
        choose(path)


@pytest.mark.parametrize("features", [4, 50], ids=["tall", "wide"])
def test_equal_features_leave_the_mean(features):
    x = torch.full((30, features), 0.1, dtype=torch.float64)
    path = ridge_path(head(features), (x, Y), strengths=[1.0, 1e-9])
    for point in path:
        state = path.state_at(point.strength)
        assert not state["weight"].any()
        assert_close(state["bias"], Y.mean(0))
        assert_close(point.degrees_of_freedom, 1.0)
        assert_close(point.valid_loss.mean, ((Y - Y.mean(0)) * 30 / 29).square().mean().item())
    with pytest.raises(ValueError, match="features must differ"):
        evidence(path)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_of_equal_targets_nothing_is_left_and_the_strongest_is_taken(value):
    path = ridge_path(head(), (X, torch.full_like(Y, value)))
    assert generalized_cv(path) is leave_one_out(path) is path[0]
    assert path[0].valid_loss == (0, 0)
    with pytest.raises(ValueError, match="targets must vary"):
        evidence(path)


@pytest.mark.parametrize("features", [4, 50], ids=["tall", "wide"])
def test_a_strength_of_nearly_nothing_gives_the_least_squares_of_least_norm(features):
    x = torch.randn(10, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64).repeat(3, 1)
    x = torch.cat([x, x[:, :1], torch.ones(30, 1)], 1)
    path = ridge_path(head(features + 2), (x, Y), strengths=[1e-300])
    expected = np.linalg.pinv((x - x.mean(0)).numpy(), rcond=1e-10) @ (Y - Y.mean(0)).numpy()
    assert_close(path.state_at(1e-300)["weight"].numpy(), expected.T, 1e-10)
    assert_close(path[0].norm, np.linalg.norm(expected), 1e-10)
    assert_close(path[0].degrees_of_freedom, 1.0 + min(features, 9), 1e-10)


def test_what_counts_twice_has_the_same_head():
    both = ridge_path(head(), (X.repeat(2, 1), Y.repeat(2, 1)), strengths=[0.1])
    state_close(both, ridge_path(head(), (X, Y), strengths=[0.1]), 0.1)


@pytest.mark.parametrize("features", [4, 50], ids=["tall", "wide"])
def test_far_features_and_targets_lose_no_digits_but_their_own(features):
    x = torch.randn(30, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, y = (x * 2**20).round() / 2**20, (Y * 2**20).round() / 2**20  # a shift rounds nothing away
    near = ridge_path(head(features), (x, y), strengths=[0.01])
    far = ridge_path(head(features), (x + 2**20, y - 2**25), strengths=[0.01])
    assert_close(far[0].valid_loss.mean, near[0].valid_loss.mean, 1e-12)
    assert_close(far.state_at(0.01)["weight"], near.state_at(0.01)["weight"], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_in_low_precision_are_summed_up_in_double(dtype):
    x = X.to(dtype)
    path = ridge_path(head().to(dtype), (x, Y.to(dtype)), strengths=[0.1])
    exact = ridge_path(head(), (x.double(), Y.to(dtype).double()), strengths=[0.1])
    assert path[0] == exact[0]
    assert_bit_equal(path.state_at(0.1), {name: part.to(dtype) for name, part in exact.state_at(0.1).items()})


@pytest.mark.parametrize("features", [4, 50], ids=["tall", "wide"])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_change_nothing(monkeypatch, features, bias):
    x = torch.randn(30, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = ridge_path(head(features, bias=bias), (x, Y))
    monkeypatch.setattr(spectrum, "_CHUNK", 7)
    monkeypatch.setattr(spectrum, "_COLUMNS", 5)
    parts = ridge_path(head(features, bias=bias), (x, Y))
    state_close(parts, whole, 0.1)
    assert [point.valid_loss.mean for point in parts] == pytest.approx([point.valid_loss.mean for point in whole])


def test_the_evidence_says_when_it_has_no_maximum():
    with pytest.warns(UserWarning, match="up to the smallest strength: the features explain the targets without noise"):
        evidence(ridge_path(head(), (X, X[:, :2])))
    apart = torch.linalg.qr(torch.cat([torch.ones(30, 1), X, Y], 1))[0][:, -2:]  # orthogonal to the features
    with pytest.warns(UserWarning, match="up to the largest strength: the features do not explain the targets"):
        assert evidence(ridge_path(head(), (X, apart))).norm < 1e-6


def test_the_table_marks_the_choices():
    path = ridge_path(head(), (X, Y), count=12)
    lines = repr(path).splitlines()
    assert len(lines) == 13
    marked = {mark: path[number - 1] for number, line in enumerate(lines) for mark in ("best", "GCV") if mark in line}
    assert marked["best"] is leave_one_out(path)
    assert "GCV" in lines[1 + path.points.index(generalized_cv(path))]
    assert path.at(path[3].strength * 1.01) is path[3]
    for wrong in (0, math.inf, None, True, "a"):
        with pytest.raises(ValueError, match=f"ridge_path: strength must be > 0 and finite, got {wrong!r}"):
            path.at(wrong)
    with pytest.raises(ValueError, match=r"^by must be one of loss, error, got 'accuracy'"):
        leave_one_out(path, by="accuracy")
    with pytest.raises(ValueError, match="ridge_path: strengths must be finite and > 0"):
        path.state_at(0)
