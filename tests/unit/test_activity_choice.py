"""Which modules a penalty on outputs gets, and what it refuses."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_close, make_data, make_model
from tests.unit.recording import (
    PENALTY,
    Block,
    hooks_of,
)
from torchreg import L1
from torchreg.regularizer.activity import ActivityRegularizer


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ("1", ["1"]),
        ("*", ["", "0", "1", "2"]),
        ("", [""]),
        (["0", "2"], ["0", "2"]),
        (nn.Linear, ["0", "2"]),
        ((nn.Tanh, "2"), ["1", "2"]),
        (lambda name, module: name > "0" and not isinstance(module, nn.Tanh), ["2"]),
    ],
)
def test_modules_are_chosen_by_pattern_type_or_predicate(modules, names):
    assert list(ActivityRegularizer(make_model(), PENALTY, modules).modules) == names


def test_a_module_is_chosen_by_itself_and_once_under_two_names():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    assert list(ActivityRegularizer(model, PENALTY, layer).modules) == ["0"]
    assert list(ActivityRegularizer(model, PENALTY, "1").modules) == ["0"]


def test_the_repr_lists_who_was_chosen():
    assert repr(ActivityRegularizer(make_model(), L1(1e-6), ["0", "1"])) == (
        "ActivityRegularizer(L1(1e-06), scale=1.0): 2 of 4 modules\n  0  Linear\n  1  Tanh"
    )


@pytest.mark.parametrize("modules", ["*.relu", ["1", "*.relu"], nn.ReLU(), lambda name, module: False])
def test_a_choice_that_matches_nothing_is_refused_with_the_names(modules):
    with pytest.raises(ValueError, match=r"modules must select some, .* matches none of '' \(the model\), 0, 1, 2"):
        ActivityRegularizer(make_model(), PENALTY, modules)


@pytest.mark.parametrize("modules", [nn.ReLU, (nn.Tanh, nn.ReLU)])
def test_a_class_that_matches_nothing_is_refused_with_the_classes(modules):
    with pytest.raises(ValueError, match=r"select some, the class ReLU matches none of Sequential, Linear, Tanh$"):
        ActivityRegularizer(make_model(), PENALTY, modules)


def test_bad_constructions_are_refused_with_what_was_given():
    model = make_model()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        ActivityRegularizer([model], PENALTY)
    with pytest.raises(TypeError, match=r"penalty must be a Penalty such as L1\(1e-6\), got 0\.5"):
        ActivityRegularizer(model, 0.5)
    with pytest.raises(TypeError, match="modules must be a pattern, type or predicate, or several of these, got 3"):
        ActivityRegularizer(model, PENALTY, 3)
    with pytest.raises(TypeError, match="modules must be patterns, types or predicates, got 3"):
        ActivityRegularizer(model, PENALTY, [3])
    with pytest.raises(ValueError, match=r"modules must select some of .*, got \[\]"):
        ActivityRegularizer(model, PENALTY, [])
    assert not any(hooks_of(model))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), None, "1"], ids=str)
def test_a_bad_scale_is_refused_and_the_old_one_stays(bad):
    activity = ActivityRegularizer(make_model(), PENALTY)
    with pytest.raises(ValueError, match="scale must be a finite number >= 0 or a 0-d tensor, got"):
        activity.scale = bad
    assert activity.scale == 1.0


@pytest.mark.parametrize("output", ["text", 3, None, [], (torch.arange(3),)], ids=repr)
def test_an_output_without_a_floating_point_tensor_is_refused(output):
    model = Block(lambda layer, x: output)
    activity = ActivityRegularizer(model, PENALTY, "")
    with pytest.raises(TypeError, match="the output of '' must hold a floating-point tensor, got"):
        model(make_data()[0])
    assert_close(activity.value(), torch.zeros(()))


def test_an_output_without_a_batch_is_refused():
    model = Block(lambda layer, x: layer(x).sum())
    activity = ActivityRegularizer(model, PENALTY, "")
    model(make_data()[0])
    with pytest.raises(ValueError, match="the output of '' must have a batch dimension, is 0-d"):
        activity.value()
