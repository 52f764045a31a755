"""Selectors, patterns and predicates narrow what is penalized, and say why the rest is not."""

import warnings

import pytest
import torch
from torch import nn

from tests.unit.selecting import (
    a_network,
    chosen,
    reasons,
)
from torchreg import L1, L2, ParamInfo, Regularizer, everything, in_modules, named, weights
from torchreg.optim import AdamW, param_groups


def test_patterns_and_module_types_narrow_the_selection_and_lift_no_exemption():
    model = a_network()
    assert chosen(model) == {"0.weight", "3.weight"}
    assert chosen(model, select=named("3.*")) == {"3.weight"}
    assert chosen(model, select=named("1.*", "0.*")) == {"0.weight"}
    assert chosen(model, select=in_modules(nn.Linear)) == {"3.weight"}
    assert chosen(model, select=in_modules(nn.Linear, nn.BatchNorm1d, nn.Conv1d)) == {"0.weight", "3.weight"}
    assert chosen(model, select=in_modules(nn.Module)) == {"0.weight", "3.weight"}


def test_each_pattern_must_match_a_parameter():
    model = a_network()
    for use in (
        lambda: Regularizer(model, L1(0.1), select=named("3.*", "covn.*")),
        lambda: param_groups(model, weight_decay=0.1, select=named("3.*", "covn.*")),
        lambda: AdamW(model, select=named("3.*", "covn.*")),
    ):
        with pytest.raises(
            ValueError, match=r"the pattern 'covn\.\*' of select matches none of the parameters 0\.weight"
        ):
            use()
    assert chosen(model, select=named("3.*", "1.*")) == {"3.weight"}  # one of exempt parameters alone is no mistake


def test_a_predicate_decides_alone():
    assert chosen(a_network(), select=lambda info: info.param.ndim == 1) == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert chosen(a_network(), select=lambda info: isinstance(info.module, nn.Linear)) == {"3.weight", "3.bias"}
    assert chosen(a_network(), select=lambda info: info.name.startswith("0.")) == {"0.weight", "0.bias"}


def test_the_reason_says_what_ruled_a_parameter_out():
    def in_front(info: ParamInfo) -> bool:
        return info.name == "0.weight"

    assert reasons(a_network(), select=named("0.*"))["3.weight"] == "not named 0.*"
    assert reasons(a_network(), select=in_modules(nn.Linear))["0.weight"] == "in Conv1d"
    assert reasons(a_network(), select=in_front)["3.weight"] == "not in_front"


@pytest.mark.parametrize("select", ["*.weight", None, 3], ids=repr)
def test_what_is_neither_selector_nor_predicate_is_refused(select):
    with pytest.raises(TypeError, match="select must be a selector or a predicate"):
        Regularizer(a_network(), L2(1.0), select=select)


@pytest.mark.parametrize(
    ("select", "advice"),
    [
        ("*.weight", r"use torchreg\.named\('\*\.weight'\)"),
        (nn.Linear, r"got the class Linear: use torchreg\.in_modules\(Linear\)"),
        (nn.Linear(2, 2), r"got a module Linear: use torchreg\.named"),
        (["0.weight"], r"got a list: use torchreg\.named\('0\.weight'\)$"),
        (("0.*", "1.*"), r"got a tuple: use torchreg\.named\('0\.\*', '1\.\*'\)$"),
        (["a", "b", "c", "d"], r"use torchreg\.named\('a', 'b', 'c', \.\.\.\)$"),
        ([nn.Linear, nn.Conv2d], r"use torchreg\.in_modules\(Linear, Conv2d\)$"),
        ([nn.Parameter(torch.ones(2, 2))], r"got a list: use torchreg\.named with the names"),
        ([], r"got a list: use torchreg\.named with the names"),
        (nn.Parameter(torch.ones(2, 2)), r"got a Parameter: use torchreg\.named with its name$"),
    ],
    ids=["pattern", "class", "module", "name", "patterns", "many", "classes", "parameters", "nothing", "parameter"],
)
def test_what_is_meant_by_a_wrong_selection_is_said(select, advice):
    with pytest.raises(TypeError, match=advice):
        Regularizer(a_network(), L2(1.0), select=select)


@pytest.mark.parametrize(
    ("select", "arguments", "expected"),
    [
        (named, (), "patterns must be strings"),
        (named, (["0.*"],), "patterns must be strings"),
        (in_modules, (), "types must be classes of modules"),
        (in_modules, ("Linear",), "types must be classes of modules"),
        (in_modules, (nn.Linear(2, 2),), "types must be classes of modules"),
    ],
)
def test_a_selector_refuses_arguments_that_select_nothing(select, arguments, expected):
    with pytest.raises(TypeError, match=expected):
        select(*arguments)


def test_a_pattern_that_matches_nothing_is_said_to_match_whole_names():
    for arguments in ({"penalty": {"weight": L2(1.0)}}, {"penalty": L2(1.0), "select": named("weight")}):
        with pytest.raises(ValueError, match=r"matches whole names, as '\*\.weight' does"):
            Regularizer(a_network(), **arguments)


def test_of_several_patterns_the_first_that_matches_wins():
    rules = {"3.*": L1(1.0), "*weight": L2(1.0), "*": L2(2.0)}
    penalties = {entry.name: entry.penalty for entry in Regularizer(a_network(), rules).entries if entry.penalty}
    assert penalties == {"3.weight": L1(1.0), "0.weight": L2(1.0)}


def test_a_pattern_for_a_bias_does_not_lift_its_exemption():
    entries = {e.name: e for e in Regularizer(a_network(), {"*bias": L1(1.0), "*": L2(1.0)}).entries}
    assert entries["3.bias"].penalty is None
    assert entries["3.weight"].penalty == L2(1.0)


def test_what_no_pattern_names_is_not_penalized():
    assert {e.name: e.reason for e in Regularizer(a_network(), {"3.*": L1(1.0)}).entries}["0.weight"] == (
        "no pattern matches"
    )


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'classifer\.\*' matches none of the parameters 0\.weight, 0\.bias"):
        Regularizer(a_network(), {"classifer.*": L1(1.0), "*": L2(1.0)})


@pytest.mark.parametrize("select", [in_modules(nn.LSTM), lambda info: False])
def test_selecting_nothing_is_refused_with_the_parameters_and_their_reasons(select):
    with pytest.raises(ValueError, match=r"got none of 0\.weight \((not|in) .*0\.bias.*3\.bias.*select=everything"):
        Regularizer(a_network(), L2(1.0), select=select)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("head.*", r"got none of 0\.weight, .*, not named head\.\*: a pattern matches whole names"),
        ("*bias", r"got none of 0\.bias \(bias\).*: select=everything lifts exemptions\Z"),
    ],
)
def test_nothing_selected_by_name_tells_the_parameters_of_that_name(pattern, said):
    with pytest.raises(ValueError, match=said) as error:
        Regularizer(a_network(), L2(1.0), select=named(pattern))
    assert str(error.value).count("not named") <= 1


@pytest.mark.parametrize("model", [nn.BatchNorm1d(2), nn.ReLU(), nn.Sequential()], ids=repr)
def test_a_model_without_weights_is_refused(model):
    with pytest.raises(ValueError, match="must choose at least one parameter"):
        Regularizer(model, L2(1.0))


def test_a_lazy_parameter_is_refused_until_it_has_a_shape():
    with warnings.catch_warnings(action="ignore"):  # some versions of torch say that lazy modules are new
        model = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        Regularizer(model, L2(1.0))
    model(torch.ones(1, 3))
    assert chosen(model) == {"0.weight"}


def test_tied_parameters_are_one_entry_with_all_their_names():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 4, bias=False))
    model[1].weight = model[0].weight
    (entry,) = Regularizer(model, L2(1.0)).entries
    assert entry.names == ("0.weight", "1.weight")
    for select in (named("1.*"), in_modules(nn.Linear), in_modules(nn.Embedding)):
        assert chosen(model, select=select) == {"0.weight"}
    assert Regularizer(model, {"1.*": L1(1.0)}).entries[0].penalty == L1(1.0)


def test_a_module_used_twice_is_one_entry():
    layer = nn.Linear(2, 2)
    entries = Regularizer(nn.Sequential(layer, nn.ReLU(), layer), L2(1.0)).entries
    assert [entry.names for entry in entries] == [("0.weight", "2.weight"), ("0.bias", "2.bias")]


def test_a_selector_is_itself_a_predicate_and_shows_what_it_is():
    layer = nn.Linear(2, 1)
    weight, bias = (ParamInfo(name, param, layer) for name, param in layer.named_parameters())
    assert weights(weight)
    assert not weights(bias)
    assert everything(bias)
    assert repr(weights) == "weights"
    assert repr(everything) == "everything"
    assert named("a", "b") == named("a", "b") != named("a")
