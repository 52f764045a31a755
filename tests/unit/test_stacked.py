"""A stack of models against each of its members, trained alone: same seeds, same batches, same masks."""

import pickle
import warnings
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn

from tests.cases import CONSTRAINTS, MODES, OPTIMIZERS, PENALTIES, NoProx
from tests.helpers import assert_bit_equal, assert_close, assert_differs
from torchreg import L1, L2, L2SP, ActivityRegularizer, Complexity, GroupLasso, Regularizer, Stacked
from torchreg import nn as layers
from torchreg.nn import seed_dropout

MEMBERS = 4
SCALES = torch.tensor([0.0, 0.3, 1.0, 3.0], dtype=torch.float64)
X = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(4))


def network(seed: int, *extra: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *extra, nn.Linear(8, 3)).double()
    if any(getattr(module, "generator", 0) is None for module in model.modules()):
        seed_dropout(model, seed)
    return model


def train(model, optimizer, criterion, regularizer=None, steps=6):
    """The loop that anyone writes, for one model or for many."""
    for step in range(steps):
        half = slice(0, 6) if step % 2 else slice(6, 12)
        optimizer.zero_grad()
        loss = criterion(model(X[half]), Y[half])
        if regularizer is not None and regularizer.mode == "loss":
            loss = loss + regularizer.value()
        loss.sum().backward()
        optimizer.step()


def together_and_alone(make_optimizer, penalty=None, mode="prox", *extra, vectorize=True):
    """The state of each member: trained in a stack, and trained alone."""

    def go(model, criterion, scale):
        optimizer = make_optimizer(model.parameters())
        regularizer = None
        if penalty is not None:
            regularizer = Regularizer(model, penalty, mode=mode)
            regularizer.scale = scale
            if mode != "loss":
                regularizer.attach(optimizer)
        train(model, optimizer, criterion, regularizer)

    models = [network(seed, *deepcopy(extra)) for seed in range(MEMBERS)]
    stack = Stacked(models, vectorize=vectorize)
    go(stack, stack.per_member(nn.CrossEntropyLoss()), SCALES)
    for model, scale in zip(models, SCALES.tolist(), strict=True):
        go(model, nn.CrossEntropyLoss(), scale)
    return [member.state_dict() for member in stack.members()], [model.state_dict() for model in models]


@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one after another"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_trains_a_member_as_if_alone(name, vectorize):
    together, alone = together_and_alone(OPTIMIZERS[name], vectorize=vectorize)
    assert_close(together, alone, 1e-10)
    assert_differs(together[0], together[1])


CASES = [
    (case.penalty, mode)
    for case, mode in product(PENALTIES, MODES)
    if mode != "prox" or (case.is_proximal and not case.is_steep)
]
CASES += [(case.constraint, "prox") for case in CONSTRAINTS]
CASES += [(L1(0.2) + L2SP(0.3), mode) for mode in MODES if mode != "prox"] + [(NoProx(), "grad"), (L2SP(0.5), "prox")]


@pytest.mark.parametrize(("penalty", "mode"), CASES, ids=str)
def test_each_penalty_acts_on_a_member_as_on_a_model_alone(penalty, mode):
    together, alone = together_and_alone(lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.5), penalty, mode)
    assert_close(together, alone, 1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["SGD-momentum", "Adam", "AdamW-fused"])
def test_each_optimizer_and_mode_give_a_member_its_own_strength(name, mode):
    together, alone = together_and_alone(OPTIMIZERS[name], L1(0.1) + L2(0.2), mode)
    assert_close(together, alone, 1e-10)


class Attending(nn.Module):
    """Attention among two halves of the features."""

    def __init__(self, drop):
        super().__init__()
        self.attention = layers.MultiheadAttention(4, 2, 0.3, batch_first=True, drop=drop)
        self.name = f"MultiheadAttention, {drop}"

    def forward(self, x):
        x = x.unflatten(1, (2, 4))
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.3),
        layers.Dropout(0.1, noise_shape=(1, None)),
        layers.AlphaDropout(0.2),
        layers.GaussianDropout(0.2),
        layers.StochasticDepth(nn.Linear(8, 8), 0.3),
        layers.DropConnect(nn.Linear(8, 8), 0.4, per_example=False),
        layers.ConcreteDropout(nn.Linear(8, 8)),
        layers.VariationalDropout(nn.Linear(8, 8)),
        layers.HardConcrete(nn.Linear(8, 8)),
        *(Attending(drop) for drop in ("weights", "keys", "heads")),
    ],
    ids=lambda layer: getattr(layer, "name", type(layer).__name__),
)
@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one after another"])
def test_a_members_masks_are_those_it_would_have_alone(layer, vectorize):
    layer.generator = None
    together, alone = together_and_alone(OPTIMIZERS["Adam"], L2(0.1), "decoupled", layer, vectorize=vectorize)
    assert_close(together, alone, 1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.GELU()),
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh()),
        lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 4)), nn.Softmax(1)),
        lambda: nn.Sequential(),
    ],
)
@pytest.mark.parametrize("shape", [(5, 6), (6,), (2, 5, 6), (5, 2, 3), (0, 6)])
def test_perceptrons_compute_what_each_member_would(make, shape):
    models = [make() for _ in range(3)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        expected = torch.stack([model(x.clone()) for model in models])
    except (RuntimeError, IndexError):
        pytest.skip("not an input of this model")
    assert_close(Stacked(models)(x.clone()), expected, 1e-6)


def test_large_masks_are_made_of_the_same_bits():
    models = [nn.Sequential(layers.Dropout(0.1)) for _ in range(2)]
    for seed, model in enumerate(models):
        seed_dropout(model, seed)
    stack = Stacked(models)
    x = torch.ones(40, 1000)
    assert_bit_equal(stack(x), torch.stack([model(x) for model in models]))


def test_a_layer_of_torch_drops_other_units_in_each_member():
    y = Stacked([nn.Sequential(nn.Dropout(0.5))] * 2)(torch.ones(100))
    assert 0 < (y[0] != y[1]).sum() < 100


def test_buffers_are_stacked_and_a_batch_norm_counts_for_each_member():
    together, alone = together_and_alone(OPTIMIZERS["Adam"], None, "prox", nn.BatchNorm1d(8))
    assert_close(together, alone, 1e-10)
    assert together[0]["2.num_batches_tracked"] == 6
    assert_differs(together[0]["2.running_mean"], together[1]["2.running_mean"])


def test_convolutions_and_tied_weights_stack():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head, self.twin = nn.Conv2d(1, 2, 3), nn.Linear(8, 8), nn.Linear(8, 8)
            self.twin.weight = self.head.weight

        def forward(self, x):
            return self.twin(self.head(self.conv(x).flatten(1)))

    models = [Tied() for _ in range(3)]
    x = torch.randn(5, 1, 4, 4)
    stack = Stacked(models)
    assert_close(stack(x), torch.stack([model(x) for model in models]), 1e-5)
    assert len(list(stack.parameters())) == len(list(models[0].parameters()))
    first = stack.members()[0]
    assert first.twin.weight is first.head.weight


def test_the_names_are_those_of_one_member_and_biases_stay_exempt():
    stack = Stacked([network(seed, nn.LayerNorm(8)) for seed in range(3)])
    assert [name for name, _ in stack.named_parameters()] == [
        name for name, _ in network(0, nn.LayerNorm(8)).named_parameters()
    ]
    regularizer = Regularizer(stack, {"0.*": L1(1.0), "*": GroupLasso(1.0)})
    reasons = {entry.name: entry.reason for entry in regularizer.entries}
    assert reasons == {
        "0.weight": None,
        "0.bias": "bias",
        "2.weight": "normalization",
        "2.bias": "bias",
        "3.weight": None,
        "3.bias": "bias",
    }
    alone = [Regularizer(model, {"0.*": L1(1.0), "*": GroupLasso(1.0)}) for model in stack.members()]
    assert_close(regularizer.value(), torch.stack([each.value() for each in alone]))
    assert_close(
        regularizer.terms(), {kind: torch.stack([one.terms()[kind] for one in alone]) for kind in ("L1", "GroupLasso")}
    )


def test_a_frozen_member_stays_while_the_others_go_on():
    stack = Stacked([network(seed, nn.BatchNorm1d(8)) for seed in range(3)])
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.1)
    Regularizer(stack, L2(1.0), mode="decoupled").attach(optimizer)
    losses = stack.per_member(nn.CrossEntropyLoss())
    train(stack, optimizer, losses)
    before = [member.state_dict() for member in stack.members()]
    stack.freeze(1)
    train(stack, optimizer, losses)
    after = [member.state_dict() for member in stack.members()]
    assert_bit_equal(after[1], before[1])
    assert_differs(after[0]["0.weight"], before[0]["0.weight"])
    assert_bit_equal(stack.state_dict()["0.weight"][1], before[1]["0.weight"])
    assert stack.frozen == [1]
    with pytest.raises(IndexError, match="one of 3, got 3"):
        stack.freeze(3)


def test_a_member_that_diverges_leaves_the_others_alone():
    together, _ = together_and_alone(OPTIMIZERS["Adam"])
    models = [network(seed) for seed in range(MEMBERS)]
    with torch.no_grad():
        models[2][0].weight.fill_(float("nan"))
    stack = Stacked(models)
    train(stack, torch.optim.Adam(stack.parameters(), lr=0.01), stack.per_member(nn.CrossEntropyLoss()))
    for member in (0, 1, 3):
        assert_bit_equal(stack.members()[member].state_dict(), together[member])


def test_a_checkpoint_a_copy_and_a_pickle_take_the_same_steps():
    stack = Stacked([network(seed, layers.Dropout(0.5)) for seed in range(2)])
    fresh = Stacked([network(seed + 5, layers.Dropout(0.5)) for seed in range(2)])
    fresh.load_state_dict(stack.state_dict())
    plain = Stacked([network(seed) for seed in range(2)])
    for twin, first in ((deepcopy(stack), stack), (fresh, deepcopy(stack)), (pickle.loads(pickle.dumps(plain)), plain)):
        for one in (twin, first):
            train(one, torch.optim.Adam(one.parameters(), lr=0.01), one.per_member(nn.CrossEntropyLoss()))
        assert_bit_equal(dict(twin.named_parameters()), dict(first.named_parameters()))
    assert stack.to(torch.float32)(X.float()).dtype == torch.float32
    assert not stack.eval().members()[0].training


def test_references_of_members_are_saved_and_loaded():
    def make(seed):
        stack = Stacked([network(seed + member) for member in range(2)])
        return stack, Regularizer(stack, L2SP(1.0) + L2(0.5))

    stack, regularizer = make(0)
    other, fresh = make(10)
    fresh.load_state_dict(regularizer.state_dict())
    other.load_state_dict(stack.state_dict())
    assert_close(fresh.value(), regularizer.value())


class Looks(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 1e9 else 2 * x


@pytest.mark.parametrize(
    "criterion",
    [
        nn.functional.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()),
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]).double(), ignore_index=1, label_smoothing=0.2),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.MultiMarginLoss(),
        nn.MultiMarginLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()),
        nn.MSELoss(),
        nn.functional.mse_loss,
        nn.functional.huber_loss,
    ],
    ids=lambda criterion: getattr(criterion, "__name__", repr(criterion)),
)
def test_the_losses_are_those_of_the_criterion_for_each_member(criterion):
    outputs = torch.randn(4, 12, 3, dtype=torch.float64)
    is_regression = "mse" in str(criterion).lower() or "huber" in str(criterion)
    for targets in [torch.randn(12, 3).double()] if is_regression else [Y, Y.flip(0)]:
        found = Stacked([nn.Linear(1, 1)] * 4).per_member(criterion)(outputs, targets)
        assert_close(found, torch.stack([criterion(own, targets) for own in outputs]))


def test_soft_targets_and_maps_have_their_cross_entropies():
    losses = Stacked([nn.Linear(1, 1)] * 2).per_member(nn.CrossEntropyLoss())
    outputs, soft = torch.randn(2, 5, 3), torch.rand(5, 3).softmax(1)
    assert_close(losses(outputs, soft), torch.stack([nn.CrossEntropyLoss()(own, soft) for own in outputs]), 1e-6)
    maps, classes = torch.randn(2, 5, 3, 4, 4), torch.randint(3, (5, 4, 4))
    assert_close(losses(maps, classes), torch.stack([nn.CrossEntropyLoss()(own, classes) for own in maps]), 1e-6)


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


def test_what_is_frozen_is_so_whoever_asks():
    stack = Stacked([network(seed) for seed in range(3)])
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.5)
    losses = stack.per_member(nn.CrossEntropyLoss())
    stack.freeze(-2)
    before = stack.state_of(1)
    train(stack, optimizer, losses, steps=2)
    assert_bit_equal(stack.state_of(1), before)
    (losses(stack(X), Y) + losses(stack(2 * X), Y)).sum().backward()  # nothing is written between
    other = network(9).state_dict()
    stack.load_member(-2, other)
    train(stack, optimizer, losses, steps=2)
    assert_bit_equal(stack.members()[1].state_dict(), other)
    checkpoint = Stacked([network(seed + 20) for seed in range(3)]).state_dict()
    stack.load_state_dict(checkpoint)
    assert_bit_equal(stack(X), Stacked([network(seed + 20) for seed in range(3)])(X))
    stack.load_member(0, {**other, "more": torch.ones(1)})
    with pytest.raises(ValueError, match=r"must hold 0\.weight of shape \(8, 6\), got \(6,\)"):
        stack.load_member(0, {**other, "0.weight": torch.ones(6)})


def test_each_module_keeps_its_mode():
    models = [network(seed, nn.BatchNorm1d(8)) for seed in range(2)]
    for model in models:
        model[2].eval()
    member = Stacked(models).members()[0]
    assert member.training
    assert not member[2].training


def test_a_stack_in_another_module_is_not_taken_for_one_model():
    stack = Stacked([nn.Linear(6, 6)] * 2)
    with pytest.raises(ValueError, match="must be the stack itself, got a Sequential that holds one"):
        Regularizer(nn.Sequential(stack), L1(1.0))
    with pytest.raises(ValueError, match="must not be a stack"):
        ActivityRegularizer(stack, L1(1.0))


def test_the_reference_of_one_model_is_that_of_all_whatever_its_size():
    models = [nn.Linear(6, 4).double() for _ in range(4)]
    anchor = nn.Linear(6, 4).double().state_dict()
    found = Regularizer(Stacked(models), L2SP(1.0, reference=anchor)).value()
    assert_close(found, torch.stack([Regularizer(model, L2SP(1.0, reference=anchor)).value() for model in models]))


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


def test_large_weights_take_the_same_steps_as_small_ones():
    models = [nn.Linear(300, 200).double() for _ in range(2)]
    for penalty in (L1(0.01), L2(0.3), L1(0.01) + L2(0.1)):
        for mode in ("grad", "decoupled", "prox"):
            stack = Stacked(models)
            optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
            regularizer = Regularizer(stack, penalty, mode=mode).attach(optimizer)
            regularizer.scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
            stack(torch.ones(1, 300).double()).sum().backward()
            optimizer.step()
            for member, (model, scale) in enumerate(zip(models, (0.5, 2.0), strict=True)):
                alone = deepcopy(model)
                optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
                Regularizer(alone, penalty, mode=mode).attach(optimizer).scale = scale
                alone(torch.ones(1, 300).double()).sum().backward()
                optimizer.step()
                assert_close(stack.weight[member], alone.weight)


def test_the_generators_of_all_members():
    models = [nn.Sequential(layers.Dropout(0.5), nn.Linear(4, 4), layers.Dropout(0.5)) for _ in range(3)]
    assert Stacked(models).generators == []
    for seed, model in enumerate(models):
        seed_dropout(model, seed)
    stack = Stacked(models)
    assert len({*stack.generators}) == 6
    before = [own.get_state() for own in stack.generators]
    stack(torch.ones(2, 4))
    assert not any(torch.equal(own.get_state(), old) for own, old in zip(stack.generators, before, strict=True))


# -- inputs of each member's own ----------------------------------------------------------------------------------

OWN = {
    "a perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), layers.Dropout(0.5), nn.Linear(8, 3)),
    "all dropped": lambda: nn.Sequential(nn.Linear(6, 8), layers.Dropout(1.0), nn.Linear(8, 3)),
    "other noise": lambda: nn.Sequential(layers.GaussianDropout(0.3), nn.Linear(6, 8), layers.AlphaDropout(0.3)),
    "rows that drop together": lambda: nn.Sequential(nn.Linear(6, 8), layers.Dropout(0.5, noise_shape=(None, 1))),
    "with a normalization": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one after another"])
@pytest.mark.parametrize("make", OWN.values(), ids=OWN.keys())
def test_members_with_inputs_and_targets_of_their_own(make, vectorize):
    models = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        models.append(make().double())
        if any(getattr(module, "generator", 0) is None for module in models[-1].modules()):
            seed_dropout(models[-1], seed)
    stack = Stacked(models, vectorize=vectorize)
    x = torch.randn(MEMBERS, 5, 6, dtype=torch.float64)
    y = torch.randint(3, (MEMBERS, 5))
    y[0, :2] = -100
    for _ in range(3):  # with new masks each time
        losses = stack.per_member(nn.CrossEntropyLoss(), shared=False)(stack.each(x), y)
        alone = [
            nn.functional.cross_entropy(model(own), target) for model, own, target in zip(models, x, y, strict=True)
        ]
        assert_close(losses, torch.stack(alone), 1e-12)
    losses.sum().backward()
    torch.stack(alone).sum().backward()
    for name, param in stack.named_parameters():
        assert_close(param.grad, torch.stack([model.get_parameter(name).grad for model in models]), 1e-12)
    stack.eval()
    assert_close(stack.each(x), torch.stack([model.eval()(own) for model, own in zip(models, x, strict=True)]), 1e-12)


@pytest.mark.parametrize(
    "criterion",
    [
        *(nn.MSELoss(), nn.functional.mse_loss, nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(beta=0.3)),
        *(nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]))),
        *(nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 3.0])), nn.BCEWithLogitsLoss(torch.rand(5, 1))),
        *(nn.SoftMarginLoss(), nn.MultiLabelSoftMarginLoss(), nn.PoissonNLLLoss()),
    ],
    ids=lambda criterion: getattr(criterion, "__name__", repr(criterion)),
)
def test_losses_of_targets_of_their_own(criterion):
    outputs, targets = torch.randn(2, MEMBERS, 5, 3)
    targets = targets.abs() if isinstance(criterion, nn.PoissonNLLLoss) else targets.sign()
    losses = Stacked([nn.Linear(1, 1)] * MEMBERS).per_member(criterion, shared=False)(outputs, targets)
    assert_close(losses, torch.stack([criterion(o, t) for o, t in zip(outputs, targets, strict=True)]), 1e-6)


@pytest.mark.parametrize("shape", [(5, 6), (MEMBERS + 1, 5, 6), ()], ids=str)
def test_inputs_without_a_row_for_each_member_are_told(shape):
    with pytest.raises(ValueError, match=r"each\(\) takes tensors with a row for each of the 4 members, got one of"):
        Stacked([nn.Linear(6, 3)] * MEMBERS).each(torch.zeros(shape))
