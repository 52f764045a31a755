"""Who is penalized, who is not, and the reason that is shown."""

import pytest
import torch
from torch import nn

from tests.unit.selecting import (
    chosen,
    reasons,
)
from torchreg import Stacked, everything


class Own(nn.Module):
    """A module with the parameters that are easily misjudged."""

    def __init__(self) -> None:
        super().__init__()
        self.unbiased_head, self.bias_head, self.normalizer = (nn.Linear(2, 2) for _ in range(3))
        self.debias = nn.Parameter(torch.ones(2, 2))
        self.bias_table = nn.Parameter(torch.ones(2, 2))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.mixture = nn.Parameter(torch.ones(3))


MODELS = {
    "linear": (nn.Linear(2, 3), {"weight": None, "bias": "bias"}),
    "bilinear": (nn.Bilinear(2, 3, 1), {"weight": None, "bias": "bias"}),
    "conv": (nn.Conv2d(1, 2, 3), {"weight": None, "bias": "bias"}),
    "embedding": (nn.Embedding(4, 2), {"weight": None}),
    "prelu": (nn.PReLU(), {"weight": "1-D"}),
    "batch norm": (nn.BatchNorm2d(2), {"weight": "normalization", "bias": "bias"}),
    "instance norm": (nn.InstanceNorm1d(2, affine=True), {"weight": "normalization", "bias": "bias"}),
    "group norm": (nn.GroupNorm(1, 2), {"weight": "normalization", "bias": "bias"}),
    "layer norm over an image": (nn.LayerNorm((3, 4)), {"weight": "normalization", "bias": "bias"}),
    "rms norm over an image": (nn.RMSNorm((3, 4)), {"weight": "normalization"}),
    "lstm": (
        nn.LSTM(2, 2, bidirectional=True, proj_size=1),
        {
            f"{kind}_l0{way}": "bias" if kind.startswith("bias") else None
            for way in ("", "_reverse")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        },
    ),
    "attention": (
        nn.MultiheadAttention(2, 1, add_bias_kv=True),
        {
            "in_proj_weight": None,
            "in_proj_bias": "bias",
            "bias_k": "bias",
            "bias_v": "bias",
            "out_proj.weight": None,
            "out_proj.bias": "bias",
        },
    ),
    "own": (
        Own(),
        {
            "debias": None,
            "bias_table": "bias",
            "temperature": "scale",
            "mixture": "1-D",
            **{f"{name}.weight": None for name in ("unbiased_head", "bias_head", "normalizer")},
            **{f"{name}.bias": "bias" for name in ("unbiased_head", "bias_head", "normalizer")},
        },
    ),
}


class LlamaRMSNorm(nn.Module):
    """A normalization that only its class name tells from another module."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class NormalizedLinear(LlamaRMSNorm):
    """What is not one, though its name begins like one."""


NAMES = {  # parameters by name and shape, and why they are exempt
    ("class_token", (1, 1, 4)): "class token",
    ("cls_token_1", (1, 1, 4)): "cls token",
    ("mask_token", (1, 4)): "mask token",
    ("reg_token", (1, 2, 4)): "reg token",
    ("query_tokens", (1, 2, 4)): "query tokens",
    ("embed_tokens", (9, 4)): None,
    ("tokenizer", (9, 4)): None,
    ("tokens_projection", (9, 4)): None,
    ("token_weight", (4, 4)): None,
    ("pos_embed", (1, 5, 4)): "position embedding",
    ("pos_embedding", (1, 5, 4)): "position embedding",
    ("posEmbed", (1, 5, 4)): "position embedding",
    ("positional_embedding", (5, 4)): "position embedding",
    ("rel_pos_h", (5, 4)): "position embedding",
    ("wpe", (5, 4)): "position embedding",
    ("pos_weight", (4, 4)): None,
    ("composition", (4, 4)): None,
    ("positive", (4, 4)): None,
    ("attention_biases", (2, 9)): "bias",
    ("relative_position_bias_table", (9, 2)): "bias",
    ("rebiased", (9, 2)): None,
    ("layer_scale", (4, 1, 1)): "scale",
    ("logit_scale", (1, 1, 1)): "scale",
    ("gamma", (4,)): "scale",
    ("gain", (4, 1, 1, 1)): "scale",
    ("gain_matrix", (4, 4)): None,
    ("scale", (4, 1)): None,
    ("upscale", (1, 4, 4)): None,
    ("temperature", (4, 1)): "scale",
    ("logit_scale", (4, 1)): "scale",
    ("tau", (1, 4)): "scale",
    ("weight_g", (4, 1)): "gain",
    ("weight_v", (4, 4)): None,
    ("prompt", (4, 8)): "virtual tokens",
    ("prompt_embeddings", (1, 4, 8)): "virtual tokens",
    ("adaption_prompt", (1, 4, 8)): "virtual tokens",
    ("prefix", (2, 4, 8)): "virtual tokens",
    ("ctx", (4, 8)): "virtual tokens",
    ("prompt_proj", (4, 8)): None,
    ("prompted", (4, 8)): None,
    ("register_tokens", (1, 2, 4)): "register tokens",
    ("latents", (4, 8)): "latents",
    ("latent", (1, 4, 8)): "latent",
    ("latent_proj", (4, 8)): None,
    ("query_embed", (4, 8)): "query embed",
    ("queries", (4, 8)): "queries",
    ("query", (1, 4, 8)): "query",
    ("query", (8, 8)): None,
    ("probe", (1, 1, 8)): "probe",
    ("class_embedding", (1, 1, 8)): "class embedding",
    ("class_embedding", (10, 8)): None,
    ("A_log", (4, 16)): "logarithm",
    ("A_logs", (4, 16)): "logarithm",
    ("log_dt", (4, 1)): "logarithm",
    ("dt_bias", (4, 1)): "bias",
    ("D", (4, 4)): None,
    ("A", (4, 4)): None,
    ("freqs", (2, 4)): "frequencies",
    ("inv_freq", (2, 4)): "frequencies",
    ("freq_proj", (2, 4)): None,
    ("lora_A", (4, 4)): None,
    ("kernel", (3, 3)): None,
    ("weight_ih_l0", (4, 4)): None,
    ("alpha", (4, 1, 1)): None,
}
EMBEDDINGS = {  # by the name of the module
    "word_embeddings": None,
    "token_type_embeddings": None,
    "embed_tokens": None,
    "tokens": None,
    "wte": None,
    "position_embeddings": "position embedding",
    "embed_positions": "position embedding",
    "wpe": "position embedding",
    "disposition": None,
    "relative_attention_bias": "bias",
    "query_embed": "query embed",
    "query_embedding": None,
    "latents": "latents",
    "prompt_embeddings": "virtual tokens",
    "log": None,
    "freqs": None,
}


class Adapters(nn.Module):
    """What libraries for fine-tuning add to a layer, under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 6)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})
        self.lora_embedding_A = nn.ParameterDict({"default": torch.ones(2, 8)})
        self.lora_magnitude_vector = nn.ParameterDict({"default": torch.ones(6)})
        self.ia3_l = nn.ParameterDict({"default": torch.ones(6, 1), "other": torch.ones(1, 8)})
        self.vera_lambda_b = nn.ParameterDict({"default": torch.ones(6)})
        self.prompt_encoder = nn.ModuleDict({"default": PrefixEncoder()})
        self.prompt_model = nn.ModuleDict({"words": nn.Embedding(9, 8)})


class PrefixEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.transform = nn.Embedding(4, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())


class StateSpace(nn.Module):
    """The parameters of a Mamba or S4 layer; D has a second dimension, as it may have."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj, self.conv1d, self.dt_proj = nn.Linear(4, 8), nn.Conv1d(8, 8, 3, groups=8), nn.Linear(2, 8)
        self.A_log, self.D = nn.Parameter(torch.ones(8, 16)), nn.Parameter(torch.ones(8, 2))
        self.dt_bias, self.norm_f = nn.Parameter(torch.ones(8)), nn.RMSNorm(8)


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS.keys())
def test_biases_and_normalization_are_exempt_by_default(model, expected):
    # A weight is added, since a model in which nothing is left to penalize is refused.
    actual = reasons(nn.ModuleDict({"it": model, "more": nn.Linear(1, 1)}))
    assert actual == {f"it.{name}": reason for name, reason in expected.items()} | {
        "more.weight": None,
        "more.bias": "bias",
    }


class Declaring(nn.Module):
    """Says itself which of its parameters are no weights: by a method, and by an attribute of the parameter."""

    def __init__(self, names):
        super().__init__()
        self.layer, self.table = nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2))
        self.marked, self.unmarked = nn.Linear(2, 2), nn.Linear(2, 2)
        self.marked.weight._no_weight_decay, self.unmarked.weight._no_weight_decay = True, False
        self.no_weight_decay = lambda: names


@pytest.mark.parametrize(
    ("names", "reason"), [({"layer.weight", "table"}, "no_weight_decay()"), ({"layer.weight": "a", "table": "a"}, "a")]
)
def test_a_model_may_say_itself_what_is_no_weight(names, reason):
    model = nn.ModuleDict({"it": Declaring(names)})
    declared = {"it.layer.weight": reason, "it.table": reason, "it.marked.weight": "_no_weight_decay"}
    biases = {f"it.{name}.bias": "bias" for name in ("layer", "marked", "unmarked")}
    assert reasons(model) == declared | biases | {"it.unmarked.weight": None}
    assert chosen(model, select=everything) == reasons(model).keys()


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS.keys())
def test_everything_lifts_every_exemption(model, expected):
    assert chosen(model, select=everything) == expected.keys()


@pytest.mark.parametrize(("name", "shape"), NAMES)
def test_the_whole_words_of_a_name_say_what_a_parameter_is(name, shape):
    model = nn.Linear(1, 1)
    model.register_parameter(name, nn.Parameter(torch.ones(shape)))
    assert reasons(model)[name] == NAMES[name, shape]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_an_embedding_has_the_name_of_its_module(name):
    model = nn.ModuleDict({name: nn.Embedding(5, 4), "more": nn.Linear(1, 1)})
    assert reasons(model)[f"{name}.weight"] == EMBEDDINGS[name]
    if EMBEDDINGS[name] == "position embedding":
        assert reasons(nn.ModuleDict({name: nn.Linear(5, 4)}))[f"{name}.weight"] is None


def test_matrices_of_adapters_are_weights_and_their_scales_and_tokens_are_not():
    found = reasons(nn.ModuleDict({"q": Adapters()}))
    assert {name for name, reason in found.items() if reason is None} == {
        "q.base_layer.weight",
        "q.lora_A.default.weight",
        "q.lora_B.default.weight",
        "q.lora_embedding_A.default",
        "q.prompt_encoder.default.transform.0.weight",
        "q.prompt_model.words.weight",
    }
    assert found["q.ia3_l.default"] == found["q.ia3_l.other"] == "scale"
    assert found["q.prompt_encoder.default.embedding.weight"] == "virtual tokens"


def test_the_dynamics_of_a_state_space_layer_are_no_weights():
    found = reasons(StateSpace())
    assert {name for name, reason in found.items() if reason is None} == {
        "in_proj.weight",
        "conv1d.weight",
        "dt_proj.weight",
    }
    assert (found["A_log"], found["D"]) == ("logarithm", "state space")


def test_options_that_state_space_models_keep_on_a_parameter_are_read():
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model[0].weight._optim = {"lr": 1e-3, "weight_decay": 0.0}
    model[1].weight._optim = {"lr": 1e-3, "weight_decay": 0.1}
    assert reasons(model)["0.weight"] == "_optim"
    assert chosen(model) == {"1.weight", "2.weight"}


def test_stacks_and_their_members_keep_the_marks():
    models = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    for model in models:
        model[0].weight._no_weight_decay = True
    stack = Stacked(models)
    for it in (stack, *stack.members(), *Stacked(stack.members()).members()):
        assert chosen(it) == {"1.weight"}


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.ones(5, 4))


def test_the_tensors_of_a_position_embedding_are_known_by_its_name():
    model = nn.ModuleDict({"pos_embed": Position(), "position_ffn": Position()})
    assert reasons(model)["pos_embed.height_rel"] == "position embedding"
    assert chosen(model) == {"position_ffn.height_rel"}


class Wrapped(nn.Module):
    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda model: Wrapped("base_model", Wrapped("model", model)),
        lambda model: Wrapped("_fsdp_wrapped_module", model),
        lambda model: Wrapped("inner", torch.compile(model)),
    ],
    ids=["compile", "data parallel", "peft", "fsdp", "compiled inside"],
)
def test_what_a_model_says_is_heard_through_wrappers(wrap):
    model = nn.ModuleDict({"it": Declaring({"layer.weight", "table"}), "more": nn.Linear(1, 1)})
    model["it"].layer = nn.ModuleDict({"base_layer": nn.Linear(2, 2)})  # an adapter has moved the declared weight
    left = {name.removeprefix("module.").rpartition("it.")[2] for name in chosen(wrap(model))}
    assert {name for name in left if "more" not in name} == {"unmarked.weight"}
    assert len(left) == 2


def test_parts_of_a_model_that_are_compiled_are_heard_of_by_their_names():
    model = nn.ModuleDict({"block": torch.compile(nn.Linear(2, 2)), "more": nn.Linear(1, 1)})
    model.no_weight_decay = lambda: {"block.weight"}
    assert chosen(model) == {"more.weight"}


@pytest.mark.parametrize("copy", ["modules_to_save.default", "original_module", "base_layer"])
def test_an_embedding_that_an_adapter_has_copied_keeps_its_name(copy):
    model = nn.ModuleDict({"wpe": nn.Embedding(5, 4), "wte": nn.Embedding(5, 4)})
    for name, table in list(model.items()):
        for part in reversed(copy.split(".")):
            table = Wrapped(part, table)
        model[name] = table
    assert chosen(model) == {f"wte.{copy}.weight"}


def test_a_list_of_parameters_has_the_name_of_the_list():
    model = nn.ModuleDict({"more": nn.Linear(1, 1)})
    model.pos_embeds = nn.ParameterList([torch.ones(1, 5, 4)])
    model.layers = nn.ParameterList([torch.ones(1, 5, 4)])
    assert reasons(model)["pos_embeds.0"] == "position embedding"
    assert reasons(model)["layers.0"] is None


@pytest.mark.parametrize("shape", [(4,), (1, 1, 4), (4, 1, 1)])
def test_a_class_that_is_called_a_norm_is_one(shape):
    model = nn.ModuleList([LlamaRMSNorm(*shape), NormalizedLinear(*shape), nn.Linear(1, 1)])
    assert reasons(model)["0.weight"] == "normalization"
    assert reasons(model)["1.weight"] == ("1-D" if len(shape) == 1 else None)


def test_the_matrix_of_a_class_that_is_called_a_norm_is_penalized():
    assert chosen(nn.ModuleList([LlamaRMSNorm(4, 4), LlamaRMSNorm(1, 4)])) == {"0.weight", "1.weight"}
