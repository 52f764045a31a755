"""Models of others: the default selection, parameter by parameter, and a penalized step in every mode."""

from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

from tests.cases import each_mode, each_step_mode
from tests.clients.models import CLIENTS, LAYERS, Client, LowRank, build, each_client, needing, to_scalar
from tests.helpers import assert_bit_equal, assert_close, assert_differs, weights_of
from torchreg import L1, L2, Regularizer, named

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs

LR, LASSO, RIDGE, STEPS = 0.05, 0.01, 0.1, 2
PENALTY = L1(LASSO) + L2(RIDGE)


def reasons_of(model: nn.Module) -> dict[str, str | None]:
    return {entry.name: entry.reason for entry in Regularizer(model, PENALTY).entries}


def expected(client: Client, name: str) -> str | None:
    (reason,) = (reason for pattern, reason in client.reasons.items() if fnmatchcase(name, pattern))
    return reason


def trained(client: Client, mode: str) -> dict[str, Tensor]:
    model = build(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    regularizer = Regularizer(model, PENALTY, mode=mode)
    if mode != "loss":
        regularizer.attach(optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = client.feed(model)
        (loss + regularizer.value() if mode == "loss" else loss).backward()
        optimizer.step()
    return weights_of(model)


def trained_by_hand(client: Client, mode: str) -> dict[str, Tensor]:
    """The same without torchreg; the penalized weights are those that the table names."""
    model = build(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    weights = [w for name, w in model.named_parameters() if w.requires_grad and expected(client, name) is None]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = client.feed(model)
        if mode in ("loss", "grad"):
            loss = loss + sum(LASSO * w.abs().sum() + RIDGE / 2 * w.square().sum() for w in weights)
        loss.backward()
        with torch.no_grad():
            if mode == "decoupled":
                for w in weights:
                    w -= LR * (LASSO * w.sign() + RIDGE * w)
            optimizer.step()
            if mode == "prox":
                for w in weights:
                    w.copy_(w.sign() * (w.abs() - LR * LASSO).clamp(min=0) / (1 + LR * RIDGE))
    return weights_of(model)


@each_client
def test_the_default_selection_is_right_parameter_by_parameter(client):
    model = build(client)
    names = [name for name, _ in model.named_parameters()]
    assert reasons_of(model) == {name: expected(client, name) for name in names}
    idle = [p for p in client.reasons if not any(fnmatchcase(name, p) for name in names)]
    assert not idle


@pytest.mark.torchvision
def test_of_a_resnet_all_convolutions_and_linear_layers_are_penalized_and_nothing_else():
    model = build(CLIENTS["torchvision ResNet-18"])
    layers = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    penalized = [entry.param for entry in Regularizer(model, PENALTY).entries if entry.is_penalized]
    assert len(layers) == 21
    assert {*map(id, layers)} == {*map(id, penalized)}


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        pytest.param("torchvision ViT", 1 + 4 * LAYERS + 1, marks=needing("torchvision")),
        ("transformers BERT", 2 + 6 * LAYERS + 2),
    ],
)
def test_of_a_transformer_of_twelve_layers_every_matrix_is_penalized(name, matrices):
    assert list(reasons_of(build(CLIENTS[name])).values()).count(None) == matrices


@each_mode
@each_client
def test_penalized_steps_are_the_hand_written_ones(client, mode):
    assert_close(trained(client, mode), trained_by_hand(client, mode))


@each_client
def test_the_table_shows_each_model_and_counts_it(client):
    model = build(client)
    regularizer = Regularizer(model, PENALTY)
    chosen = [e.param for e in regularizer.entries if e.is_penalized]
    values = sum(p.numel() for p in chosen), sum(p.numel() for p in model.parameters())
    first, *rest = str(regularizer).splitlines()
    assert f"{len(chosen)} of {len(list(model.parameters()))} parameters penalized" in first
    assert "{:,} of {:,} values".format(*values) in first
    for reason in {e.reason for e in regularizer.entries if e.reason}:
        assert any(line.endswith(f"- {reason}") for line in rest)


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.tied])
def test_a_tied_matrix_is_one_entry_that_is_shown_with_all_its_names(name):
    regularizer = Regularizer(build(CLIENTS[name]), PENALTY)
    for first, other in CLIENTS[name].tied.items():
        (entry,) = (e for e in regularizer.entries if first in e.names)
        assert entry.names == (first, other)
        assert f"(tied: {other})" in str(regularizer)


@each_step_mode
def test_of_a_model_with_adapters_only_these_move(mode):
    client = CLIENTS["LoRA"]
    before, after = weights_of(build(client)), trained(client, mode)
    for name, start in before.items():
        (assert_bit_equal if ".base." in name else assert_differs)(after[name], start)
    assert "- frozen" in str(Regularizer(build(client), PENALTY))


def test_the_value_of_a_model_with_adapters_leaves_the_frozen_base_out():
    model = build(CLIENTS["LoRA"])
    adapters = [w for layer in model if isinstance(layer, LowRank) for w in (layer.lora_A, layer.lora_B)]
    assert_close(Regularizer(model, L2(RIDGE)).value(), sum(RIDGE / 2 * w.square().sum() for w in adapters))


def test_a_lazy_model_is_refused_until_one_batch_has_run_and_then_trains():
    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)).double()

    batch = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^Regularizer: 0\.weight has no shape yet: run one batch .* first$"):
        Regularizer(make(), PENALTY)

    def ready() -> nn.Module:
        model = make()
        model(batch)
        return model

    table = {"[03].weight": None, "1.weight": "normalization", "[013].bias": "bias"}
    client = Client(ready, lambda model: to_scalar(model(batch)), table)
    assert reasons_of(ready()) == {name: expected(client, name) for name, _ in ready().named_parameters()}
    assert_close(trained(client, "prox"), trained_by_hand(client, "prox"))


def test_quantized_layers_have_no_parameters_to_penalize():
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    quantized = quantize(model, {nn.Linear})
    with pytest.raises(ValueError, match=r"^Regularizer: select must .* got none of a model without parameters"):
        Regularizer(quantized, PENALTY)
    assert reasons_of(nn.Sequential(quantized[0], model[1])) == {"1.weight": None, "1.bias": "bias"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_a_parameter_of_integers_is_exempt_by_its_type(dtype):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight = nn.Parameter(torch.zeros(3, 4, dtype=dtype), requires_grad=False)
    assert reasons_of(model)["0.weight"] == f"{str(dtype).removeprefix('torch.')} values"
    assert_close(Regularizer(model, L2(2.0)).value(), model[1].weight.square().sum(), 1e-6)


@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_a_sparse_parameter_is_refused_in_one_line_that_says_what_to_do(convert):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight = nn.Parameter(convert(model[0].weight.detach()))
    with pytest.raises(ValueError, match=r"^Regularizer: 0\.weight must be a dense tensor, .*: exempt it with select$"):
        Regularizer(model, PENALTY)
    assert_close(Regularizer(model, L2(2.0), select=named("1.*")).value(), model[1].weight.square().sum(), 1e-6)


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_an_embedding_with_sparse_gradients_is_penalized_whole(mode):
    def step(penalized: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        model = nn.Embedding(5, 3, sparse=True, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        if penalized:
            Regularizer(model, L2(RIDGE), mode=mode).attach(optimizer)
        start = model.weight.detach().clone()
        model(torch.tensor([1, 1, 2])).sum().backward()
        optimizer.step()
        return start, model.weight.detach()

    (start, actual), (_, bare) = step(True), step(False)
    assert_close(actual, bare - LR * RIDGE * start if mode == "decoupled" else bare / (1 + LR * RIDGE))


def test_sparse_gradients_are_refused_where_the_penalized_one_would_be_dense():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    Regularizer(model, L2(RIDGE), mode="grad").attach(optimizer)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"mode 'grad' needs dense gradients, .*: use mode 'decoupled' or 'prox'"):
        optimizer.step()
