"""A stack of models against each of its members, trained alone: same seeds, same batches, same masks."""

import pickle
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn

from tests.cases import CONSTRAINTS, MODES, PENALTIES, NoProx
from tests.helpers import assert_bit_equal, assert_close, assert_differs
from tests.optimizers import OPTIMIZERS
from tests.unit.stacking import (
    MEMBERS,
    X,
    Y,
    network,
    together_and_alone,
    train,
)
from torchreg import L1, L2, L2SP, GroupLasso, Regularizer, Stacked
from torchreg import nn as layers
from torchreg.nn import seed_dropout


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


def test_the_reference_of_one_model_is_that_of_all_whatever_its_size():
    models = [nn.Linear(6, 4).double() for _ in range(4)]
    anchor = nn.Linear(6, 4).double().state_dict()
    found = Regularizer(Stacked(models), L2SP(1.0, reference=anchor)).value()
    assert_close(found, torch.stack([Regularizer(model, L2SP(1.0, reference=anchor)).value() for model in models]))


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
