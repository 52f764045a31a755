"""The forms of decoupled decay: L1, towards the start, cautious; also of complex weights and under the base's flags."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from tests.optimizers import COUPLINGS, each_coupling, each_decoupled, each_decoupled_or_made, each_form
from tests.unit.training import a_weight, one_step, step, weights
from torchreg.optim import SGDW

# -- what each does -----------------------------------------------------------------------------------------------


@each_decoupled_or_made
def test_l1_leaves_exact_zeros_and_takes_the_same_from_all_others(ours, base, options):
    w = weights(1.0, -1.0, 0.05, -0.05, 0.0)
    optimizer = ours([w], **options, weight_decay=0.1, coupling="constant", decay="L1")
    assert_close(step(optimizer, 0.0), torch.tensor([0.9, -0.9, 0, 0, 0], dtype=torch.float64))
    assert not w[2:].any()


@each_decoupled_or_made
def test_towards_the_start_the_distance_shrinks_and_l1_makes_it_zero(ours, base, options):
    start = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    away = torch.tensor([0.5, -0.05, 0.5], dtype=torch.float64)
    for decay, remaining in (("L2", 0.9 * away), ("L1", torch.tensor([0.4, 0.0, 0.4], dtype=torch.float64))):
        w = nn.Parameter(start.clone())
        optimizer = ours([w], **options, weight_decay=0.1, coupling="constant", decay=decay, towards="start")
        w.data.add_(away)
        assert_close(step(optimizer, 0.0), start + remaining)
    assert w[1].item() == start[1].item()


def test_a_group_that_is_added_later_decays_towards_its_own_start():
    first, second = a_weight(1.0), a_weight(2.0)
    optimizer = SGDW([first], lr=0.1, weight_decay=0.5, coupling="constant", towards="start")
    first.data.fill_(3.0)
    second.data.fill_(4.0)
    optimizer.add_param_group({"params": [second]})
    second.data.fill_(6.0)
    one_step(optimizer)
    assert_close([first.item(), second.item()], [2.0, 5.0])


@pytest.mark.parametrize("decay", ["L2", "L1"])
@pytest.mark.parametrize("maximize", [False, True])
def test_cautious_decay_acts_where_the_update_moves_the_same_way_and_nowhere_else(decay, maximize):
    w = weights(1.0, 1.0, -1.0, -1.0, 1.0)
    optimizer = SGDW([w], lr=0.1, weight_decay=1.0, decay=decay, cautious=True, maximize=maximize)
    sign = -1 if maximize else 1
    moved = torch.tensor([0.95, 1.05, -1.05, -0.95, 1.0], dtype=torch.float64)
    decays = torch.tensor([0.1, 0.0, 0.0, -0.1, 0.1], dtype=torch.float64)  # also where nothing moves
    gradient = sign * torch.tensor([0.5, -0.5, 0.5, -0.5, 0.0], dtype=torch.float64)
    assert_close(step(optimizer, gradient), moved - decays)


def test_cautious_decay_of_tiny_weights_of_half_precision_looks_at_their_signs():
    w = weights(1e-4, dtype=torch.float16)
    optimizer = SGDW([w], lr=1.0, weight_decay=0.5, cautious=True)
    assert_close(step(optimizer, -1e-4).double(), torch.tensor([2e-4]).double(), tolerance=1e-6)  # moves away: no decay


def test_cautious_thresholds_are_as_exact_as_the_weights():
    optimizer = SGDW([weights(1.0)], lr=1.0, weight_decay=0.1, decay="L1", cautious=True)
    assert_close(step(optimizer, 0.0), torch.tensor([0.9], dtype=torch.float64))


def test_weights_that_the_threshold_towards_the_start_leaves_alone_keep_every_bit():
    start, moved = torch.rand(1000) * 0.1, torch.rand(1000)
    w = nn.Parameter(start.clone())
    optimizer = SGDW([w], lr=1.0, weight_decay=0.1, decay="L1", towards="start", cautious=True)
    w.data.copy_(moved)
    ahead = (moved > start).float() * 0.1  # leads away from the start
    expected = moved + ahead
    assert_bit_equal(step(optimizer, -ahead)[moved > start], expected[moved > start])


@each_form
@each_coupling
def test_complex_weights_decay_by_their_magnitudes(form, coupling):
    start, w0 = np.array([1.0 + 1.0j, -2.0j, 0.01 + 0.01j]), np.array([2.0 + 1.0j, 1.0 - 2.0j, 0.02 + 0.0j])
    gradient = np.array([1.0 - 1.0j, -1.0 - 1.0j, 0.0])
    w = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = SGDW([w], lr=0.5, weight_decay=0.2, coupling=coupling, **form)
    w.data.copy_(torch.from_numpy(w0))
    amount = 0.2 * {"lr": 0.5, "corrected": 0.5}.get(coupling, 1.0)
    target = start if form.get("towards") == "start" else 0
    if form.get("cautious"):
        amount = amount * ((gradient * (w0 - target).conj()).real >= 0)
    moved = w0 - 0.5 * gradient
    if form.get("decay") == "L1":
        size = np.abs(moved - target)
        expected = target + (moved - target) * np.maximum(1 - amount / np.where(size == 0, np.inf, size), 0)
    else:
        expected = moved - amount * (w0 - target)
    w.grad = torch.from_numpy(gradient)
    optimizer.step()
    assert_close(w.detach(), torch.from_numpy(expected))


# -- flags --------------------------------------------------------------------------------------------------------


@each_decoupled_or_made
@each_form
def test_each_flag_of_the_base_is_taken(ours, base, options, form):
    for flag in {"capturable", "differentiable", "maximize"} & base([a_weight()]).defaults.keys():
        optimizer = ours([a_weight()], **options, **form, **{flag: True})
        assert optimizer.defaults[flag] is copy.deepcopy(optimizer).defaults[flag] is True


@each_decoupled
@each_form
def test_a_differentiable_step_has_the_derivatives_that_finite_differences_have(ours, base, options, form):
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    w = torch.tensor([1.53, -2.57, 0.71], dtype=torch.float64, requires_grad=True)

    def after(w, coupling):
        param = start.clone()
        optimizer = ours([param], **options, **form, coupling=coupling, weight_decay=0.07, differentiable=True)
        param.zero_().add_(w)  # now a function of w
        for value in (0.3, -0.4) if base is not torch.optim.Adamax else (0.3,):  # of whose steps torch derives one
            param.grad = torch.full_like(start, value)
            optimizer.step()
        return param.clone()

    for coupling in COUPLINGS:
        assert torch.autograd.gradcheck(partial(after, coupling=coupling), (w,))
