"""Parameter groups in which only weights decay, for any optimizer."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal
from torchreg import L1, L2, Regularizer, Stacked, everything, in_modules, named
from torchreg.optim import SGDW, AdamCPR, AdamW, ProxAdam, ProxSGD, decoupled, param_groups

torchvision = pytest.importorskip("torchvision")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(7, 4), nn.Parameter(torch.ones(1, 3, 4))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.table = nn.Parameter(torch.ones(3, 3))
        self.mark = nn.Parameter(torch.ones(3, 3))
        self.mark._no_weight_decay = True

    def no_weight_decay(self):
        return {"table"}


def names_of(model, params):
    names = {param: name for name, param in model.named_parameters()}
    return {names[param] for param in params}


LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
MODELS = ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "densenet121", "convnext_tiny", "vit_b_16", "swin_t"]


@pytest.mark.parametrize("name", MODELS)
def test_only_weights_of_layers_decay_in_the_models_of_torchvision(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    decaying, others = param_groups(model, weight_decay=0.1)
    layers = {f"{at}.weight" for at, layer in model.named_modules() if isinstance(layer, LAYERS)}
    attention = {n for n, _ in model.named_parameters() if n.endswith("in_proj_weight")}
    found = names_of(model, decaying["params"])
    assert {n for n in found if "relative_position" not in n} == layers | attention
    assert found == {e.name for e in Regularizer(model, L2(1.0)).entries if e.is_penalized}
    assert len(found) + len(others["params"]) == len(list(model.parameters()))
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


OPTIMIZERS = {
    "torch.AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "torch.SGD": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "tensor": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.1), foreach=False),
    "SGDW": lambda groups: SGDW(groups, lr=0.1, coupling="independent"),
    "AdamW": lambda groups: AdamW(groups, lr=0.1, cautious=True),
    "decoupled": lambda groups: decoupled(torch.optim.Adagrad)(groups, lr=0.1),
    "ProxSGD": lambda groups: ProxSGD(groups, L1(0.0), lr=0.1),
    "ProxAdam": lambda groups: ProxAdam(groups, L1(0.0), lr=0.1),
}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile], ids=["plain", "parallel", "compiled"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_in_a_step_without_gradients_exactly_the_weights_shrink(make, wrap):
    model = Tied()
    optimizer = make(param_groups(wrap(model), weight_decay=0.1))
    nn.init.ones_(model.head.bias)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    changed = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert changed == {"embed.weight"}
    assert (model.embed.weight.abs() <= before["embed.weight"].abs()).all()


def test_frozen_parameters_stay_in_their_groups_and_decay_once_they_are_trained():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    decaying, others = param_groups(model, weight_decay=0.1)
    assert names_of(model, decaying["params"]) == {"0.weight", "1.weight"}
    assert names_of(model, others["params"]) == {"0.bias", "1.bias"}


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (named("0.*"), {"0.weight"}),
        (in_modules(nn.Conv1d), {"2.weight"}),
        (everything, {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}),
        (lambda info: info.name.endswith("bias"), {"0.bias", "1.bias", "2.bias"}),
    ],
)
def test_the_selection_can_be_another_one(select, expected):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv1d(3, 3, 1))
    groups = param_groups(model, weight_decay=0.1, select=select)
    assert names_of(model, groups[0]["params"]) == expected
    assert len(groups) == (1 if select is everything else 2)


def test_options_are_those_of_all_groups_and_models_can_be_combined():
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    groups = [*param_groups(body, weight_decay=0.1, lr=0.5), *param_groups(head, weight_decay=0.2, betas=(0.5, 0.9))]
    optimizer = torch.optim.AdamW(groups, lr=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.25, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.2, 0.0]
    assert optimizer.param_groups[3]["betas"] == (0.5, 0.9)


def test_members_of_a_stack_are_selected_as_one_model():
    stack = Stacked([nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2)])
    decaying, others = param_groups(stack, weight_decay=0.1)
    assert names_of(stack, decaying["params"]) == {"0.weight"}
    assert len(others["params"]) == 3


def test_what_is_not_floating_does_not_decay():
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False)
    decaying, others = param_groups(model, weight_decay=0.1)
    assert_bit_equal(list(decaying["params"]), [model.weight])
    assert len(others["params"]) == 2


def test_groups_take_another_group_later_and_load_a_checkpoint_of_plain_ones():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    plain = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias]}])
    optimizer.load_state_dict(plain.state_dict())
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    AdamCPR(param_groups(model, weight_decay=0.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (nn.Linear(2, 2).parameters(), 0.1),
            TypeError,
            "param_groups: model must be a .*Module, got generator",
        ),
        ((nn.Linear(2, 2), -0.1), ValueError, "param_groups: weight_decay must be finite and >= 0, got -0.1"),
        ((nn.Linear(2, 2), float("nan")), ValueError, "param_groups: weight_decay must be .* got nan"),
        ((nn.LayerNorm(2), 0.1), ValueError, "param_groups: select must choose at least one .* of 2 of LayerNorm"),
        ((nn.Identity(), 0.1), ValueError, "param_groups: select must choose at least one parameter"),
        ((nn.LazyLinear(2), 0.1), ValueError, "param_groups: weight has no shape yet: run one batch"),
        ((nn.Linear(2, 2), 0.1, "0.*"), TypeError, "select must be a selector .* use torchreg.named"),
        ((nn.Linear(2, 2), None), TypeError, "param_groups: weight_decay must be a number, got None"),
        ((nn.Linear(2, 2), "0.1"), TypeError, "param_groups: weight_decay must be a number, got '0.1'"),
        ((nn.Linear(2, 2), torch.ones(2)), TypeError, "param_groups: weight_decay must be a number, got tensor"),
    ],
    ids=["model", "negative", "nan", "nothing chosen", "no parameters", "lazy", "select", "none", "text", "several"],
)
def test_what_cannot_work_gets_one_line(arguments, error, message):
    model, decay, *select = arguments
    with pytest.raises(error, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        param_groups(model, weight_decay=decay, **({"select": select[0]} if select else {}))
