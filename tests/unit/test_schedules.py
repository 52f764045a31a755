"""Step to scale."""

import copy
import pickle

import pytest
import torch

from tests.helpers import assert_close
from torchreg import cosine, linear


@pytest.mark.parametrize("kind", [linear, cosine])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.1), (0.5, 0.5)])
def test_a_ramp_goes_from_start_to_end_and_stays_there(kind, start, end):
    ramp = kind(steps=7, start=start, end=end)
    values = [ramp(step) for step in range(20)]
    assert_close(values[0], start)
    assert_close(values[7:], [end] * 13)
    falling = values if start > end else values[::-1]
    assert falling == sorted(falling, reverse=True)
    assert min(start, end) - 1e-15 <= min(values)
    assert max(values) <= max(start, end) + 1e-15


def test_cosine_follows_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.5)
    ours = cosine(steps=10, start=2.0, end=0.5)
    for step in range(11):
        assert_close(ours(step), optimizer.param_groups[0]["lr"])
        optimizer.step()
        annealing.step()


def test_linear_follows_torchs_linear_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.2, end_factor=0.9, total_iters=10)
    ours = linear(steps=10, start=0.2, end=0.9)
    for step in range(15):
        assert_close(ours(step), optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize("kind", [linear, cosine])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 1, "start": -0.1}, "start"),
        ({"steps": 1, "end": float("inf")}, "end"),
        ({"steps": 1, "end": float("nan")}, "end"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(kind, arguments, named):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {named} must be .*, got {arguments[named]!r}"):
        kind(**arguments)


@pytest.mark.parametrize("schedule", [linear(5, end=0.5), cosine(5, start=0.0, end=1.0)], ids=repr)
def test_schedules_compare_copy_pickle_and_show_their_call(schedule):
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), eval(repr(schedule))):
        assert other == schedule
        assert other(3) == schedule(3)
