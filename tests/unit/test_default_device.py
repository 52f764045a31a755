"""``torch.set_default_device`` is for the user's tensors: those that torchreg makes are where the weights are."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchreg.nn
from tests.cases import MODES, PENALTIES, SHAPED, each_case, each_constraint
from tests.helpers import assert_bit_equal, engaged, make_data, make_model, weights_of
from torchreg import L1, L2, GroupLasso, Regularizer, Stacked, diagnostics, linear
from torchreg.optim import SGDW, ProxSGD, TargetSparsity
from torchreg.tuning import AutoStrength, evidence, ridge_path, strength_max, strength_path


@pytest.fixture
def elsewhere():
    """A default device whose tensors fail beside others: what is made there and used shows itself."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture
def data():
    return make_data()


def steps_on(model, x, y, optimizer, criterion):
    for _ in range(3):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("mode", MODES)
@each_case(lambda case: True, PENALTIES + SHAPED)
def test_a_step_with_each_penalty(case, mode, data, elsewhere):
    if case.is_steep or (mode == "prox" and not case.is_proximal):
        pytest.skip("not in this mode")
    with torch.device("cpu"):
        model = make_model() if case.shape is None else nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).double()
    x, y = data if case.shape is None else (data[0][:, :3], data[1])
    select = None if case.shape is None else lambda info: info.name == "0.weight"
    options = {} if select is None else {"select": select}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = engaged(Regularizer(model, case.penalty, mode=mode, schedule=linear(8), **options), optimizer)
    steps_on(model, x, y, optimizer, criterion)
    assert all(param.isfinite().all() for param in model.parameters())


@each_constraint
def test_a_step_with_each_constraint(case, data, elsewhere):
    with torch.device("cpu"):
        model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Regularizer(model, case.constraint, mode="prox").attach(optimizer)
    steps_on(model, *data, optimizer, F.mse_loss)


@pytest.mark.parametrize("groups", ["input", "output", torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])], ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(5, 8)], ids=repr)
def test_groups_of_each_layer(groups, layer, elsewhere):
    with Regularizer(layer, GroupLasso(0.1, groups=groups), mode="grad") as regularizer:
        assert regularizer.value().isfinite()


LAYERS = {
    "Dropout": lambda g: torchreg.nn.Dropout(0.3, generator=g),
    "Dropout2d": lambda g: torchreg.nn.Dropout2d(0.3, generator=g),
    "AlphaDropout": lambda g: torchreg.nn.AlphaDropout(0.3, generator=g),
    "FeatureAlphaDropout": lambda g: torchreg.nn.FeatureAlphaDropout(0.3, generator=g),
    "GaussianDropout": lambda g: torchreg.nn.GaussianDropout(0.3, generator=g),
    "DropBlock2d": lambda g: torchreg.nn.DropBlock2d(0.3, 2, generator=g),
    "StochasticDepth": lambda g: torchreg.nn.StochasticDepth(nn.Linear(6, 6), 0.3, generator=g),
    "DropConnect": lambda g: torchreg.nn.DropConnect(nn.Linear(6, 6), 0.3, generator=g),
    "ConcreteDropout": lambda g: torchreg.nn.ConcreteDropout(nn.Linear(6, 6), generator=g),
    "VariationalDropout": lambda g: torchreg.nn.VariationalDropout(nn.Linear(6, 6), generator=g),
    "HardConcrete": lambda g: torchreg.nn.HardConcrete(nn.Linear(6, 6), generator=g),
    "LockedDropout": lambda g: torchreg.nn.LockedDropout(0.3, generator=g),
    **{f"MultiheadAttention, {drop}": lambda g, drop=drop: Attending(drop, g) for drop in ("weights", "keys", "heads")},
}


class Attending(nn.Module):
    def __init__(self, drop, generator):
        super().__init__()
        self.attention = torchreg.nn.MultiheadAttention(6, 2, 0.3, add_zero_attn=True, drop=drop, generator=generator)

    def forward(self, x):
        x, mask = x[0, 0], torch.zeros(6, 6, dtype=torch.bool, device=x.device)
        return self.attention(x, x, x, attn_mask=mask)[0]


@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "a generator"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_each_layer_that_drops(make, own):
    generator = torch.Generator().manual_seed(1) if own else None
    layer, x = make(generator), torch.randn(2, 4, 6, 6, requires_grad=True)
    if type(layer) is torchreg.nn.LockedDropout:
        x = x[0]
    x = x.detach().requires_grad_()
    with torch.device("meta"):
        layer(x).sum().backward()
    assert x.grad.device == x.device


def test_what_is_made_for_a_seed(elsewhere):
    with torch.device("cpu"):
        model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2))
        x = torch.randn(4, 6)
    torchreg.nn.replace_dropout(model, seed=3)
    model(x)
    with torchreg.nn.mc_dropout(model) as mc:
        assert mc(x, passes=3).mean.device == x.device


def test_paths_of_strengths(data, elsewhere):
    with torch.device("cpu"):
        model = make_model()
    assert strength_max(model, L1(1.0), data, criterion=nn.MSELoss()).strength > 0

    def make():
        with torch.device("cpu"):
            return make_model()

    sgd = partial(torch.optim.SGD, lr=0.05)
    path = strength_path(
        make, L1(1.0), data, strengths=[1.0, 0.1], folds=2, optimizer=sgd, criterion=nn.MSELoss(), epochs=3
    )
    assert len(path.points) == 2


@pytest.mark.parametrize("examples", [3, 32], ids=["wide", "tall"])
def test_a_ridge_path(examples, data, elsewhere):
    x, y = (part[:examples] for part in data)
    y = x[:, :3] + y / 10
    with torch.device("cpu"):
        head = nn.Linear(x.shape[1], y.shape[1]).double()
    path = ridge_path(head, (x, y))
    head.load_state_dict(path.state_at(evidence(path).strength))
    assert head.weight.device.type == "cpu"


def test_strengths_that_tune_themselves(data, elsewhere):
    with torch.device("cpu"):
        model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, L2(0.1), mode="decoupled").attach(optimizer)
    AutoStrength(regularizer, data, nn.MSELoss()).attach(optimizer)
    steps_on(model, *data, optimizer, F.mse_loss)


@pytest.mark.parametrize("make", [SGDW, lambda params, **options: ProxSGD(params, L1(0.1), **options)])
def test_our_own_optimizers(make, data, elsewhere):
    with torch.device("cpu"):
        model = make_model()
    optimizer = make(model.parameters(), lr=0.05)
    steps_on(model, *data, optimizer, F.mse_loss)
    if isinstance(optimizer, ProxSGD):
        TargetSparsity(optimizer, 0.5, steps=3)
        steps_on(model, *data, optimizer, F.mse_loss)


def test_stacks_and_diagnostics(data, elsewhere):
    with torch.device("cpu"):
        models = [make_model() for _ in range(3)]
    stack = Stacked(models)
    stack(data[0]).sum().backward()
    assert diagnostics.norms(models[0])
    assert not any(diagnostics.sparsity(models[0]).values())


def test_a_step_is_the_one_without_a_default_device():
    results = []
    for device in (None, "meta"):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        Regularizer(model, L1(0.1) + L2(0.1), mode="grad").attach(optimizer)
        x, y = make_data()
        with torch.device(device or "cpu"):
            steps_on(model, x, y, optimizer, F.mse_loss)
        results.append(weights_of(model))
    assert_bit_equal(*results)


def test_a_penalized_loss_is_where_the_loss_is():
    loss = Regularizer(make_model(), L1(0.1)).penalize(lambda: torch.zeros((), device="meta"))
    assert loss().is_meta
