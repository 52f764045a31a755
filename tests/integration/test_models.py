"""The table ``model``: torchvision's and timm's networks, initial values, and what stays as it is."""

import math
import sys

import pytest
import torch
from torch import nn

from experiments import config
from experiments.errors import UserError
from experiments.running.study import run_study
from experiments.training import build, data
from experiments.training.record import Record
from tests.integration.studies import CPU, TREE, outcome, small
from torchreg import Stacked

DIGITS = config.Data(name="digits", train_size=20)
TABLE = config.Data(name="diabetes")


def network(settings=DIGITS, seed=0, **keys):
    torch.manual_seed(seed)
    return build.model(config.Model(**keys), data.load(settings, CPU))


MLP = {"name": "mlp", "hidden": [8]}
OWN = {"class": "tests.integration.test_models:Normalized"}


class Normalized(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


# -- scale and init -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [MLP, {"name": "cnn", "channels": [2], "hidden": 4}], ids=lambda keys: keys["name"])
@pytest.mark.parametrize("factor", [8.0, 0.5])
def test_scale_multiplies_the_weights_and_biases_that_are_drawn(keys, factor):
    plain, scaled = network(**keys).state_dict(), network(**keys, scale=factor).state_dict()
    assert all(torch.equal(scaled[name], factor * value) for name, value in plain.items())


def test_scale_leaves_normalization_and_learned_rates_alone():
    plain, scaled = network(**OWN).state_dict(), network(**OWN, scale=3.0).state_dict()
    assert {name for name in plain if not torch.equal(plain[name], scaled[name])} == {
        *("1.weight", "1.bias", "4.weight", "4.bias")
    }
    wrapped = {**MLP, "wrap": {"name": "VariationalDropout"}}
    plain, scaled = network(**wrapped).state_dict(), network(**wrapped, scale=3.0).state_dict()
    rates = [name for name in plain if "log" in name]
    assert rates
    assert all(torch.equal(plain[name], scaled[name]) for name in rates)
    assert len([name for name in plain if torch.equal(3 * plain[name], scaled[name])]) >= 4


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ({"name": "kaiming_normal_", "nonlinearity": "linear"}, 1 / 8),
        ({"name": "normal_", "std": 0.01}, 0.01),
        ({"class": "tests.integration.test_models:own_init"}, 0.0),
    ],
    ids=["kaiming_normal_", "normal_", "own"],
)
def test_init_draws_the_weights_and_makes_the_biases_zero(init, std):
    net = network(name="mlp", hidden=[400], init=init)
    assert net.linear1.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not net.linear1.bias.any()
    assert not net.output.bias.any()


def own_init(weight):
    return weight.fill_(0.25)


# -- freeze ---------------------------------------------------------------------------------------------------------

FROZEN = {
    "a layer": (["linear1.*"], {"linear1.weight", "linear1.bias"}),
    "biases": ("*.bias", {"linear1.bias", "output.bias"}),
    "two patterns": (["linear1.w*", "output.bias"], {"linear1.weight", "output.bias"}),
}


@pytest.mark.parametrize(("patterns", "names"), FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("stack", [True, False])
def test_what_is_frozen_stays(patterns, names, stack, tmp_path):
    keys = {**MLP, "freeze": patterns}
    optimizer = {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1}
    study = small(seeds=[0, 1], model=keys, optimizer=optimizer, train={**TREE["train"], "stack": stack})
    assert not run_study(study, tmp_path, CPU)
    for run in study.runs:
        record = Record(tmp_path / "runs" / run.folder, run)
        assert record.result.get("stack") == (2 if stack else None)
        after = torch.load(record.folder / "checkpoint.pt", weights_only=True)["model"]
        before = network(seed=run.seed, **MLP).state_dict()
        assert {name for name, value in before.items() if torch.equal(value, after[name])} == names


FAULTS = {
    "no match": ({**MLP, "freeze": "linear9.*"}, "model.freeze: 'linear9.*' matches none of the parameters linear1."),
    "all": ({**MLP, "freeze": ["*"]}, r"model.freeze: must leave parameters to train, got \*"),
    "unknown init": ({**MLP, "init": {"name": "kaimin_normal_"}}, "model.init.name: unknown name .* 'kaiming_normal_'"),
    "option of init": ({**MLP, "init": {"name": "normal_", "sd": 1.0}}, "model.init.sd: unknown key"),
}


@pytest.mark.parametrize(("keys", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line(keys, line):
    with pytest.raises(UserError, match=f"^{line}[^\n]*$"):
        network(**keys)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_a_scale_is_positive_and_finite(value):
    with pytest.raises(UserError, match=r"^model.scale: "):
        small(model={**MLP, "scale": value})


# -- torchvision and timm -------------------------------------------------------------------------------------------


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_network_of_torchvision_has_the_outputs_and_channels_of_the_data(name):
    net = network(torch=name).eval()
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 10)


@pytest.mark.torchvision
def test_a_network_of_torchvision_takes_its_options_and_trains(tmp_path):
    model = {"torch": "shufflenet_v2_x0_5", "freeze": "conv1.*"}
    study = small(model=model, train={"epochs": 1, "batch_size": 50})
    assert outcome(study, tmp_path)["status"] == "done"
    with pytest.raises(UserError, match=r"^model: resnet18\(nope=1\) cannot be made: "):
        network(torch="resnet18", nope=1)


@pytest.mark.torchvision
def test_weights_of_torchvision_get_a_new_last_layer(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    given = models.resnet18()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: given.state_dict())
    three = config.Data(**{"class": "tests.integration.test_models:colored"})
    net = network(three, torch="resnet18", weights="DEFAULT")
    assert torch.equal(net.conv1.weight, given.conv1.weight)
    assert net.fc.weight.shape == (3, 512)
    with pytest.raises(UserError, match=r"^model.weights: are for images of 3 channels, got 1"):
        network(torch="resnet18", weights="DEFAULT")
    with pytest.raises(UserError, match=r"^model: resnet18\(weights='NONE'\) cannot be made: "):
        network(three, torch="resnet18", weights="NONE")


def colored():
    draw = torch.Generator().manual_seed(0)
    return torch.rand(30, 3, 8, 8, generator=draw), torch.arange(30) % 3


def test_a_model_of_timm_has_the_outputs_and_channels_of_the_data(tmp_path):
    pytest.importorskip("timm")
    net = network(timm="test_resnet")
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert network(timm="test_vit", img_size=16)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    study = small(model={"timm": "test_resnet"}, train={"epochs": 1, "batch_size": 50})
    assert outcome(study, tmp_path)["status"] == "done"


def test_without_timm_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model.timm: needs timm, .*: pip install timm$"):
        network(timm="resnet18")


OTHERS = {
    "torchvision's unknown": ({"torch": "resnet19"}, "model.torch: unknown name 'resnet19', did you mean 'resnet1"),
    "no classifier": ({"torch": "fcn_resnet50"}, "model.torch: unknown name"),
    "two sources": ({"torch": "resnet18", "name": "mlp"}, "exactly one of the keys name, class, torch and timm"),
    "dropout": (
        {"torch": "resnet18", "dropout": {"name": "Dropout"}},
        "model.dropout: is for the models mlp, cnn",
    ),
    "wrap": ({"timm": "test_vit", "wrap": {"name": "DropConnect"}}, "model.wrap: is for the models mlp, cnn, got"),
}


@pytest.mark.torchvision
@pytest.mark.parametrize(("keys", "line"), OTHERS.values(), ids=OTHERS)
def test_a_network_of_others_that_cannot_be_made_is_told(keys, line):
    with pytest.raises((UserError, ValueError), match=line):
        network(**keys)


@pytest.mark.torchvision
@pytest.mark.parametrize("key", ["torch", "timm"])
def test_networks_of_others_are_for_images(key):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=rf"^model.{key}: is for images of channels, height and width, got .*\(10,\)$"):
        network(TABLE, **{key: "resnet18"})


def test_an_unknown_name_of_timm_is_told():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"^model.timm: unknown name 'test_vitt', did you mean 'test_vit"):
        network(timm="test_vitt")


@pytest.mark.torchvision
def test_an_arm_may_take_another_kind_of_network():
    study = small(arms=[{"name": "none"}, {"name": "other", "model": {"torch": "resnet18"}}])
    assert [(run.model.name, run.model.torch) for run in study.runs] == [("mlp", None), (None, "resnet18")]
    assert not study.runs[1].model.options


def test_a_stack_keeps_what_is_frozen():
    nets = [network(seed=seed, **MLP, freeze="linear1.*") for seed in (0, 1)]
    trained = {name for name, param in Stacked(nets).named_parameters() if param.requires_grad}
    assert trained == {"output.weight", "output.bias"}
