"""Drop rates that follow an optimizer's steps."""

import copy
import math

import pytest
import torch
from torch import nn

from tests.helpers import assert_close, resume
from torchreg import DropoutSchedule, curriculum, early, late, linear
from torchreg.nn import Dropout, StochasticDepth


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), StochasticDepth(nn.Linear(4, 4), 0.2), Dropout(0.1))


def rates_over(net: nn.Sequential, schedule: object, steps: int) -> list[list[float]]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    drops = DropoutSchedule(net, schedule).attach(optimizer)
    seen = []
    for _ in range(steps):
        seen.append([net[i].p for i in (1, 2, 3)])
        optimizer.step()
    drops.remove()
    return seen


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (early(steps=2), [1, 1, 0, 0]),
        (late(steps=2), [0, 0, 1, 1]),
        (linear(steps=3), [1, 2 / 3, 1 / 3, 0]),
        (linear(steps=2, start=0.0, end=1.0, after=1), [0, 0, 0.5, 1]),
        (curriculum(steps=10), [1 - math.exp(-t) for t in range(4)]),
        (lambda step: 1 / (1 + step), [1, 1 / 2, 1 / 3, 1 / 4]),
    ],
)
def test_rates_are_scaled_as_the_schedule_says(schedule, factors):
    net = model()
    assert_close(rates_over(net, schedule, 4), [[f * 0.5, f * 0.2, f * 0.1] for f in factors])
    assert [net[i].p for i in (1, 2, 3)] == [0.5, 0.2, 0.1]  # given back


def test_a_saved_schedule_goes_on_where_it_was():
    first, second = (DropoutSchedule(model(), linear(steps=10)) for _ in range(2))
    for _ in range(3):
        first.step()
    resume([second], [first])
    assert second.model[1].p == first.model[1].p == 0.35
    with pytest.raises(ValueError, match="state must be of a model with the dropout layers 1, 2, 3, got 0"):
        second.load_state_dict({"steps": 1, "rates": {"0": 0.5}})


def test_a_copy_is_detached_and_drives_the_copied_model():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = DropoutSchedule(net, linear(steps=2)).attach(optimizer)
    twin = copy.deepcopy(schedule)
    optimizer.step()
    assert (net[1].p, twin.model[1].p) == (0.25, 0.5)
    twin.step()
    assert twin.model[1].p == 0.25


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="DropoutSchedule: model must have dropout layers with a rate p, Linear has none"
    ):
        DropoutSchedule(nn.Linear(2, 2), early(steps=1))
    with pytest.raises(TypeError, match=r"schedule must be a function of the step number, got 0.5"):
        DropoutSchedule(model(), 0.5)
    with pytest.raises(ValueError, match=r"schedule must keep rates in \[0, 1\], got 1.5 for 1 at step 0"):
        DropoutSchedule(model(), lambda step: 3.0)
    net = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.8))
    with pytest.raises(ValueError, match=r"got 1.2.* for 1 at step 0"):
        DropoutSchedule(net, lambda step: 1.5)
    assert (net[0].p, net[1].p) == (0.5, 0.8)  # all or none
    schedule = DropoutSchedule(model(), early(steps=1))
    with pytest.raises(TypeError, match=r"attach\(\) takes a torch.optim.Optimizer, got int"):
        schedule.attach(3)
    optimizer = torch.optim.SGD(schedule.model.parameters(), lr=0.1)
    schedule.attach(optimizer)
    with pytest.raises(ValueError, match="already attached"):
        schedule.attach(optimizer)
    for kind in (early, late, curriculum, linear):
        with pytest.raises(ValueError, match=f"{kind.__name__}: steps must be a whole number >= 1, got 0"):
            kind(steps=0)
    with pytest.raises(ValueError, match="linear: after must be a whole number >= 0, got -1"):
        linear(steps=1, after=-1)
