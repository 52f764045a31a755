"""TargetSparsity's schedules: how the goal rises, and what may give it."""

import numpy as np
import pytest
import torch

from tests.helpers import make_model
from tests.unit.sparsifying import a_net, batches, fit, zero_groups, zeros
from torchreg import L1, GroupLasso, cosine, diagnostics, late
from torchreg.optim import ProxAdam, ProxSGD, TargetSparsity


@pytest.mark.parametrize("span", [(0.0, 0.6), (0.2, 1.0)])
@pytest.mark.parametrize(
    ("schedule", "closed"),
    [
        ("cubic", lambda x: 3 * x - 3 * x**2 + x**3),
        ("linear", lambda x: x),
        ("constant", lambda x: 1.0),
        (lambda x: x * x, lambda x: x * x),
    ],
    ids=["cubic", "linear", "constant", "own"],
)
def test_the_goal_follows_the_schedule_and_the_end_is_exact(schedule, closed, span):
    net = a_net()
    optimizer = ProxAdam(net.parameters(), L1(1e-4), lr=5e-3)
    controller = TargetSparsity(optimizer, 0.8, steps=200, fix_at=0.5, schedule=schedule, span=span)
    data = batches()
    for step in range(100):
        x = min(max((step / 100 - span[0]) / (span[1] - span[0]), 0), 1)
        assert controller.goal() == pytest.approx(0.8 * closed(x), abs=1e-12)
        fit(net, optimizer, 1, data)
    assert controller.goal() == pytest.approx(0.8)
    weights = sum(w.numel() for w in diagnostics.weights_of(net).values())
    assert round(zeros(net) * weights) == round(0.8 * weights)


@pytest.mark.parametrize("groups", ["output", "input"])
def test_the_goal_of_groups_follows_the_schedule_too(groups):
    net = a_net()
    optimizer = ProxAdam(net.parameters(), GroupLasso(1e-4, groups=groups), lr=5e-3)
    controller = TargetSparsity(optimizer, 0.5, steps=200, groups=groups, schedule="linear", span=(0, 1))
    fit(net, optimizer, 70)
    assert controller.goal() == pytest.approx(0.25)
    fit(net, optimizer, 130)
    dim = 0 if groups == "output" else 1
    assert zero_groups(net, dim) == pytest.approx(0.5, abs=0.01)


def test_a_schedule_that_leaves_its_range_is_told():
    net = a_net()
    optimizer = ProxAdam(net.parameters(), L1(1e-4), lr=5e-3)
    TargetSparsity(optimizer, 0.8, steps=100, schedule=lambda x: 2 * x)
    with pytest.raises(ValueError, match=r"TargetSparsity: schedule must give shares in \[0, 1\], got 1\."):
        fit(net, optimizer, 60)


@pytest.mark.parametrize("schedule", [cosine, cosine(steps=10), late(steps=10)], ids=repr)
def test_a_schedule_of_the_step_number_is_refused(schedule):
    with pytest.raises(ValueError, match=r"a function of the progress, got .*, which is one of the step number\Z"):
        TargetSparsity(ProxSGD(make_model().parameters(), L1(1e-3)), 0.8, steps=9, schedule=schedule)


@pytest.mark.parametrize("reached", [None, "half", torch.tensor([0.1, 0.2]), float("nan")], ids=str)
def test_a_schedule_that_gives_no_share_is_told(reached):
    controller = TargetSparsity(ProxSGD(make_model().parameters(), L1(1e-3)), 0.8, steps=9, schedule=lambda _: reached)
    with pytest.raises(ValueError, match=r"TargetSparsity: schedule must give shares in \[0, 1\], got .* at 0\Z"):
        controller.goal()


@pytest.mark.parametrize("give", [torch.tensor, lambda x: torch.tensor([x]), np.float32], ids=["0-d", "1-d", "numpy"])
def test_a_schedule_may_give_any_number(give):
    controller = TargetSparsity(
        ProxSGD(make_model().parameters(), L1(1e-3)), 0.8, steps=9, schedule=lambda _: give(0.5)
    )
    assert type(controller.goal()) is float
    assert controller.goal() == 0.4
