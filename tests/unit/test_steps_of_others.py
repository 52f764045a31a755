"""Optimizers whose steps are not what a mode assumes are refused when a regularizer is attached; others go on."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.helpers import make_data, make_model, weights_of
from tests.unit.training import set_gradients
from torchreg import L1, L2, DropoutSchedule, Regularizer, linear
from torchreg.optim import decoupled

# -- optimizers of others, each with one unusual habit ------------------------------------------------------------


class Plain(torch.optim.Optimizer):
    """A gradient step, by the book."""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update(param, group)
        return loss

    def update(self, param, group):
        param.sub_(param.grad, alpha=float(group["lr"]))


class Counting(Plain):
    """A user's subclass that keeps records and a reference to the model."""

    def __init__(self, params, lr=0.1, model=None):
        super().__init__(params, lr)
        self.model, self.calls, self.log = model, 0, []

    def step(self, closure=None):
        self.calls += 1
        self.log.append(self.param_groups[0]["lr"])
        return super().step(closure)


class Noisy(Plain):
    def update(self, param, group):
        super().update(param, group)
        param.add_(torch.randn_like(param), alpha=group["lr"] ** 0.5)


class NeedsClosure(Plain):
    def step(self, closure):
        return super().step(closure)


class Averaging(Plain):
    """The model is used with the average of all weights so far."""

    def update(self, param, group):
        state = self.state[param]
        state["k"] = state.get("k", 0) + 1
        z = state.setdefault("z", param.clone())
        z.sub_(param.grad, alpha=group["lr"])
        param.lerp_(z, 1 / (state["k"] + 1))


class FromTheStart(Plain):
    """Dual averaging: the weights are the first ones minus the sum of all gradients."""

    def update(self, param, group):
        state = self.state[param]
        if not state:
            state.update(first=param.clone(), total=torch.zeros_like(param))
        state["total"].add_(param.grad)
        param.copy_(state["first"] - group["lr"] * state["total"])


class Master(Plain):
    """Steps are made on another copy of the weights."""

    def update(self, param, group):
        copied = self.state[param].setdefault("master", param.double().clone())
        copied.sub_(param.grad.double(), alpha=group["lr"])
        param.copy_(copied)


class TrainEval(Plain):
    """Two versions of the weights, and a step that needs one's own parameters."""

    def train(self):
        raise RuntimeError("only with all parameters")

    eval = train


class Restoring(Plain):
    """Evaluates the closure at perturbed weights and comes back before it steps."""

    def step(self, closure):
        for group in self.param_groups:
            for param in group["params"]:
                old = param.detach().clone()
                param.data.add_(0.01)
                with torch.enable_grad():
                    closure()
                param.data.copy_(old)
        return super().step()


class Estimated(Plain):
    def __init__(self, params, lr=0.1, d=1e-6):
        super().__init__(params, lr, d=d)

    def update(self, param, group):
        param.sub_(param.grad, alpha=group["d"] * group["lr"])


class OwnRate(Plain):
    def update(self, param, group):
        param.sub_(param.grad, alpha=0.01)


class Tiny(Plain):
    def update(self, param, group):
        param.sub_(param.grad, alpha=1e-7 * group["lr"])


class EveryThird(Plain):
    """Accumulates gradients itself."""

    def step(self, closure=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure) if self.calls % 3 == 0 else None


class Lookahead(torch.optim.Optimizer):
    """Slow weights, which fast weights return to."""

    def __init__(self, params, lr=0.1, every=5):
        self.fast = torch.optim.Adam(params, lr=lr)
        super().__init__(self.fast.param_groups, {})
        self.param_groups, self.every, self.calls = self.fast.param_groups, every, 0

    @torch.no_grad()
    def step(self, closure=None):
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            self.state[param].setdefault("slow", param.clone())
        self.fast.step(closure)
        self.calls += 1
        if self.calls % self.every == 0:
            for param in params:
                param.copy_(self.state[param]["slow"].lerp_(param, 0.5))


class TwoSteps(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        params = list(params)
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.SGD(params, lr=lr)

    def first_step(self):
        pass

    def second_step(self):
        self.base.step()

    def step(self, closure=None):
        self.second_step()


MODES = ("grad", "decoupled", "prox")
SERVED = [
    (make, mode)
    for make in (Plain, Counting, Noisy, NeedsClosure, torch.optim.Adadelta, torch.optim.Adafactor, torch.optim.RAdam)
    for mode in MODES
] + [
    *((make, "grad") for make in (Averaging, FromTheStart, Master, Estimated, OwnRate, Tiny, TrainEval)),
    (Lookahead, "decoupled"),
    (Lookahead, "grad"),
]
REFUSED = [
    *((make, mode, "does not keep such a change") for make in (FromTheStart, Master) for mode in ("decoupled", "prox")),
    *((Averaging, mode, "does not keep such a change") for mode in ("decoupled", "prox")),
    *((TrainEval, mode, "two versions of the weights") for mode in ("decoupled", "prox")),
    (Lookahead, "prox", "does not keep such a change"),
    (Restoring, "decoupled", "does not keep such a change"),
    *((OwnRate, mode, "they do not depend on it") for mode in ("decoupled", "prox")),
    *((Tiny, mode, "they are less than 2e-05 of it") for mode in ("decoupled", "prox")),
    *((EveryThird, mode, "only some calls of EveryThird") for mode in MODES),
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


def test_an_optimizer_that_has_run_is_asked_as_a_fresh_one():
    model = make_model()
    optimizer = Averaging(model.parameters())
    for _ in range(30):
        set_gradients(model, 0.1)
        optimizer.step()
    with pytest.raises(ValueError, match="does not keep"):
        Regularizer(model, L1(0.5), mode="prox").attach(optimizer)


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
