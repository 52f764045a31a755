"""What the decoupled optimizers have from their bases: moments, closures, hooks, scalers, arguments, errors."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.helpers import assert_bit_equal, assert_close, make_data, make_model, train, weights_of
from tests.optimizers import (
    COUPLINGS,
    KERNELS,
    each_couplings_share,
    each_decoupled,
    each_decoupled_or_made,
    each_form,
    each_kernel,
    undecayed,
)
from tests.unit.training import a_weight, one_step
from torchreg import L1, L2, Regularizer
from torchreg.optim import SGDW, AdamCPR, AdamW, DecoupledDecay, ProxAdam, ProxSGD, decoupled
from torchreg.schedules import cosine

# -- what the decay leaves alone ----------------------------------------------------------------------------------


@each_kernel
@each_form
def test_the_decay_enters_neither_the_gradient_nor_the_moments(ours, base, options, form):
    # Not "the gradient stays as it is": foreach SGD with Nesterov momentum writes into it by itself.
    gradients, states = [], []
    for kind in (partial(ours, weight_decay=0.1, **form), partial(undecayed, base)):
        optimizer = kind([w := a_weight()], **options)
        for value in (1.0, 2.0):
            one_step(optimizer, value)
        gradients.append(w.grad)
        averages_weights = base is torch.optim.ASGD
        states.append({k: v for k, v in optimizer.state[w].items() if k != "start" and not averages_weights})
    assert_bit_equal(*gradients)
    assert_bit_equal(*states)


def test_the_groups_show_their_decay_even_after_a_step_that_raised():
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.4)
    w.grad = torch.ones(1, dtype=torch.float64).to_sparse()
    optimizer.param_groups[0]["nesterov"] = "yes"  # makes the base's own step fail
    optimizer.param_groups[0]["momentum"] = "no"
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.4


@each_decoupled
@pytest.mark.parametrize("mode", ["grad", "decoupled"])
def test_weights_that_would_decay_twice_are_refused(ours, base, options, mode):
    model = make_model()
    optimizer = ours(model.parameters(), **options, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"\A[^\n]*twice[^\n]*\Z"):
        Regularizer(model, L2(0.1), mode=mode).attach(optimizer)
    undecayed(ours, model.parameters(), **options)


# -- faults that others' decoupled optimizers were seen to have ---------------------------------------------------


@each_decoupled_or_made
def test_a_group_may_be_added_while_a_scheduler_is_at_work(ours, base, options):
    for coupling in COUPLINGS:
        optimizer = ours([a_weight()], **options, weight_decay=0.1, coupling=coupling)
        scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
        one_step(optimizer)
        scheduler.step()
        optimizer.add_param_group({"params": [added := a_weight()], "lr": 0.2})
        one_step(optimizer)  # not: KeyError, initial_lr
        assert_close(added.item(), 1 - 0.1 * {"lr": 0.2, "corrected": 0.2}.get(coupling, 1.0))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_sgdw_shrinks_weights_in_proportion_instead_of_subtracting_a_constant(coupling):
    weights = nn.Parameter(torch.tensor([1.0, 10.0, -100.0], dtype=torch.float64))
    one_step(SGDW([weights], lr=0.1, weight_decay=0.1, coupling=coupling))
    assert_close(weights.detach() / weights[0].item(), torch.tensor([1.0, 10.0, -100.0], dtype=torch.float64))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_first_step_of_adamw_has_the_size_of_adams_whatever_the_decay(coupling):
    weights = nn.Parameter(torch.tensor([1.0, 10.0], dtype=torch.float64))
    optimizer = AdamW([weights], lr=0.1, weight_decay=0.1, coupling=coupling)
    weights.grad = torch.tensor([3.0, -0.001], dtype=torch.float64)
    optimizer.step()
    kept = 1 - 0.1 * {"lr": 0.1, "corrected": 0.1}.get(coupling, 1.0)
    assert_close(weights.detach(), torch.tensor([kept - 0.1, 10 * kept + 0.1], dtype=torch.float64), tolerance=1e-5)


# -- closures, hooks, scalers -------------------------------------------------------------------------------------


@each_decoupled_or_made
@each_form
def test_a_closure_changes_nothing_and_its_loss_is_returned(ours, base, options, form):
    results = []
    for closure in (True, False):
        model = make_model()
        optimizer = ours(each_couplings_share(model), **options, **form, weight_decay=0.1)
        results.append(train(model, optimizer, steps=5, closure=closure))
    assert_bit_equal(*results)
    assert optimizer.step(lambda: 3.5) == 3.5
    assert optimizer.step() is None


@each_decoupled_or_made
@each_form
def test_step_hooks_fire_once_per_step(ours, base, options, form):
    base([a_weight()], **options)  # so that the base's step is wrapped in a firing of hooks itself
    fired = []
    optimizer = ours([w := a_weight()], **options, **form, weight_decay=0.1)
    with torch.no_grad():
        w.add_(1)
    optimizer.register_step_pre_hook(lambda *_: fired.append(("pre", w.item())))
    optimizer.register_step_post_hook(lambda *_: fired.append(("post", w.item())))
    one_step(optimizer)
    assert fired == [("pre", 2.0), ("post", w.item())]
    assert w.item() < 2.0


each_scaled = pytest.mark.parametrize(
    ("ours", "base", "options"),
    [row for row in KERNELS.values() if not row[2].get("foreach")],
    ids=[name for name, row in KERNELS.items() if not row[2].get("foreach")],
)


@each_scaled
@each_form
def test_a_scaler_changes_nothing_but_skips_infinite_steps(ours, base, options, form):
    results = []
    for scaled in (True, False):
        model = make_model(dtype=torch.float32)
        optimizer = ours(each_couplings_share(model), **options, **form, weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        train(model, optimizer, steps=3, scaler=scaler)
        if scaled:
            before = weights_of(model)
            scaler.scale(model(make_data(torch.float32)[0]).sum() * torch.inf).backward()
            scaler.step(optimizer)
            scaler.update()
            assert_bit_equal(weights_of(model), before)
        results.append(train(model, optimizer, steps=3, scaler=scaler))
    assert_close(*results, tolerance=1e-5)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_step_that_the_scaler_skips_counts_for_the_schedule_of_a_fused_optimizer_only(fused):
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.1, decay_schedule=cosine(steps=10), fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(w.sum() * torch.inf).backward()
    scaler.step(optimizer)
    assert w.item() == 1.0
    assert optimizer.param_groups[0]["decay_steps"] == int(fused)  # to know better would be to wait for the device


# -- the mixin ----------------------------------------------------------------------------------------------------


def test_the_mixin_decouples_another_optimizer():
    class AdadeltaW(DecoupledDecay, torch.optim.Adadelta):
        pass

    w = a_weight()
    optimizer = AdadeltaW([w], lr=0.1, weight_decay=0.5)
    one_step(optimizer)
    assert_close(w.item(), 0.95)
    assert optimizer.state[w]["square_avg"].item() == 0


@each_decoupled_or_made
def test_it_is_its_base_to_isinstance_and_takes_its_arguments(ours, base, options):
    optimizer = ours(make_model().named_parameters(), **options, maximize=True)
    assert isinstance(optimizer, base)
    assert optimizer.defaults.items() >= options.items()


@each_decoupled
@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -0.1}], ids=str)
def test_what_the_base_refuses_is_refused_in_its_words(ours, base, options, bad):
    words = []
    for kind in (ours, base):
        with pytest.raises(ValueError, match="Invalid") as error:
            kind([a_weight()], **{**options, **bad})
        words.append(str(error.value))
    assert words[0] == words[1]


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (AdamW, {"select": lambda place: True}),
        (AdamW, {"layer_decay": 0.5}),
        (AdamW, {"decay_schedule": cosine(9)}),
        (AdamW, {"compile": True}),
        (AdamCPR, {"select": lambda place: True}),
        (partial(SGDW, lr=0.1), {"decay_schedule": cosine(9)}),
        (partial(ProxSGD, penalty=L1(0.1), lr=0.1), {"penalty": L1(9.0)}),
        (partial(ProxAdam, penalty=L1(0.1)), {"penalty": L1(9.0)}),
        (partial(ProxAdam, penalty=L1(0.1)), {"compile": True}),
        (decoupled(torch.optim.Adadelta), {"decay_schedule": cosine(9)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_an_argument_for_all_groups_is_refused_in_one(make, option):
    """It would be in the group and do nothing."""
    name = next(iter(option))
    optimizer = make([weight := a_weight((2, 2))])
    for attempt in (
        lambda: make([{"params": [a_weight((2, 2))], **option}]),
        lambda: optimizer.add_param_group({"params": [a_weight((2, 2))], **option}),
    ):
        with pytest.raises(
            ValueError, match=rf"\A\w+: {name} must be the same for all groups, got a group with its own"
        ):
            attempt()
    assert [group["params"] for group in optimizer.param_groups] == [[weight]]
