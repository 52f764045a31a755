"""The hypergradient of a strength against finite differences of the held-out loss."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.cases import PENALTIES
from tests.helpers import assert_close
from tests.unit.tuning import (
    assert_slopes_agree,
    measured,
)
from torchreg import L1, L2, ElasticNet, GroupLasso, Huber
from torchreg.tuning.online.updates import updates_of

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.05),
    "SGD-momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "SGD-dampening": partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.4),
    "SGD-nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD-maximize": partial(torch.optim.SGD, lr=0.05, momentum=0.9, maximize=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "Adam-decay": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "Adam-amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True, betas=(0.8, 0.9)),
    "Adam-maximize": partial(torch.optim.Adam, lr=0.01, maximize=True),
    "Adam-fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_hypergradient_is_that_of_the_unrolled_step(name, mode):
    decays = "weight_decay" in OPTIMIZERS[name].keywords  # a ridge would be a second decay
    penalty = Huber(0.3, delta=0.5) if decays else ElasticNet(0.3, l1_ratio=0.3)
    assert_slopes_agree(*measured([(penalty, mode)], OPTIMIZERS[name]))


@pytest.mark.parametrize("case", PENALTIES, ids=lambda case: case.name)
@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
def test_each_penalty_has_its_hypergradient(case, mode):
    if mode == "prox" and not case.is_proximal:
        pytest.skip("no proximal operator")
    assert_slopes_agree(*measured([(case.penalty, mode)], OPTIMIZERS["Adam"]))


def test_what_acts_later_is_differentiated_through():
    penalties = [(L2(0.5), "decoupled"), (L1(1.0), "prox"), (GroupLasso(0.5), "prox")]
    assert_slopes_agree(*measured(penalties, OPTIMIZERS["Adam"]))


@pytest.mark.parametrize("name", ["SGD-momentum", "Adam"])
@pytest.mark.parametrize(
    "penalties",
    [
        [(L2(0.5), "decoupled"), (ElasticNet(0.5, l1_ratio=0.5), "decoupled")],
        [(L2(0.5), "decoupled"), (L2(0.7), "grad")],
        [(L2(0.5), "grad"), (L2(0.7), "decoupled"), (L1(0.5), "prox")],
    ],
    ids=str,
)
def test_so_is_what_acts_before_the_update(name, penalties):
    assert_slopes_agree(*measured(penalties, OPTIMIZERS[name]))


def test_a_first_step_with_dampening_takes_the_whole_gradient():
    assert_slopes_agree(*measured([(L2(0.5), "grad")], OPTIMIZERS["SGD-dampening"], steps=1))


def test_a_weight_that_never_had_a_gradient_responds_as_adam_would():
    direction = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)

    def stepped(h):
        weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        weight.grad = torch.tensor([0.0, 0.0, 1e-3], dtype=torch.float64) + h * direction
        optimizer = torch.optim.Adam([weight], lr=0.01)
        (update,) = updates_of(optimizer)
        optimizer.step()
        return weight.detach(), update.response(weight.detach(), direction)

    h = 1e-13  # small next to Adam's eps
    assert_close(stepped(0.0)[1], (stepped(h)[0] - stepped(-h)[0]) / (2 * h), 1e-4)
