"""Under GradScaler a penalty counts once, unscaled, and not at all in a step that is skipped."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_step_mode
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model, train, weights_of
from tests.optimizers import each_fused, each_optimizer
from tests.unit.training import PENALTY, run, set_gradients, sgd
from torchreg import L1, L2, Regularizer

# It keeps its scale and its flags in float32, so a step size made of them is no closer than that, even for float64.


@each_fused
@each_step_mode
def test_a_fused_optimizer_under_a_scaler_is_the_unscaled_run(make_optimizer, mode):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    assert_close(run(mode, make_optimizer, scaler=scaler), run(mode, make_optimizer), tolerance=1e-6)
    assert scaler.get_scale() == 2.0**14


@each_optimizer
@each_step_mode
def test_an_optimizer_under_a_scaler_is_the_unscaled_run(make_optimizer, mode):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    assert_close(run(mode, make_optimizer, scaler=scaler), run(mode, make_optimizer), tolerance=1e-6)


@each_fused
@each_step_mode
def test_clipping_after_unscale_is_the_clipped_unscaled_run(make_optimizer, mode):
    results = []
    for enabled in (True, False):
        model = make_model()
        optimizer = make_optimizer(model.parameters())
        Regularizer(model, PENALTY, mode=mode).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled)
        x, y = make_data()
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale(F.mse_loss(model(x), y)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        results.append(weights_of(model))
    assert_close(*results, tolerance=1e-6)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize("infinite", [torch.inf, torch.nan], ids=str)
@each_step_mode
def test_a_step_skipped_for_infinite_gradients_leaves_the_weights_alone(mode, infinite, fused):
    model = make_model(dtype=torch.float32)
    optimizer = sgd(model, fused=fused)
    Regularizer(model, L1(0.5) + L2(0.5), mode=mode).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights_of(model)
    for value in (infinite, 1.0):
        scaler.scale(model(torch.ones(1, 6)).sum()).backward()  # the scaler must have scaled something
        set_gradients(model, value)
        scaler.step(optimizer)
        scaler.update()
        if value is infinite:
            assert_bit_equal(weights_of(model), before)
    assert_differs(weights_of(model), before)


@each_step_mode
def test_a_skipped_step_leaves_no_trace_in_the_moments(mode):
    results = []
    for bad_step in (True, False):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0, fused=True)
        Regularizer(model, PENALTY, mode=mode).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_factor=1.0 + 1e-6)
        train(model, optimizer, 2, scaler=scaler)
        if bad_step:
            scaler.scale(model(make_data()[0]).sum()).backward()
            set_gradients(model, torch.inf)
            scaler.step(optimizer)
            scaler.update(new_scale=4.0)
        results.append(train(model, optimizer, 2, scaler=scaler))
    assert_bit_equal(*results)
