"""Decay decoupled from the gradient: SGDW and AdamW against torch's optimizers and against NumPy."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tests.cases import DECOUPLED, each_coupling, each_decoupled, each_implementation
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model, train, weights_of
from torchreg.optim import SGDW, AdamW, DecoupledDecay

LR, DECAY, STEPS = 0.1, 0.02, 30
CURVATURE = np.diag([1.0, 2.0, 3.0]) + 0.1
START = np.array([1.0, -2.0, 0.5])


def one_step(optimizer: torch.optim.Optimizer, gradient: float = 0.0) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, gradient)
    optimizer.step()


def a_weight(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


# -- against torch's own optimizers -------------------------------------------------------------------------------


@each_decoupled
@each_implementation
@each_coupling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_decay_it_is_its_base_to_the_bit(ours, base, options, implementation, coupling, dtype):
    results = []
    for kind, extra in ((ours, {"coupling": coupling}), (base, {})):
        model = make_model(dtype=dtype)
        optimizer = kind(model.parameters(), **options, **implementation, **extra, weight_decay=0)
        results.append(train(model, optimizer, steps=200))
    assert_bit_equal(*results)


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_coupled_to_the_learning_rate_is_torchs_to_the_bit(implementation, dtype, amsgrad):
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        model = make_model(dtype=dtype)
        optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, amsgrad=amsgrad, **implementation)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for _ in range(20):
            train(model, optimizer, steps=1)
            scheduler.step()
        results.append(weights_of(model))
    assert_bit_equal(*results)


@each_implementation
def test_the_implementations_agree(implementation):
    results = []
    for options in (implementation, {"foreach": False}):
        for coupling in ("lr", "schedule", "independent"):
            model = make_model()
            optimizer = SGDW(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, coupling=coupling, **options)
            results.append(train(model, optimizer, steps=20))
    assert_close(results[:3], results[3:])


@each_decoupled
def test_a_groups_of_other_coupling_does_not_change_the_rest(ours, base, options):
    results = []
    for coupling in ("lr", "independent"):
        model = make_model()
        other = {"params": [a_weight()], "coupling": coupling}
        optimizer = ours([{"params": list(model.parameters())}, other], **options, weight_decay=0.1)
        results.append(train(model, optimizer, steps=20))
    assert_close(*results)


# -- against NumPy ------------------------------------------------------------------------------------------------


def factor(coupling: str, lr: float) -> float:
    return {"lr": 1 - lr * DECAY, "schedule": 1 - lr / LR * DECAY, "independent": 1 - DECAY}[coupling]


def numpy_sgdw(coupling: str, rates: list[float]) -> np.ndarray:
    w, momentum = START.copy(), np.zeros(3)
    for lr in rates:
        momentum = 0.9 * momentum + CURVATURE @ w
        w = factor(coupling, lr) * w - lr * momentum
    return w


def numpy_adamw(coupling: str, rates: list[float]) -> np.ndarray:
    w, first, second = START.copy(), np.zeros(3), np.zeros(3)
    for step, lr in enumerate(rates, start=1):
        gradient = CURVATURE @ w
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        w = factor(coupling, lr) * w - lr * update
    return w


@each_coupling
@each_implementation
@pytest.mark.parametrize(
    ("kind", "options", "reference"), [(SGDW, {"momentum": 0.9}, numpy_sgdw), (AdamW, {}, numpy_adamw)], ids=str
)
def test_each_coupling_is_its_formula_under_a_schedule(kind, options, reference, coupling, implementation):
    w = nn.Parameter(torch.from_numpy(START.copy()))
    optimizer = kind([w], lr=LR, weight_decay=DECAY, coupling=coupling, **options, **implementation)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        w.grad = torch.from_numpy(CURVATURE) @ w.detach()
        optimizer.step()
        scheduler.step()
    assert_close(w.detach(), torch.from_numpy(reference(coupling, rates)))


@pytest.mark.parametrize(("coupling", "remaining"), [("lr", 0.8), ("schedule", 0.6), ("independent", 0.6)])
def test_only_coupling_lr_depends_on_the_learning_rate(coupling, remaining):
    w = a_weight()
    one_step(SGDW([w], lr=0.5, weight_decay=0.4, coupling=coupling))
    assert_close(w.detach(), torch.tensor([remaining], dtype=torch.float64))


@each_coupling
def test_a_learning_rate_may_be_a_tensor(coupling):
    results = []
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        model = make_model()
        optimizer = SGDW(model.parameters(), lr=lr, weight_decay=0.1, coupling=coupling)
        train(model, optimizer, steps=2)
        if isinstance(lr, Tensor):
            lr.div_(2)  # in place, as for a compiled or captured step
        else:
            optimizer.param_groups[0]["lr"] = lr / 2
        results.append(train(model, optimizer, steps=2))
    assert_close(*results)


# -- groups -------------------------------------------------------------------------------------------------------


def test_each_group_has_its_own_decay_and_coupling():
    first, second, third = a_weight(), a_weight(), a_weight()
    groups = [
        {"params": [first], "weight_decay": 0.5},
        {"params": [second], "coupling": "independent"},
        {"params": [third], "weight_decay": 0},
    ]
    one_step(SGDW(groups, lr=0.1, weight_decay=0.2))
    assert_close([w.item() for w in (first, second, third)], [0.95, 0.8, 1.0])


@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_a_group_added_under_a_scheduler_has_an_initial_rate_of_its_own(kind):
    first, second = a_weight(), a_weight()
    optimizer = kind([first], lr=0.1, weight_decay=0.4, coupling="schedule")
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    one_step(optimizer)
    scheduler.step()
    optimizer.add_param_group({"params": [second], "lr": 0.2})
    one_step(optimizer)
    assert_close([first.item(), second.item()], [0.6 * 0.8, 0.6])


def test_the_initial_rate_is_the_schedulers_where_there_is_one():
    w = a_weight()
    optimizer = SGDW([w], lr=0.1, weight_decay=0.4, coupling="schedule")
    optimizer.param_groups[0]["lr"] = 0.2
    one_step(optimizer)
    assert_close(w.item(), 1 - 2 * 0.4)
    LambdaLR(optimizer, lambda step: 1.0)
    one_step(optimizer)
    assert_close(w.item(), (1 - 2 * 0.4) * (1 - 0.4))


@pytest.mark.parametrize("options", [{"coupling": "linear"}, {"coupling": None}], ids=str)
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_an_unknown_coupling_is_refused(kind, options):
    message = f"{kind.__name__}: coupling must be one of lr, schedule, independent, got {options['coupling']!r}"
    with pytest.raises(ValueError, match=message):
        kind([a_weight()], lr=0.1, **options)


def test_schedule_coupling_refuses_an_initial_rate_of_zero():
    with pytest.raises(ValueError, match="'schedule' divides by the initial lr, which must be > 0, got 0"):
        SGDW([a_weight()], lr=0.0, coupling="schedule")
    SGDW([a_weight()], lr=0.0, coupling="lr")


def test_independent_coupling_refuses_a_decay_that_would_flip_signs():
    with pytest.raises(ValueError, match=r"weight_decay must be at most 1 with coupling 'independent'.*got 1.5"):
        AdamW([a_weight()], weight_decay=1.5, coupling="independent")
    AdamW([a_weight()], weight_decay=1.5, coupling="lr")


@pytest.mark.parametrize("bad", [{"coupling": "linear"}, {"coupling": "schedule", "lr": 0.0}], ids=str)
def test_a_group_that_is_refused_is_not_left_behind(bad):
    optimizer = SGDW([a_weight()], lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="coupling"):
        optimizer.add_param_group({"params": [a_weight()], **bad})
    assert len(optimizer.param_groups) == 1


def test_the_schedule_may_begin_at_zero():
    w = a_weight()
    optimizer = SGDW([w], lr=0.1, weight_decay=0.4, coupling="schedule")
    scheduler = LambdaLR(optimizer, lambda step: step / 2)  # a warm-up
    for expected in (1.0, 0.8, 0.48):
        one_step(optimizer)
        assert_close(w.item(), expected)
        scheduler.step()


# -- what is left alone -------------------------------------------------------------------------------------------


@each_decoupled
@each_implementation
@each_coupling
def test_the_decay_never_enters_the_gradient(ours, base, options, implementation, coupling):
    # Not "the gradient stays as it is": foreach SGD with Nesterov momentum writes into it by itself.
    gradients = []
    for kind, extra in ((ours, {"coupling": coupling, "weight_decay": 0.1}), (base, {"weight_decay": 0})):
        optimizer = kind([w := a_weight()], **options, **implementation, **extra)
        for value in (1.0, 2.0):
            one_step(optimizer, value)
        gradients.append(w.grad)
    assert_bit_equal(*gradients)


@each_decoupled
@each_coupling
def test_weights_without_a_gradient_do_not_decay(ours, base, options, coupling):
    still, moving = a_weight(), a_weight()
    optimizer = ours([still, moving], **options, coupling=coupling, weight_decay=0.1)
    moving.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()
    assert still.item() == 1.0
    assert moving.item() < 1.0


@each_coupling
def test_the_moments_never_see_the_decay(coupling):
    w = a_weight()
    optimizer = AdamW([w], weight_decay=0.1, coupling=coupling)
    one_step(optimizer)
    assert optimizer.state[w]["exp_avg"].item() == 0


def test_the_groups_show_their_decay_even_after_a_step_that_raised():
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.4)
    w.grad = torch.ones(1, dtype=torch.float64).to_sparse()
    optimizer.param_groups[0]["nesterov"] = "yes"  # makes the base's own step fail
    optimizer.param_groups[0]["momentum"] = "no"
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.4


# -- closures, hooks, scalers -------------------------------------------------------------------------------------


@each_decoupled
@each_coupling
def test_a_closure_changes_nothing_and_its_loss_is_returned(ours, base, options, coupling):
    results = []
    for closure in (True, False):
        model = make_model()
        optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1)
        results.append(train(model, optimizer, steps=5, closure=closure))
    assert_bit_equal(*results)
    assert optimizer.step(lambda: 3.5) == 3.5
    assert optimizer.step() is None


@each_decoupled
@each_coupling
def test_step_hooks_fire_once_per_step(ours, base, options, coupling):
    base([a_weight()], **options)  # so that the base's step is wrapped in a firing of hooks itself
    fired = []
    optimizer = ours([w := a_weight()], **options, coupling=coupling, weight_decay=0.1)
    optimizer.register_step_pre_hook(lambda *_: fired.append(("pre", w.item())))
    optimizer.register_step_post_hook(lambda *_: fired.append(("post", w.item())))
    one_step(optimizer)
    assert fired == [("pre", 1.0), ("post", w.item())]
    assert w.item() < 1.0


@each_decoupled
@each_coupling
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_scaler_changes_nothing_but_skips_infinite_steps(ours, base, options, coupling, fused):
    results = []
    for scaled in (True, False):
        model = make_model(dtype=torch.float32)
        optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1, fused=fused)
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


# -- saving and copying -------------------------------------------------------------------------------------------


@each_decoupled
@each_coupling
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_alike_and_apart(ours, base, options, coupling, duplicate):
    model = make_model()
    optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1)
    train(model, optimizer, steps=3)
    twin, its_optimizer = duplicate((model, optimizer))
    its_optimizer.add_param_group({"params": [a_weight()]})  # the default coupling is copied, too
    assert its_optimizer.param_groups[1]["coupling"] == coupling
    before = weights_of(model)
    after = train(twin, its_optimizer, steps=3)
    assert_bit_equal(weights_of(model), before)
    assert_bit_equal(train(model, optimizer, steps=3), after)


@each_decoupled
@each_coupling
def test_training_resumes_from_a_file_under_a_schedule(ours, base, options, coupling):
    def setting():
        model = make_model()
        optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1)
        return model, optimizer, LambdaLR(optimizer, lambda step: 0.9**step)

    def go(model, optimizer, scheduler):
        for _ in range(3):
            train(model, optimizer, steps=1)
            scheduler.step()
        return weights_of(model)

    halfway, resumed = setting(), setting()
    go(*halfway)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in halfway], file)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert_bit_equal(go(*resumed), go(*halfway))


@each_implementation
def test_a_checkpoint_of_torchs_adamw_goes_on_bit_for_bit(implementation):
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        model = make_model()
        first = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, **implementation)
        train(model, first, steps=5)
        second = kind(model.parameters())
        second.load_state_dict(first.state_dict())
        results.append(train(model, second, steps=5))
    assert_bit_equal(*results)


@each_coupling
def test_a_checkpoint_goes_into_its_base_class_too(coupling):
    model = make_model()
    ours = SGDW(model.parameters(), lr=0.1, momentum=0.9, coupling=coupling)
    train(model, ours, steps=2)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.load_state_dict(ours.state_dict())
    before = weights_of(model)
    assert_differs(train(model, plain, steps=1), before)


# -- the mixin ----------------------------------------------------------------------------------------------------


def test_the_mixin_decouples_another_optimizer():
    class RMSpropW(DecoupledDecay, torch.optim.RMSprop):
        pass

    w = a_weight()
    optimizer = RMSpropW([w], lr=0.1, weight_decay=0.5)
    one_step(optimizer)
    assert_close(w.item(), 0.95)
    assert optimizer.state[w]["square_avg"].item() == 0


@each_decoupled
def test_it_is_its_base_to_isinstance_and_takes_its_arguments(ours, base, options):
    optimizer = ours(make_model().named_parameters(), **options, maximize=True)
    assert isinstance(optimizer, base)
    assert optimizer.defaults.items() >= options.items()
    assert set(DECOUPLED) >= {"SGDW", "AdamW"}


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"weight_decay": -0.1}], ids=str)
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_what_the_base_refuses_is_refused(kind, options):
    with pytest.raises(ValueError, match="Invalid"):
        kind([a_weight()], **options)
