"""Decay by timescale, and its transfer to another batch size, data set or width."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.helpers import assert_close
from tests.optimizers import each_decoupled_or_made, each_form, each_kernel
from tests.unit.training import a_weight, one_step
from torchreg.optim import SGDW, AdamW, param_groups, transfer


def decayed(optimizer, steps=3, falls=True):
    """The weights after some steps, under a falling learning rate."""
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step) if falls else 1.0)
    for gradient in (0.5, -0.3, 0.1, *[0.0] * steps)[:steps]:
        one_step(optimizer, gradient)
        scheduler.step()
    return [w.detach() for group in optimizer.param_groups for w in group["params"]]


@each_decoupled_or_made
@pytest.mark.parametrize("timescale", [1, 7, 12.5, 1000, math.inf])
def test_each_step_leaves_its_share_at_any_learning_rate(ours, base, options, timescale):
    for lr in (options["lr"], 1e-6):
        w = a_weight()
        optimizer = ours([w], **{**options, "lr": lr}, coupling="timescale", timescale=timescale)
        for step in range(1, 21):
            one_step(optimizer)
            assert_close(w.detach(), torch.full_like(w, (1 - 1 / timescale) ** step))


@each_kernel
@each_form
def test_it_is_the_coupling_independent_with_one_over_the_timescale(ours, base, options, form):
    by_steps = ours([a_weight()], **options, **form, coupling="timescale", timescale=40)
    by_decay = ours([a_weight()], **options, **form, coupling="independent", weight_decay=1 / 40)
    assert_close(decayed(by_steps), decayed(by_decay))


def test_groups_have_timescales_of_their_own_and_may_be_exempt():
    groups = [
        {"params": [a_weight()], "timescale": 5},
        {"params": [a_weight()], "weight_decay": 0.0},
        {"params": [a_weight()], "coupling": "constant", "weight_decay": 0.5},
        {"params": [a_weight()]},
    ]
    found = decayed(SGDW(groups, lr=0.1, coupling="timescale", timescale=10), steps=1, falls=False)
    start, gradient = 1.0, 0.1 * 0.5
    expected = [start * kept - gradient for kept in (0.8, 1.0, 0.5, 0.9)]
    assert_close(torch.cat(found), torch.tensor(expected, dtype=torch.float64))


def test_one_group_may_have_the_coupling_whatever_the_others_have():
    groups = [{"params": [a_weight()], "coupling": "timescale", "timescale": 4}, {"params": [a_weight()]}]
    optimizer = AdamW(groups, lr=0.1, weight_decay=0.5)
    one_step(optimizer)
    assert_close(
        *[
            torch.cat([g["params"][0].detach() for g in optimizer.param_groups]),
            torch.tensor([0.75, 0.95], dtype=torch.float64),
        ]
    )


def test_exempt_parameters_of_a_model_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).double()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = SGDW(param_groups(model, weight_decay=1), lr=0.1, coupling="timescale", timescale=2)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close(
        {name: param.detach() for name, param in model.named_parameters()},
        {name: param.detach() * (0.5 if name == "0.weight" else 1) for name, param in before.items()},
    )


def test_a_checkpoint_keeps_it_and_a_later_change_counts():
    first, second = (SGDW([a_weight()], lr=0.1, coupling="timescale", timescale=t) for t in (8, 16))
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["timescale"] == 8
    second.param_groups[0]["timescale"] = 4
    one_step(second)
    assert second.param_groups[0]["params"][0].item() == 0.75
    second.param_groups[0]["timescale"] = None
    with pytest.raises(ValueError, match=r"SGDW: timescale must be a number of steps >= 1 .*, got None"):
        one_step(second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupling": "timescale"}, "timescale must be a number of steps >= 1 with coupling 'timescale', got None"),
        ({"coupling": "timescale", "timescale": 0.5}, "timescale must be a number of steps >= 1 .*, got 0.5"),
        ({"coupling": "timescale", "timescale": math.nan}, "timescale must be a number of steps >= 1 .*, got nan"),
        ({"coupling": "timescale", "timescale": True}, "timescale must be a number .*, got True"),
        ({"coupling": "timescale", "timescale": "8"}, "timescale must be a number .*, got '8'"),
        ({"timescale": 8}, "timescale is for coupling 'timescale', got timescale=8 with coupling 'lr': set coupling="),
        (
            {"coupling": "timescale", "timescale": 8, "weight_decay": 0.1},
            "weight_decay must be 1 or 0 with coupling 'timescale', where timescale sets the strength, got 0.1",
        ),
        ({"coupling": "timescale", "timescale": 8, "lr": 0.0}, "coupling 'timescale' divides by the initial lr"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^SGDW: {message}"):
        SGDW([a_weight()], **{"lr": 0.1, **options})


# -- to another batch, data set or width ------------------------------------------------------------------------------


def left_after_an_epoch(examples, batch, lr, weight_decay, **options):
    """The share of a weight that an epoch without gradients leaves, by torch's own AdamW unless there are options."""
    w = a_weight()
    optimizer = (AdamW if options else torch.optim.AdamW)([w], lr=lr, weight_decay=weight_decay, **options)
    for _ in range(examples // batch):
        one_step(optimizer)
    return math.log(w.item())


@pytest.mark.parametrize("batch", [0.5, 1, 4])
@pytest.mark.parametrize("data", [0.25, 1, 2])
@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize("lr", [1, 0.5])
def test_an_epoch_leaves_the_same_share_of_a_weight(batch, data, width, lr):
    before = left_after_an_epoch(8192, 8, 1e-3, 0.1)
    decay = transfer(0.1, batch=batch, data=data, width=width, lr=lr)
    epoch = (int(8192 * data), int(8 * batch), 1e-3 * lr / width, decay)
    assert left_after_an_epoch(*epoch) == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("coupling", ["independent", "schedule", "constant"])
def test_where_the_learning_rate_does_not_scale_the_decay_neither_it_nor_the_width_counts(coupling):
    assert transfer(0.1, width=4, lr=0.5, batch=3, coupling=coupling) == pytest.approx(0.3)
    before = left_after_an_epoch(8192, 8, 1e-3, 1e-4, coupling=coupling)
    decay = transfer(1e-4, data=2, width=4, lr=0.5, coupling=coupling)
    after = left_after_an_epoch(16384, 8, 1e-3 * 0.5 / 4, decay, coupling=coupling)
    assert after == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch": 0}, ValueError, "transfer: batch must be new over old, positive and finite, got 0"),
        ({"data": math.inf}, ValueError, "transfer: data must be new over old, positive and finite, got inf"),
        ({"width": "2"}, TypeError, "transfer: width must be a number, got '2'"),
        ({"weight_decay": -1}, ValueError, "transfer: weight_decay must be finite and >= 0, got -1"),
        ({"coupling": "muP"}, ValueError, "transfer: coupling must be one of lr, .*corrected, got 'muP'"),
        ({"coupling": "timescale"}, ValueError, r"got 'timescale': a timescale becomes timescale \* data / batch"),
    ],
    ids=str,
)
def test_a_wrong_factor_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        transfer(**{"weight_decay": 0.1, **arguments})
