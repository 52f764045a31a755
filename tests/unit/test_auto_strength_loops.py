"""Strengths that are tuned in training: any training loop, any held-out batches."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_model
from tests.unit.tuning import (
    HELD_OUT,
    X,
    Y,
    step,
)
from torchreg import L2, Regularizer
from torchreg.tuning import AutoStrength
from torchreg.tuning.online.held_out import _moved, loss_of

# -- accumulation, scaled gradients, closures and trainers -----------------------------------------------------------


def tuned_by(make_steps, mode, *, make_optimizer=None, validation=HELD_OUT):
    """The weights and the strength after eight steps that a function makes of the optimizer and a loss."""
    model = make_model()
    optimizer = (make_optimizer or partial(torch.optim.Adam, lr=0.01))(model.parameters())
    auto = AutoStrength(Regularizer(model, L2(0.1), mode=mode), validation, nn.MSELoss(), every=1).attach(optimizer)
    for number in range(8):
        make_steps(optimizer, lambda batch: F.mse_loss(model(X[batch]), Y[batch]), number)
    return model.state_dict(), auto.strengths["L2"]


def whole(optimizer, loss, number):
    optimizer.zero_grad()
    loss(slice(0, 32)).backward()
    optimizer.step()


def in_parts(optimizer, loss, number):
    optimizer.zero_grad()
    for at in range(0, 32, 8):
        (loss(slice(at, at + 8)) / 4).backward()
    optimizer.step()


def with_a_closure(optimizer, loss, number):
    def closure():
        optimizer.zero_grad()
        value = loss(slice(0, 32))
        value.backward()
        return value

    optimizer.step(closure)


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("make_steps", [in_parts, with_a_closure])
def test_the_strength_is_that_of_the_whole_batch(make_steps, mode):
    (weights, strength), (expected, target) = (tuned_by(each, mode) for each in (make_steps, whole))
    assert_close(weights, expected, 1e-10)
    assert_close(strength, target, 1e-8)
    assert strength != 0.1


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_tune_as_plain_ones_and_a_skipped_step_is_none(fused, mode):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)

    def scaled(optimizer, loss, number):
        for factor in (math.inf, 1.0) if number == 4 else (1.0,):  # an extra step, which is skipped
            optimizer.zero_grad()
            scaler.scale(loss(slice(0, 32)) * factor).backward()
            scaler.step(optimizer)
            scaler.update()

    make_optimizer = partial(torch.optim.Adam, lr=0.01, fused=fused)
    (weights, strength), (expected, target) = (
        tuned_by(each, mode, make_optimizer=make_optimizer) for each in (scaled, whole)
    )
    assert_close(weights, expected, 1e-7)  # the fused kernel rounds
    assert_close(strength, target, 1e-6)


class Named(nn.Module):
    """A model as transformers has it: keywords in, a dict with the loss out."""

    def __init__(self):
        super().__init__()
        self.net = make_model()

    def forward(self, x, labels=None):
        outputs = self.net(x)
        return {"logits": outputs} if labels is None else {"logits": outputs, "loss": F.mse_loss(outputs, labels)}


@pytest.mark.parametrize("form", ["pair", "mapping", "mapping of inputs"])
def test_held_out_batches_may_be_mappings(form):
    model = Named()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = HELD_OUT
    validation, criterion = {
        "pair": ([(x, y)], lambda outputs, targets: F.mse_loss(outputs["logits"], targets)),
        "mapping": ([{"x": x, "labels": y}], lambda outputs, batch: outputs["loss"]),
        "mapping of inputs": ([({"x": x}, y)], lambda outputs, targets: F.mse_loss(outputs["logits"], targets)),
    }[form]
    auto = AutoStrength(Regularizer(model, L2(0.1), mode="prox"), validation, criterion, every=1).attach(optimizer)
    for number in range(8):
        whole(optimizer, lambda batch: model(X[batch], Y[batch])["loss"], number)
    assert_close(auto.strengths["L2"], tuned_by(whole, "prox")[1], 1e-6)


def test_held_out_batches_are_moved_to_the_models_device():
    seen = []

    class Asked(nn.Linear):
        def forward(self, input):
            seen.append(input.device.type)
            return super().forward(input)

    with torch.device("meta"):
        model = Asked(6, 3)
    loss = loss_of(model, nn.MSELoss(), (torch.ones(2, 6), torch.ones(2, 3)))
    assert seen == ["meta"]
    assert loss.is_meta
    nested = {"a": [torch.ones(1), (torch.ones(1), "text")], "b": 3}
    moved = _moved(nested, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert moved["b"] == 3


def test_a_loader_is_gone_through_again_and_again():
    loader = [(X[:8], Y[:8]), (X[8:], Y[8:])]
    batches = AutoStrength(Regularizer(make_model(), L2(1.0), mode="grad"), loader, nn.MSELoss())._batches
    assert [len(next(batches)[0]) for _ in range(5)] == [8, 24, 8, 24, 8]
    pairs = AutoStrength(Regularizer(make_model(), L2(1.0), mode="grad"), (X, Y), nn.MSELoss(), batch_size=10)._batches
    seen = torch.cat([next(pairs)[0] for _ in range(3)])
    assert len(seen.unique(dim=0)) == 30
    assert_differs(next(pairs)[0], seen[:10])


def test_of_an_optimizer_that_steps_more_often_the_last_step_counts():
    model = make_model()
    often, seldom = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    regularizer = Regularizer(model, L2(0.1), mode="decoupled")
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), every=1).attach(often, seldom)
    F.mse_loss(model(X), Y).backward()
    for _ in range(3):
        often.step()
    assert [len(updates) for updates in auto._updates.values()] == [1]
    seldom.step()
    assert auto.strengths["L2"] != 0.1


def test_a_loader_that_shuffles_leaves_the_trainings_random_numbers_alone():
    def run(validation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        regularizer = Regularizer(model, L2(0.1), mode="decoupled")
        AutoStrength(regularizer, validation, nn.MSELoss(), bounds=(0.1, 0.1)).attach(optimizer)
        for _ in range(6):
            step(model, optimizer, slice(0, 16))
        return model.state_dict()

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*HELD_OUT), batch_size=10, shuffle=True)
    assert_bit_equal(run(loader), run(HELD_OUT))
