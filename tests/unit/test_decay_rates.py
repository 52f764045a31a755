"""How much a step decays: under schedules, at rates that are tensors, with and without gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_close
from tests.optimizers import COUPLINGS, each_coupling, each_decoupled_or_made, each_form, each_kernel, undecayed
from tests.unit.training import a_weight, one_step, step, weights
from torchreg.optim import SGDW, AdamW, decoupled
from torchreg.schedules import linear

# -- the schedule -------------------------------------------------------------------------------------------------


@each_decoupled_or_made
def test_the_schedule_gets_the_number_of_steps_made_and_scales_each_groups_decay(ours, base, options):
    first, second = a_weight(), a_weight()
    optimizer = ours([first], **options, weight_decay=0.5, coupling="constant", decay_schedule=linear(steps=4))
    one_step(optimizer)
    optimizer.add_param_group({"params": [second], "weight_decay": 0.2})  # joins at the same step
    one_step(optimizer)
    assert_close([first.item(), second.item()], [0.5 * (1 - 0.75 * 0.5), 1 - 0.75 * 0.2])
    assert [group["decay_steps"] for group in optimizer.param_groups] == [2, 2]


@each_form
@each_coupling
def test_a_scheduled_scale_may_be_a_tensor(form, coupling):
    results = []
    for as_scale in (float, partial(torch.tensor, dtype=torch.float64)):
        for kind in (SGDW, AdamW):
            optimizer = kind(
                [w := weights(1.0, -2.0)],
                lr=0.1,
                weight_decay=0.1,
                coupling=coupling,
                **form,
                decay_schedule=lambda t, as_scale=as_scale: as_scale(1 / (t + 1)),
            )
            w.data.add_(1)
            for gradient in (1.0, -3.0):
                step(optimizer, gradient)
            results.append(w.detach())
    assert_close(results[:2], results[2:])


@pytest.mark.parametrize("nonsense", [-0.1, float("nan"), float("inf"), None, "half", torch.ones(2)], ids=str)
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_a_schedule_that_returns_nonsense_is_refused_before_anything_has_changed(kind, nonsense, closure):
    groups = [{"params": [w := a_weight()]}, {"params": [a_weight()]}]
    optimizer = kind(groups, lr=0.1, weight_decay=0.1, decay_schedule=lambda t: 1.0 if t < 2 else nonsense)
    optimizer.param_groups[1]["decay_steps"] = 1
    one_step(optimizer, 1.0)
    before, state = w.item(), str(optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"\A{kind.__name__}: decay_schedule[^\n]*finite number >= 0[^\n]*\Z"):
        optimizer.step((lambda: 0.0) if closure else None)
    assert w.item() == before
    assert str(optimizer.state_dict()) == state


# -- rates that are tensors ---------------------------------------------------------------------------------------


each_rate = pytest.mark.parametrize("rate", [float, partial(torch.tensor, dtype=torch.float64)], ids=["", "tensor"])


@each_form
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_a_learning_rate_may_be_a_tensor_of_one_element_for_weights_of_every_shape(kind, form, shape):
    results = []
    for lr in (0.125, torch.full(shape, 0.125)):
        groups = [
            {"params": [nn.Parameter(torch.full(size, 2.0)) for size in ((), (1,), (2, 3), (0,))], "coupling": coupling}
            for coupling in COUPLINGS
        ]
        optimizer = kind(groups, lr=lr, **form, weight_decay=0.25)
        params = [p for group in groups for p in group["params"]]
        for p in params:
            p.data.add_(1)
        for gradient in (1.0, -1.0):
            one_step(optimizer, gradient)
        results.append([p.detach() for p in params])
    assert_close(*results, tolerance=1e-6)


@each_rate
def test_a_gradient_that_comes_with_a_later_evaluation_of_the_closure_is_no_error(rate):
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            loss = closure()
            super().step()
            return loss

    first, second = a_weight(), a_weight()
    optimizer = decoupled(Twice)([first, second], lr=rate(0.1), weight_decay=0.5, cautious=True)
    evaluations = []

    def closure():
        evaluations.append(None)
        first.grad = torch.ones_like(first)
        second.grad = torch.ones_like(second) if len(evaluations) > 1 else None
        return 0.0

    optimizer.step(closure)
    assert_close([first.item(), second.item()], [0.85, 0.9])


# -- every combination --------------------------------------------------------------------------------------------


def after_one_step(twin, base_step, w, start, amount, decay="L2", towards="zero", cautious=False):
    """The formulas of the docstring, around a step of torch's own optimizer on a twin."""
    target = start if towards == "start" else torch.zeros_like(start)
    before_update = target + (w - target) * (1 - amount) if decay == "L2" and not cautious else w
    twin.data.copy_(before_update)
    base_step()
    moved = twin.detach().clone()
    if decay == "L2" and not cautious:
        return moved
    agrees = (w - moved) * (w - target) >= 0 if cautious else torch.ones_like(w, dtype=torch.bool)
    nearer = moved - amount * (w - target) if decay == "L2" else target + F.softshrink(moved - target, amount)
    return torch.where(agrees, nearer, moved)


@each_kernel
@each_form
@each_rate
def test_groups_with_and_without_decay_or_gradients_step_alike_at_any_rate(ours, base, options, form, rate):
    lr = options["lr"]
    with_rate = {**options, "lr": rate(lr)}
    try:
        undecayed(base, [a_weight()], **with_rate)
    except ValueError as error:
        pytest.skip(f"torch's own refuses it: {error}")
    start = torch.tensor([1.0, -1.0, 0.5, -0.02], dtype=torch.float64)
    kinds = [  # the weight decay, the coupling, the share that a step takes, whether there is a gradient
        (0.05, "lr", 0.05 * lr, True),
        (0.0, "lr", 0.0, True),
        (0.05, "independent", 0.05, True),
        (torch.tensor(0.05, dtype=torch.float64), "constant", 0.05, True),
        (0.05, "corrected", 0.05 * lr, False),
        (0.0, "constant", 0.0, False),
    ]
    for scaled in (False, True) if options.get("fused") else (False,):
        weights, twins = ([nn.Parameter(start.clone()) for _ in kinds] for _ in range(2))
        groups = [{"params": [w], "weight_decay": k[0], "coupling": k[1]} for w, k in zip(weights, kinds, strict=True)]
        optimizer = ours(groups, **with_rate, **form)
        bases = [undecayed(base, [twin], **options) for twin in twins]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        expected = [start.clone() + 0.25 for _ in kinds]
        for w in weights:
            w.data.add_(0.25)
        for t in range(3):
            gradient = torch.tensor([0.5, -0.25, -0.5, 0.125], dtype=torch.float64) * (1 if t < 2 else -2)
            for w, (*_, has_gradient) in zip(weights, kinds, strict=True):
                w.grad = None
                if has_gradient:
                    scaler.scale((w * gradient).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            for i, (_, _, amount, has_gradient) in enumerate(kinds):
                if has_gradient:
                    twins[i].grad = gradient.clone()
                    expected[i] = after_one_step(twins[i], bases[i].step, expected[i], start, amount, **form)
        tolerance = 1e-2 if base is torch.optim.Adafactor else 1e-6  # whose step depends on w before the decay
        assert_close([w.detach() for w in weights], expected, tolerance)
