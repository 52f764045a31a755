"""Dropout rates that are tuned in training: the mixed derivative against finite differences, and what becomes of it."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, make_data
from torchreg.nn import ConcreteDropout, GaussianDropout, seed_dropout
from torchreg.tuning import AutoRate
from torchreg.tuning.online.updates import updates_of

X, Y = make_data()
HELD_OUT = X.flip(0) + 0.3, Y.flip(0) - 0.2
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD-nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def make(p=0.3, *, batch_norm=False):
    torch.manual_seed(0)
    extra = [nn.BatchNorm1d(8)] if batch_norm else []
    layers = [ConcreteDropout(nn.Linear(6, 8), p=p), *extra, nn.Tanh(), ConcreteDropout(nn.Linear(8, 3), p=p)]
    return nn.Sequential(*layers).double()


def weights_of(model):
    return [param for name, param in model.named_parameters() if "logit_p" not in name]


def step(model, optimizer, batch=slice(0, 16)):
    optimizer.zero_grad()
    F.mse_loss(model(X[batch]), Y[batch]).backward()
    optimizer.step()


class Mirrored(GaussianDropout):
    """The same noise with the other sign: 1 - noise instead of 1 + noise."""

    def forward(self, input):
        return 2 * input - super().forward(input)


def gaussian(p=0.3, kind=GaussianDropout):
    torch.manual_seed(0)
    return nn.Sequential(kind(p), nn.Linear(6, 8), nn.Tanh(), kind(p, noise_shape=(None, 8)), nn.Linear(8, 3)).double()


def convolution(p=0.3):
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (2, 3)), ConcreteDropout(nn.Conv1d(2, 4, 2), p=p), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 3)).double()


def looked_at(model, make_optimizer):
    """The updates and slopes after two steps, and the direction along which the training gradient is taken."""
    optimizer = make_optimizer(weights_of(model))
    auto = AutoRate(model, (X, Y), HELD_OUT, nn.MSELoss(), batch_size=len(X), seed=5).attach(optimizer)
    step(model, optimizer)
    updates = []
    hook = optimizer.register_step_pre_hook(lambda *_: updates.extend(updates_of(optimizer)))
    step(model, optimizer)
    hook.remove()
    params = [update.param for update in updates]
    held = torch.autograd.grad(F.mse_loss(model.eval()(HELD_OUT[0]), HELD_OUT[1]), params)
    model.train()
    moved = [update.response(update.param.detach(), part) for update, part in zip(updates, held, strict=True)]
    return auto, updates, auto._slopes(updates), dict(zip((n for n, _ in weights_named(model)), moved, strict=True))


def weights_named(model):
    return [(name, param) for name, param in model.named_parameters() if "logit_p" not in name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_slope_is_how_the_next_steps_loss_depends_on_the_rate(name):
    """Finite differences of the layers' own gradients, with the same random numbers at both rates."""
    model = gaussian()
    auto, _, found, moved = looked_at(model, OPTIMIZERS[name])
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(5))

    def along(layer, logit):
        total = 0.0
        for kind in (GaussianDropout, Mirrored):
            twin = gaussian(kind=kind)
            twin.load_state_dict(model.state_dict())
            twin.get_submodule(layer).p = torch.tensor(logit, dtype=torch.float64).sigmoid().item()
            torch.manual_seed(5 + auto._steps)
            named_weights = weights_named(twin)
            loss = F.mse_loss(twin(X[order]), Y[order])
            gradients = torch.autograd.grad(loss, [param for _, param in named_weights])
            total += sum((g * moved[n]).sum().item() for (n, _), g in zip(named_weights, gradients, strict=True)) / 2
        return total

    for layer in auto.layers:
        middle, h = math.log(0.3 / 0.7), 1e-5
        expected = (along(layer, middle + h) - along(layer, middle - h)) / (2 * h)
        assert abs(found[layer].item() - expected) < 1e-6 * abs(expected) + 1e-12
        assert expected != 0


@pytest.mark.parametrize("kind", ["concrete", "gaussian"])
@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_on_average_it_is_the_slope_of_the_mean_loss(kind, p):
    """For a linear layer and squared errors the mean over all noise is known: a ridge of strength p / (1 - p)."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    model = nn.Sequential(*([ConcreteDropout(layer, p=p)] if kind == "concrete" else [GaussianDropout(p), layer]))
    auto, updates, _, moved = looked_at(model.double(), OPTIMIZERS["SGD"])
    ((name, weight),) = [item for item in weights_named(model) if item[0].endswith("weight")]
    expected = 4 / Y.numel() * p / (1 - p) / 2 * (weight * X.square().sum(0) * moved[name]).sum().item()
    found = []
    for _ in range(400):
        auto._steps += 1
        found.append(auto._slopes(updates)["0"])
    error = torch.stack(found).std().item() / 20
    assert abs(torch.stack(found).mean().item() - expected) < 4 * error
    assert error < 0.2 * abs(expected)  # at any rate


@pytest.mark.parametrize("make_model", [make, gaussian, convolution])
def test_layers_are_as_they_were_after_a_look(make_model):
    model = make_model()
    optimizer = torch.optim.SGD(weights_of(model), lr=0.1)
    auto = AutoRate(model, (X, Y), HELD_OUT, nn.MSELoss(), every=1).attach(optimizer)
    before = auto.rates
    step(model, optimizer)
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(auto.rates[name] != pytest.approx(before[name], abs=1e-6) for name in before)


def linear_layer(kind, p):
    return [ConcreteDropout(nn.Linear(20, 1), p=p)] if kind == "concrete" else [GaussianDropout(p), nn.Linear(20, 1)]


def trained(kind, p, *, tuned=True, steps=600):
    """A linear regression on few examples with dropout of its inputs: the loss, and the mean log-odds at the end."""
    torch.manual_seed(0)
    x, held_out = torch.randn(30, 20).double(), torch.randn(500, 20).double()
    y, targets = (z[:, :3].sum(1, keepdim=True) + torch.randn(len(z), 1).double() for z in (x, held_out))
    model = nn.Sequential(*linear_layer(kind, p)).double()
    optimizer = torch.optim.Adam(weights_of(model), lr=0.02)
    auto = AutoRate(model, (x, y), (held_out, targets), nn.MSELoss(), every=1)
    if tuned:
        auto.attach(optimizer)
    logits = []
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        rate = auto.rates["0"]
        logits.append(math.log(rate / (1 - rate)))
    return F.mse_loss(model.eval()(held_out), targets).item(), sum(logits[-200:]) / 200


@pytest.mark.parametrize("kind", ["concrete", "gaussian"])
def test_it_ends_near_the_same_good_rate_wherever_it_starts(kind):
    grid = [trained(kind, p, tuned=False)[0] for p in (0.01, 0.1, 0.2, 0.4, 0.7)]
    ends = [trained(kind, start) for start in (0.02, 0.5, 0.95)]
    assert all(loss < 1.03 * min(grid) < 0.95 * grid[0] for loss, _ in ends)
    logits = [logit for _, logit in ends]
    assert max(logits) - min(logits) < 0.6  # they began 6.8 apart


def test_it_only_looks():
    def run(auto):
        model = make(batch_norm=True)
        seed_dropout(model, 3)
        model[0].generator = None  # one layer draws from the global generator, the other from its own
        optimizer = torch.optim.Adam(weights_of(model), lr=0.01)
        for layer in (model[0], model[3]):
            layer.logit_p.requires_grad_(False)
        if auto:
            AutoRate(model, (X, Y), HELD_OUT, nn.MSELoss(), every=1, bounds=(0.3, 0.3)).attach(optimizer)
        torch.manual_seed(1)
        for _ in range(5):
            step(model, optimizer)
        return model.state_dict()

    plain, watched = run(False), run(True)
    for name in plain:
        if "logit_p" not in name:
            assert_close(watched[name], plain[name], 1e-12)


@pytest.mark.parametrize("make_model", [make, gaussian])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, make_model):
    def made():
        model = make_model()
        optimizer = torch.optim.Adam(weights_of(model), lr=0.01)
        auto = AutoRate(model, (X, Y), HELD_OUT, nn.MSELoss(), every=2, batch_size=10).attach(optimizer)
        return model, optimizer, auto

    parts = made()
    torch.manual_seed(0)
    for number in range(12):
        if number == 7:
            torch.save(([part.state_dict() for part in parts], torch.get_rng_state()), tmp_path / "checkpoint.pt")
        step(*parts[:2])
    fresh = made()
    states, rng = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for part, state in zip(fresh, states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng)
    for _ in range(7, 12):
        step(*fresh[:2])
    assert_bit_equal(fresh[0].state_dict(), parts[0].state_dict())
    assert fresh[2].rates == parts[2].rates


def test_removed_it_leaves_the_rates_to_whoever_trains_them():
    model = make()
    optimizer = torch.optim.SGD(weights_of(model), lr=0.1)
    with AutoRate(model, (X, Y), HELD_OUT, nn.MSELoss(), every=1).attach(optimizer) as auto:
        step(model, optimizer)
        assert not model[0].logit_p.requires_grad
        before = auto.rates
        assert before["0"] != pytest.approx(0.3, abs=1e-6)
    step(model, optimizer)
    assert auto.rates == before
    assert model[0].logit_p.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": nn.Linear(2, 2)}, "must have ConcreteDropout or GaussianDropout layers, Linear has none"),
        ({"lr": 0.0}, "lr must be"),
        ({"every": 0}, "every must be"),
        ({"bounds": (0.5, 1.0)}, "bounds must be"),
        ({"training": (X[:0], Y[:0])}, "at least one"),
        ({"optimizer": torch.optim.RMSprop}, "must be SGD, Adam or AdamW, got RMSprop"),
        ({"params": lambda model: model.parameters()}, r"must not hold the rates, got 0\.logit_p"),
    ],
)
def test_a_mistake_is_one_clear_line(options, message):
    options = {"model": make(), "training": (X, Y), "optimizer": torch.optim.Adam, "params": weights_of, **options}
    make_optimizer, params, model = options.pop("optimizer"), options.pop("params"), options.pop("model")
    with pytest.raises(ValueError, match=message):
        AutoRate(model, options.pop("training"), HELD_OUT, nn.MSELoss(), **options).attach(
            make_optimizer(params(model))
        )
