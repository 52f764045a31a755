"""Dropout rates that are tuned in training: the mixed derivative against finite differences, and what becomes of it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, make_data
from torchreg.nn import ConcreteDropout, seed_dropout
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_slope_is_how_the_next_steps_loss_depends_on_the_rate(name, monkeypatch):
    in_double = lambda draw, shape, device, generator: draw(shape, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr("torchreg.functional.drawn", in_double)  # so that differences can be told
    model = make()
    optimizer = OPTIMIZERS[name](weights_of(model))
    auto = AutoRate(model, (X, Y), HELD_OUT, nn.MSELoss(), batch_size=len(X), seed=5).attach(optimizer)
    step(model, optimizer)
    updates = []
    hook = optimizer.register_step_pre_hook(lambda *_: updates.extend(updates_of(optimizer)))
    step(model, optimizer)
    hook.remove()
    found = auto._slopes(updates)
    params = [update.param for update in updates]
    held = torch.autograd.grad(F.mse_loss(model.eval()(HELD_OUT[0]), HELD_OUT[1]), params)
    moved = [update.response(update.param.detach(), part) for update, part in zip(updates, held, strict=True)]
    model.train()
    for name, layer in auto.layers.items():
        h = 1e-5
        along = partial(training_slope_along, moved, model, params, auto, layer)
        expected = (along(h) - along(-h)) / (2 * h)
        assert abs(found[name].item() - expected) < 1e-6 * abs(expected) + 1e-12
        assert expected != 0


def training_slope_along(moved, model, params, auto, layer, h):
    """The training gradient along the direction, with the rate's log-odds moved by h and the same masks."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        layer.logit_p.add_(h)
    torch.manual_seed(5 + auto._steps)
    gradients = torch.autograd.grad(F.mse_loss(model(X[order]), Y[order]), params)
    with torch.no_grad():
        layer.logit_p.sub_(h)
    return sum((a * b).sum().item() for a, b in zip(gradients, moved, strict=True))


def trained(p, *, tuned=True, **options):
    """A linear regression on few examples with dropout of its inputs: the held-out loss it ends with."""
    torch.manual_seed(0)
    x, held_out = torch.randn(30, 20).double(), torch.randn(500, 20).double()
    y, targets = (z[:, :3].sum(1, keepdim=True) + torch.randn(len(z), 1).double() for z in (x, held_out))
    model = nn.Sequential(ConcreteDropout(nn.Linear(20, 1), p=p)).double()
    optimizer = torch.optim.Adam(weights_of(model), lr=0.02)
    auto = AutoRate(model, (x, y), (held_out, targets), nn.MSELoss(), every=1, **options)
    if tuned:
        auto.attach(optimizer)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return F.mse_loss(model.eval()(held_out), targets).item(), auto.rates["0"]


def test_it_ends_near_the_best_rate_wherever_it_starts():
    grid = [trained(p, tuned=False)[0] for p in (0.01, 0.1, 0.2, 0.4, 0.7)]
    for start in (0.1, 0.3, 0.8):
        loss, rate = trained(start, lr=0.1)
        assert loss < 1.05 * min(grid) < 0.95 * grid[0]
        assert 0.02 < rate < 0.6


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


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    def made():
        model = make()
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
        ({"model": nn.Linear(2, 2)}, "must have ConcreteDropout layers, Linear has none"),
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
