"""Parameter groups in which only weights decay, for any optimizer."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal
from torchreg import L1, L2, GroupLasso, Regularizer, Stacked, everything, in_modules, named
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


# -- several decays and learning rates --------------------------------------------------------------------------------


def three_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def by_name(model, groups, option):
    names = {param: name for name, param in model.named_parameters()}
    return {names[param]: group.get(option) for group in groups for param in group["params"]}


def test_the_first_pattern_that_matches_gives_the_decay_and_no_pattern_lifts_an_exemption():
    model = three_layers()
    groups = param_groups(model, weight_decay={"0.*": 0.3, "4.*": 0.0, "*.bias": 9.0, "0.weight": 0.5})
    decays = by_name(model, groups, "weight_decay")
    assert {name: decay for name, decay in decays.items() if decay} == {"0.weight": 0.3}
    assert decays.keys() == dict(model.named_parameters()).keys()
    assert "2.weight" in str(groups)
    assert "1: weight_decay=0" in str(groups)  # 4.weight has the decay 0, which is no exemption
    assert "- no pattern matches" in str(groups)


def test_learning_rates_by_pattern_are_those_of_biases_too():
    model = three_layers()
    groups = param_groups(model, weight_decay=0.1, lr={"4.*": 1e-2, "0.*": 1e-3})
    rates = {"0.": 1e-3, "1.": None, "2.": None, "4.": 1e-2}
    assert by_name(model, groups, "lr") == {name: rates[name[:2]] for name, _ in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2, 1e-3, 0.5}


def test_each_layer_has_a_smaller_rate_than_the_next_and_a_normalization_that_of_its_layer():
    model = three_layers()
    groups = param_groups(model, weight_decay=0.1, lr=0.8, layer_decay=0.5)
    assert {name[:1]: lr for name, lr in by_name(model, groups, "lr").items()} == {
        "0": 0.2,
        "1": 0.2,
        "2": 0.4,
        "4": 0.8,
    }
    assert [group["lr"] for group in groups] == sorted(group["lr"] for group in groups)
    doubled = param_groups(model, weight_decay=0.1, lr={"4.*": 1.6, "*": 0.8}, layer_decay=0.5)
    assert by_name(model, doubled, "lr")["4.weight"] == 1.6


class Blocks(nn.Module):
    """Blocks with parts of their own, some in stages, between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.embed = nn.Linear(3, 4)
        self.stages = nn.ModuleList([self.stage(), self.stage()])
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def stage(self):
        stage = nn.Module()
        stage.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2)))
        return stage


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile], ids=["plain", "parallel", "compiled"])
def test_the_blocks_of_stages_are_layers(wrap):
    model = Blocks()
    layers = {"token": 0, "embed": 0, "stages.0.blocks.0": 1, "stages.0.blocks.1": 2, "stages.1.blocks.0": 3}
    layers |= {"stages.1.blocks.1": 4, "norm": 4, "head": 5}
    groups = param_groups(wrap(model), weight_decay=0.1, lr=1.0, layer_decay=0.5)
    for name, lr in by_name(model, groups, "lr").items():
        (layer,) = (layer for start, layer in layers.items() if name == start or name.startswith(f"{start}."))
        assert lr == 0.5 ** (5 - layer), name


def test_attributes_are_layers_where_there_is_no_list_of_them():
    model = nn.Module()
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2)
    rates = by_name(model, param_groups(model, weight_decay=0.1, lr=1.0, layer_decay=0.1), "lr")
    assert (rates["first.weight"], rates["second.bias"]) == (0.1, 1.0)


def test_layers_of_a_stack_are_those_of_a_member():
    stack = Stacked([three_layers() for _ in range(2)])
    rates = by_name(stack, param_groups(stack, weight_decay=0.1, lr=0.8, layer_decay=0.5), "lr")
    assert {name[:1]: lr for name, lr in rates.items()} == {"0": 0.2, "1": 0.2, "2": 0.4, "4": 0.8}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel], ids=["plain", "parallel"])
def test_hidden_matrices_are_all_but_embeddings_and_the_last_layer(wrap):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = param_groups(wrap(model), weight_decay=0.1, kind="muon", select=named("*4.weight"))
    flags = by_name(model, groups, "use_muon")
    assert [name for name, is_muon in flags.items() if is_muon] == ["2.weight"]
    assert by_name(model, groups, "weight_decay")["2.weight"] == 0.0  # what decays is another question
    torch.optim.Muon([group for group in groups if group["use_muon"]])


# -- weights that layers compute --------------------------------------------------------------------------------------

COMPUTED = {
    "weight_norm": (nn.utils.parametrizations.weight_norm, False),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm, False),
    "orthogonal": (nn.utils.parametrizations.orthogonal, False),
    "pruned": (lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5), True),
}


@pytest.mark.parametrize(("wrap", "decays"), COMPUTED.values(), ids=COMPUTED.keys())
def test_what_is_stored_is_in_the_groups_and_decays_where_it_is_the_weight(wrap, decays):
    model = nn.Sequential(wrap(nn.Linear(3, 3)), nn.Linear(3, 2), nn.Linear(2, 2))
    groups = param_groups(model, weight_decay=0.1, lr=0.1, layer_decay=0.5, kind="muon")
    found = by_name(model, groups, "weight_decay")
    assert found.keys() == dict(model.named_parameters()).keys()
    stored = {name for name in found if name.startswith("0.") and name != "0.bias"}
    assert all((found[name] > 0) == decays for name in stored)
    assert ("stored by" in str(groups)) == (not decays)
    assert {by_name(model, groups, "lr")[name] for name in stored} == {0.1 * 0.25}
    assert {by_name(model, groups, "use_muon")[name] for name in stored} == {decays}
    optimizer = torch.optim.SGD(groups)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


# -- the list ---------------------------------------------------------------------------------------------------------


def test_the_order_depends_on_model_and_arguments_alone_so_that_checkpoints_load():
    arguments = {"weight_decay": {"4.*": 0.1, "*": 0.2}, "lr": {"2.*": 0.1, "*": 0.2}, "layer_decay": 0.5}
    model, twin = three_layers(), three_layers()
    optimizer = torch.optim.AdamW(param_groups(model, **arguments))
    for param in model.parameters():
        param.grad = torch.full_like(param, float(param.numel()))
    optimizer.step()
    other = torch.optim.AdamW(param_groups(twin, **arguments))
    other.load_state_dict(optimizer.state_dict())
    for param, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert_bit_equal(optimizer.state[param]["exp_avg"], other.state[its]["exp_avg"])


def test_they_print_as_a_table_and_are_a_list():
    groups = param_groups(three_layers(), weight_decay=0.01)
    assert str(groups) == repr(groups)
    first, _, second, *_ = str(groups).splitlines()
    assert first == "3 of 8 parameters decay, 36 of 54 values"
    assert second.split() == ["0.weight", "4", "x", "3", "12", "0:", "weight_decay=0.01"]
    assert isinstance(groups, list)
    groups[0]["weight_decay"] = 0.5
    assert "weight_decay=0.5" in str(groups)
    del groups[1]
    assert str(groups).count("in no group") == 5


# -- a model in place of parameters -----------------------------------------------------------------------------------


def stepped(model, optimizer):
    torch.manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return {name: param.detach() for name, param in model.named_parameters()}


TAKE_MODELS = {
    "SGDW": (SGDW, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "AdamW": (AdamW, {"cautious": True}),
    "AdamW by name": (AdamW, {"lr": 1e-2, "betas": (0.8, 0.9), "fused": True}),
    "made": (decoupled(torch.optim.Adadelta), {"lr": 0.1, "weight_decay": 0.2}),
    "no decay": (decoupled(torch.optim.Rprop), {"lr": 0.1}),
    "without weight_decay": (decoupled(torch.optim.Rprop), {"lr": 0.1, "weight_decay": 0.2}),
}


@pytest.mark.parametrize(("cls", "options"), TAKE_MODELS.values(), ids=TAKE_MODELS.keys())
def test_an_optimizer_of_a_model_is_that_of_its_groups(cls, options):
    model, twin = three_layers(), three_layers()
    ours = cls(model, **options)
    decay = options.get("weight_decay", ours.defaults["weight_decay"])
    groups = param_groups(twin, weight_decay=decay)
    assert_bit_equal(stepped(model, ours), stepped(twin, cls(groups, **options)))
    assert (
        cls(params=model, **options).state_dict()["param_groups"] == cls(model, **options).state_dict()["param_groups"]
    )


@pytest.mark.parametrize("cls", [SGDW, AdamW, decoupled(torch.optim.Rprop), decoupled(torch.optim.Adagrad)])
def test_decays_rates_and_layers_of_a_model(cls):
    model = three_layers()
    optimizer = cls(
        model, lr={"4.*": 0.4, "*": 0.2}, weight_decay={"0.*": 0.1, "*": 0.3}, layer_decay=0.5, select=named("[02].*")
    )
    decays, rates = (by_name(model, optimizer.param_groups, key) for key in ("weight_decay", "lr"))
    assert {name: decay for name, decay in decays.items() if decay} == {"0.weight": 0.1, "2.weight": 0.3}
    assert (rates["0.bias"], rates["2.weight"], rates["4.weight"]) == (0.05, 0.1, 0.4)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert (optimizer.param_groups[-1]["weight_decay"], optimizer.param_groups[-1]["lr"]) == (0.0, 0.4)
    stepped(model, optimizer)


def test_a_positional_rate_and_a_timescale_of_a_model():
    model = three_layers()
    optimizer = AdamW(model, 0.5, coupling="timescale", timescale=10)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1.0, 0.0]


def test_the_penalty_of_a_proximal_optimizer_is_on_what_is_selected():
    model = three_layers()
    optimizer = ProxSGD(model, L1(1.0), lr=0.1, select=in_modules(nn.Linear))
    assert names_of(model, optimizer.penalized) == {"0.weight", "2.weight", "4.weight"}
    optimizer = ProxAdam(model, L1(1.0), 0.1, select=everything)
    assert names_of(model, optimizer.penalized) == set(dict(model.named_parameters()))
    tied = Tied()
    assert names_of(tied, ProxAdam(tied, L1(1.0)).penalized) == {"embed.weight"}
    assert names_of(tied, ProxAdam(tied.parameters(), L1(1.0)).penalized) > {"embed.weight", "table", "mark"}


def test_its_penalty_knows_the_layer_of_a_weight():
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 1))
    model[0].weight.data.zero_()[:, 0] = 1.0  # the weights into one of three output channels
    optimizer = ProxSGD(model, GroupLasso(1.0, groups="output"), lr=0.1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    shrunk = model[0].weight.detach()[:, 0, 0]
    assert torch.allclose(shrunk, torch.full((2,), 1 - 0.1 * 2**0.5 / 2**0.5))


def test_norms_are_bounded_where_weights_are_selected():
    model = three_layers()
    optimizer = AdamCPR(model, lr=0.0, bound=1e-4, select=named("0.*"))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    after = stepped(model, optimizer)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"0.weight"}


def test_a_proximal_checkpoint_keeps_what_is_selected():
    model = three_layers()
    optimizer = ProxSGD(model, L1(1.0), lr=0.1)
    other = ProxSGD(three_layers(), L1(1.0), lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert [group["selected"] for group in other.param_groups] == [True, False]
    assert len(other.penalized) == 3


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay": {"7.*": 0.1}}, r"the pattern '7.\*' of weight_decay matches none of the parameters 0.weight"),
        ({"weight_decay": {"*": -1}}, r"weight_decay\['\*'\] must be finite and >= 0, got -1"),
        ({"lr": -1.0}, "lr must be finite and >= 0, got -1.0"),
        ({"lr": {"0.*": "fast"}}, r"lr\['0.\*'\] must be a number, got 'fast'"),
        ({"layer_decay": 1.5, "lr": 0.1}, r"layer_decay must be in \(0, 1\], got 1.5"),
        ({"layer_decay": True, "lr": 0.1}, r"layer_decay must be in \(0, 1\], got True"),
        ({"layer_decay": 0.5}, "layer_decay multiplies the learning rate, got no lr for 0.weight, .*: pass lr"),
        ({"layer_decay": 0.5, "lr": {"0.*": 0.1}}, "got no lr for 1.weight, .*: pass lr"),
        ({"kind": "adam"}, "kind must be 'muon' or None, got 'adam'"),
    ],
    ids=str,
)
def test_wrong_options_get_one_line(arguments, message):
    with pytest.raises((ValueError, TypeError), match=rf"\Aparam_groups: [^\n]*{message}[^\n]*\Z"):
        param_groups(three_layers(), **{"weight_decay": 0.1, **arguments})


def test_a_model_without_layers_or_matrices_is_told_so():
    with pytest.raises(ValueError, match="layer_decay needs two or more layers, Linear has one: leave"):
        param_groups(nn.Linear(2, 2), weight_decay=0.1, lr=0.1, layer_decay=0.5)
    with pytest.raises(ValueError, match=r"kind 'muon' needs a hidden matrix, got none of weight \(output"):
        param_groups(nn.Linear(2, 2), weight_decay=0.1, kind="muon")


@pytest.mark.parametrize(("option", "value"), [("select", everything), ("layer_decay", 0.5)])
def test_what_needs_names_is_refused_for_parameters(option, value):
    with pytest.raises(ValueError, match=f"SGDW: {option} needs the names in a model, got parameters: pass the model"):
        SGDW(nn.Linear(2, 2).parameters(), lr=0.1, **{option: value})
