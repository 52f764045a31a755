"""Optimizers whose steps are not what a mode assumes are refused when a regularizer is attached; others go on."""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tests.helpers import make_data, make_model, weights_of
from tests.unit.other_optimizers import (
    Averaging,
    Counting,
    CountingInGroups,
    Estimated,
    Evaluated,
    EveryThird,
    FewerAndFewer,
    FlatBuffer,
    FromTheStart,
    Lookahead,
    Master,
    NeedsClosure,
    Noisy,
    OwnGradients,
    OwnRate,
    Plain,
    Restoring,
    RoundedAway,
    SecondOrder,
    Sharpness,
    Tiny,
    TrainEval,
    TwoSteps,
    UnitNorm,
)
from tests.unit.training import set_gradients
from torchreg import L1, L2, DropoutSchedule, Regularizer, linear
from torchreg.optim import decoupled

MODES = ("grad", "decoupled", "prox")
SERVED = [
    (make, mode)
    for make in (Plain, Counting, Noisy, NeedsClosure, torch.optim.Adadelta, torch.optim.Adafactor, torch.optim.RAdam)
    for mode in MODES
] + [
    *((make, "grad") for make in (Averaging, FromTheStart, Master, Estimated, OwnRate, Tiny, TrainEval, Sharpness)),
    *((Evaluated, mode) for mode in ("grad", "decoupled")),
    (Sharpness, "prox"),
    (RoundedAway, "grad"),
    (SecondOrder, "prox"),
    (Lookahead, "decoupled"),
    (Lookahead, "grad"),
]
REFUSED = [
    *((make, mode, "does not keep such a change") for make in (FromTheStart, Master) for mode in ("decoupled", "prox")),
    *((Averaging, mode, "does not keep such a change") for mode in ("decoupled", "prox")),
    *((TrainEval, mode, "two versions of the weights") for mode in ("decoupled", "prox")),
    (Lookahead, "prox", "does not keep such a change"),
    *((make, "decoupled", "does not keep such a change") for make in (Restoring, Sharpness)),
    *((make, mode, "does not keep") for make in (FewerAndFewer, UnitNorm) for mode in ("decoupled", "prox")),
    (Evaluated, "prox", "does not keep such a change"),
    *((SecondOrder, mode, "between the gradients and their derivatives") for mode in ("grad", "decoupled")),
    *((OwnRate, mode, "they do not depend on it") for mode in ("decoupled", "prox")),
    *((Tiny, mode, "they are less than 2e-05 of it") for mode in ("decoupled", "prox")),
    *((EveryThird, mode, "only some calls of EveryThird") for mode in MODES),
    *((OwnGradients, mode, "24 calls of OwnGradients.step.. do not move weights by their .grad") for mode in MODES),
    *((TwoSteps, mode, "attach to its optimizer.base") for mode in MODES),
]


@pytest.mark.parametrize(("make", "mode"), SERVED)
def test_an_optimizer_that_steps_as_assumed_is_served_as_without_the_check(make, mode):
    model = make_model()
    optimizer = make(model.parameters(), lr=0.01)
    random = torch.random.get_rng_state()
    before = weights_of(model), copy.deepcopy(optimizer.state_dict())
    regularizer = Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    regularizer.remove()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(now, then) for now, then in zip(weights_of(model).values(), before[0].values(), strict=True))
    assert optimizer.state_dict() == before[1]
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize(("make", "mode", "message"), REFUSED)
def test_an_optimizer_that_steps_otherwise_is_refused_with_advice(make, mode, message):
    model = make_model()
    optimizer = make(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message) as error:
        Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    assert ": use mode" in str(error.value) or "attach to" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("d", [1e-6, 0.3, torch.tensor(0.3)])
@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_an_estimate_that_multiplies_lr_is_noticed_at_any_size(d, mode):
    model = make_model()
    with pytest.raises(ValueError, match=r"takes group.'lr'. for the size of the steps of Estimated"):
        Regularizer(model, L2(0.5), mode=mode).attach(Estimated(model.parameters(), lr=1.0, d=d))


def test_an_optimizer_whose_copies_cannot_step_is_served_or_warned_of():
    model = make_model()
    optimizer = FlatBuffer(model.parameters())
    Regularizer(model, L2(0.5), mode="grad").attach(optimizer).remove()
    for mode in ("decoupled", "prox"):
        regularizer = Regularizer(model, L2(0.5), mode=mode)
        with pytest.warns(UserWarning, match=f"whether mode '{mode}' suits FlatBuffer could not be tried"):
            regularizer.attach(optimizer)
        regularizer.remove()


def test_an_option_d_of_another_meaning_is_no_reason():
    model = make_model()
    Regularizer(model, L2(0.5), mode="decoupled").attach(Plain(model.parameters(), d=0.5))


@pytest.mark.parametrize("lr", [None, "auto", (0.1, 0.2)])
@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_an_lr_that_is_no_number_is_refused(lr, mode):
    model = make_model()
    with pytest.raises(ValueError, match="needs the optimizer's lr, OwnRate has lr="):
        Regularizer(model, L2(0.5), mode=mode).attach(OwnRate(model.parameters(), lr=lr))


def test_the_users_own_object_is_not_stepped_and_its_records_are_not_written():
    model = make_model()
    optimizer = Counting(model.parameters(), model=model)
    Regularizer(model, L2(0.5), mode="decoupled").attach(optimizer)
    assert (optimizer.calls, optimizer.log) == (0, [])
    assert optimizer.model is model


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("kind", [Averaging, CountingInGroups])
def test_an_optimizer_that_has_run_is_asked_as_a_fresh_one(kind, resumed):
    model = make_model()
    optimizer = kind(model.parameters())
    for _ in range(1000):
        set_gradients(model, 1e-4)
        optimizer.step()
    if resumed:
        optimizer, saved = kind(model.parameters()), optimizer.state_dict()
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match="does not keep"):
        Regularizer(model, L1(0.5), mode="prox").attach(optimizer)


# -- wrappers that do not call torch's constructor, and the state that travels -------------------------------------


class Around(torch.optim.Optimizer):
    """Has the groups, the state and the checkpoints of another optimizer."""

    def __init__(self, base, lr=None):
        self.base, self.param_groups, self.state = base, base.param_groups, base.state
        self.defaults = base.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self._patch_step_function()

    def step(self, closure=None):
        return self.base.step(closure)

    def state_dict(self):
        return {"base": self.base.state_dict()}


class OwnCheckpoint(Plain):
    def state_dict(self):
        return {"lr": self.param_groups[0]["lr"]}


@pytest.mark.parametrize("mode", MODES)
def test_a_wrapper_with_step_hooks_alone_is_served(mode):
    model = make_model()
    optimizer = Around(torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    before = weights_of(model)
    set_gradients(model, 0.0)
    optimizer.step()
    for name, weight in weights_of(model).items():
        share = 1.0 if name.endswith("bias") else 1 / 1.05 if mode == "prox" else 0.95
        torch.testing.assert_close(weight, share * before[name])


@pytest.mark.parametrize("make", [lambda p: Around(torch.optim.SGD(p, lr=0.1)), OwnCheckpoint])
def test_a_schedule_is_told_that_checkpoints_do_not_hold_it(make):
    model = make_model()
    with pytest.warns(UserWarning, match=r"checkpoints of \w+ do not hold its state") as told:
        Regularizer(model, L2(0.5), mode="grad", schedule=linear(steps=5)).attach(make(model.parameters()))
    assert len(told) == 1


def test_a_decoupled_class_of_a_wrapper_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="it takes those of another optimizer: use the class made of that one"):
        decoupled(Around)(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("base", [Averaging, Master, Estimated, OwnRate, TwoSteps, Restoring])
def test_a_decoupled_class_of_such_an_optimizer_is_refused(base):
    kind = decoupled(base)
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*: use .* itself, and for the penalty a Regularizer"):
        kind(make_model().parameters(), lr=0.1, weight_decay=0.1)


def test_a_decoupled_class_of_an_ordinary_optimizer_is_made():
    model = make_model()
    optimizer = decoupled(Plain)(model.parameters(), lr=0.1, weight_decay=0.5)
    before = weights_of(model)
    set_gradients(model, 0.0)
    optimizer.step()
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, 0.95 * before[name])


# -- an optimizer whose step is never called ----------------------------------------------------------------------


class Elsewhere(torch.optim.SGD):
    """Updates the weights in a method of another name."""

    def update(self):
        torch.optim.SGD.step.__wrapped__(self)


def passes(model, optimizer, count, update):
    for _ in range(count):
        model(make_data()[0]).sum().backward()
        update()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["regularizer", "dropout schedule"])
def test_weights_that_change_without_a_step_are_told_once(kind):
    model = nn.Sequential(make_model(), nn.Dropout(0.5))
    optimizer = Elsewhere(model.parameters(), lr=0.1)
    if kind == "regularizer":
        Regularizer(model, L2(0.5), mode="decoupled").attach(optimizer)
    else:
        DropoutSchedule(model, linear(steps=5)).attach(optimizer)
    with pytest.warns(UserWarning, match=r"Elsewhere.step\(\) is not called") as told:
        passes(model, optimizer, 6, optimizer.update)
    assert len(told) == 1


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_second_pass_at_perturbed_weights_before_each_step_is_not_told(accumulated):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L2(0.5), mode="decoupled").attach(optimizer)
    calls = []

    def perturb_or_step():
        calls.append(None)
        if len(calls) % (2 * accumulated) == 0:
            optimizer.step()
        elif len(calls) % accumulated == 0:
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), 0.01)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(model, optimizer, 8 * accumulated, perturb_or_step)
