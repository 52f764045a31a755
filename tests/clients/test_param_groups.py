"""Parameter groups beside the rules of timm and transformers, and under Muon."""

import pytest
import torch
from torch import nn

from tests.clients.models import CLIENTS, Client, build, each_client, needing
from torchreg import L2, Regularizer
from torchreg.optim import AdamW, param_groups

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

# What the other libraries decay and a penalty exempts, where the author of the model has not named it.
BEYOND = {"position embedding", "class token", "cls token", "scale", "normalization", "bias"}


def names_of(model: nn.Module, params: list[nn.Parameter]) -> set[str]:
    return {name for name, param in model.named_parameters() if any(param is each for each in params)}


def decaying(model: nn.Module, groups: list[dict]) -> set[str]:
    return {name for group in groups if group["weight_decay"] for name in names_of(model, group["params"])}


def exempt(model: nn.Module) -> dict[str, str]:
    return {a.name: a.reason for a in Regularizer(model, L2(1.0)).entries if a.reason is not None}


@each_client
def test_they_decay_what_a_regularizer_penalizes_and_hold_each_parameter_once(client: Client):
    model = build(client)
    groups = param_groups(model, weight_decay=0.1)
    held = [param for group in groups for param in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    assert decaying(model, groups) == {a.name for a in Regularizer(model, L2(1.0)).entries if a.penalty is not None}


@each_client
def test_timm_decays_the_same_weights_and_beyond_them_only_what_the_table_names(client: Client):
    optim = pytest.importorskip("timm.optim")
    model = build(client)
    stated = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = decaying(model, optim.param_groups_weight_decay(model, 0.1, no_weight_decay_list=stated))
    trained = names_of(model, [param for param in model.parameters() if param.requires_grad])  # theirs holds no others
    ours = decaying(model, param_groups(model, weight_decay=0.1)) & trained
    assert ours <= theirs
    assert {exempt(model)[name] for name in theirs - ours} <= BEYOND


@each_client
def test_transformers_decays_the_same_weights_and_beyond_them_only_what_the_table_names(client: Client):
    trainer = pytest.importorskip("transformers").Trainer
    model = build(client)
    theirs = set(trainer.get_decay_parameter_names(None, model)) & dict(model.named_parameters()).keys()
    ours = decaying(model, param_groups(model, weight_decay=0.1))
    assert ours <= theirs
    assert {exempt(model)[name] for name in theirs - ours} <= BEYOND | {"no_weight_decay()"}


TIMMS = ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]


@pytest.mark.parametrize("name", TIMMS)
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "wrapped"])
def test_the_learning_rates_of_layers_are_those_of_timm(name, wrap):
    timm, optim = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    with torch.device("meta"):
        model = timm.create_model(name)
    theirs = optim.param_groups_layer_decay(model, 0.1, layer_decay=0.75)
    factors = {param: group["lr_scale"] for group in theirs for param in group["params"]}
    groups = param_groups(wrap(model), weight_decay=0.1, lr=0.01, layer_decay=0.75)
    assert {param: group["lr"] for group in groups for param in group["params"]} == {
        param: pytest.approx(0.01 * factor) for param, factor in factors.items()
    }


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "resnet50", "mixer_s32_224"])
def test_where_a_model_states_no_layers_they_are_found_as_timm_states_them(name, monkeypatch):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    stated = param_groups(model, weight_decay=0.1, lr=0.01, layer_decay=0.5)
    monkeypatch.setattr(model, "group_matcher", None)
    found = param_groups(model, weight_decay=0.1, lr=0.01, layer_decay=0.5)
    assert [group["lr"] for group in found] == [group["lr"] for group in stated]
    assert [group["params"] for group in found] == [group["params"] for group in stated]


MATRICES = {
    "transformers BERT": {"attention", "intermediate", "output", "pooler"},
    "transformers Llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "torchvision ViT": {"in_proj_weight", "out_proj", "mlp"},
    "timm DeiT": {"qkv", "proj", "fc1", "fc2"},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needing(CLIENTS[name].needs)) for name in MATRICES])
def test_muon_gets_the_matrices_of_blocks_and_adamw_the_rest(name):
    client = CLIENTS[name]
    model = build(client)
    groups = param_groups(model, weight_decay=0.1, kind="muon")
    matrices = [group for group in groups if group["use_muon"]]
    chosen = {own for group in matrices for own in names_of(model, group["params"])}
    layers = [set(own.split(".")) for own in chosen]
    assert all(parts & MATRICES[name] for parts in layers)
    assert MATRICES[name] <= set().union(*layers)
    assert not set().union(*layers) & {
        "embeddings",
        "embed_tokens",
        "patch_embed",
        "lm_head",
        "classifier",
        "heads",
        "head",
    }
    muon = torch.optim.Muon(matrices, lr=0.01)
    adam = AdamW([group for group in groups if not group["use_muon"]], lr=0.01)
    client.feed(model).backward()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    muon.step()
    adam.step()
    grown = {name for name, param in model.named_parameters() if param.grad is not None and param.grad.any()}
    assert all(not torch.equal(param, before[name]) for name, param in model.named_parameters() if name in grown)
