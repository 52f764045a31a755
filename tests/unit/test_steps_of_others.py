"""Optimizers whose steps are not what a mode assumes are refused when a regularizer is attached; others go on."""

import copy
import logging
import threading
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tests.helpers import make_data, make_model, weights_of
from tests.unit.training import set_gradients
from torchreg import L1, L2, DropoutSchedule, Regularizer, linear
from torchreg.hooks import check_steps
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


class CountingInGroups(Plain):
    """The same average, whose weights are counted in the groups and so travel in checkpoints."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, total=0.0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            group["total"] += 1.0
        return super().step(closure)

    def update(self, param, group):
        z = self.state[param].setdefault("z", param.clone())
        z.sub_(param.grad, alpha=group["lr"])
        param.lerp_(z, 1 / (max(group["total"], group["calls"]) + 1))


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


class RoundedAway(Plain):
    """Steps of about half the distance between two numbers in single precision."""

    def update(self, param, group):
        param.sub_(param.grad, alpha=6e-5 * group["lr"])


class EveryThird(Plain):
    """Accumulates gradients itself."""

    def step(self, closure=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure) if self.calls % 3 == 0 else None


class Evaluated(Plain):
    """The model is evaluated with an average of its weights."""

    is_average = False

    def update(self, param, group):
        super().update(param, group)
        self.state[param].setdefault("average", param.clone()).lerp_(param, 0.05)

    def swap(self, to_average):
        if self.state and self.is_average is not to_average:
            for param, state in self.state.items():
                param.data, state["average"] = state["average"], param.data
        self.is_average = to_average

    def train(self):
        self.swap(False)

    def eval(self):
        self.swap(True)


class OwnGradients(Plain):
    """Takes the gradients from a place of its own, which hooks on the backward pass fill."""

    def update(self, param, group):
        if (gradient := self.state[param].get("gradient")) is not None:
            param.sub_(gradient, alpha=group["lr"])


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


class FewerAndFewer(Plain):
    """Each step moves the weights less far from an average, as follow-the-regularized-leader does."""

    def update(self, param, group):
        state = self.state[param]
        state["k"] = state.get("k", 0) + 1
        average = state.setdefault("average", param.clone())
        average.lerp_(param, 0.5 if state["k"] < 4 else 2 / state["k"] ** 2)
        param.copy_(average.sub_(param.grad, alpha=group["lr"]))


class UnitNorm(Plain):
    def update(self, param, group):
        super().update(param, group)
        param.div_(param.norm())


class Sharpness(Plain):
    """With a closure it comes back to the weights from before it; without one it makes a plain step."""

    def step(self, closure=None):
        if closure is None:
            return super().step()
        old = [param.detach().clone() for group in self.param_groups for param in group["params"]]
        for number in range(2):
            with torch.enable_grad():
                loss = closure()
            for param, value in zip((p for group in self.param_groups for p in group["params"]), old, strict=True):
                param.data.copy_(value + 0.01 * (1 - number))
        super().step()
        return loss


class SecondOrder(Plain):
    def update(self, param, group):
        with torch.enable_grad():
            (second,) = torch.autograd.grad(param.grad.sum(), param, retain_graph=True)
        param.sub_(param.grad / (second.abs() + 1), alpha=group["lr"])


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


class FlatBuffer(Plain):
    """Keeps its momentum in a dict that only its own parameters are in, and ignores closures."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.buffers = {id(p): torch.zeros_like(p) for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(self.buffers[id(param)].mul_(0.9).add_(param.grad), alpha=group["lr"])


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


# -- ordinary optimizers that hold unusual things ------------------------------------------------------------------


class Holding(torch.optim.SGD):
    """A subclass that keeps whatever its user likes, and uses it in each step."""

    def __init__(self, model, *, notes):
        super().__init__(({"params": [p], "lr": 0.1 + k} for k, p in enumerate(model.parameters())), lr=1.0)
        self.model, self.lock, self.notes = model, threading.Lock(), notes
        self.numbers, self.scale = iter(range(10)), lambda gradient: 1.0 * gradient
        self.logger = logging.getLogger("holding")
        self.settings = {"factor": 1.0, "parts": [self.lock, 2.0]}
        self.state["calls"] = 0
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["mask"] = torch.ones_like(param)

    def step(self, closure=None):
        with self.lock:
            next(self.numbers, None)
            self.notes.write("a step\n")
            self.logger.warning("a step")
            print("a step")
            self.state["calls"] += 1
        assert [p.shape for p in self.model.parameters()] == [g["params"][0].shape for g in self.param_groups]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    factor = self.settings["factor"] * self.settings["parts"][1] / 2
                    param.grad = self.scale(param.grad * self.state[param]["mask"]) * factor
        return super().step(closure)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_subclass_holds_is_neither_used_nor_a_reason(mode, tmp_path, capsys, caplog):
    model = make_model()
    with (tmp_path / "notes").open("w") as notes, warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = Holding(model, notes=notes)
        Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
        assert notes.tell() == 0
    assert next(optimizer.numbers) == 0
    assert capsys.readouterr().out == ""
    assert caplog.records == []
    assert optimizer.state["calls"] == 0


class Sub(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("mode", MODES)
def test_a_scheduler_made_before_leaves_the_optimizer_alone(mode):
    """A scheduler replaces the optimizer's step by a function that holds the optimizer."""
    model = make_model()
    optimizer = Sub(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    set_gradients(model, 1.0)
    before = weights_of(model)
    Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


class Shadows(Sub):
    """Keeps copies of the weights in a list and in a dict, and a scheduler of its own."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        params = [param for group in self.param_groups for param in group["params"]]
        self.listed, self.mapped = ([p.detach().clone() for p in params], {p: p.detach().clone() for p in params})
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self, 0.99)

    def step(self, closure=None):
        super().step(closure)
        params = [param for group in self.param_groups for param in group["params"]]
        for param, shadow in zip(params, self.listed, strict=True):
            self.mapped[param].copy_(shadow.lerp_(param.detach(), 0.1))
        self.scheduler.step()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_copies_of_weights_in_an_optimizer_are_no_reason(mode, place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_steps("Test", Shadows(make_model().to(place).parameters(), lr=0.1), mode)


def _frozen():
    return [nn.Parameter(torch.randn(3, 2), requires_grad=False)]


PARAMETERS = {
    "complex": lambda: [nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))],
    "half": lambda: [nn.Parameter(torch.randn(3, 2).half())],
    "bfloat16": lambda: [nn.Parameter(torch.randn(3, 2).bfloat16())],
    "empty": lambda: [nn.Parameter(torch.randn(0, 2)), nn.Parameter(torch.randn(3, 2))],
    "only empty": lambda: [nn.Parameter(torch.randn(0, 2))],
    "0-d": lambda: [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.randn(3, 2))],
    "zeros": lambda: [nn.Parameter(torch.zeros(3, 2))],
    "five dimensions": lambda: [nn.Parameter(torch.randn(2, 2, 2, 2, 2))],
    "frozen": _frozen,
    "thousands": lambda: [nn.Parameter(torch.randn(3)) for _ in range(2000)],
}
OPTIONS = {
    "SGD": lambda params: Sub(params, lr=0.1),
    "tensor lr": lambda params: Sub(params, lr=torch.tensor(0.1)),
    "foreach": lambda params: Sub(params, lr=0.1, foreach=True),
    "differentiable": lambda params: Sub(params, lr=0.1, differentiable=True),
    "maximize": lambda params: Sub(params, lr=0.1, maximize=True, momentum=0.9),
    "groups": lambda params: Sub([{"params": [p], "lr": 0.1 + k} for k, p in enumerate(params)]),
    "an empty group": lambda params: Sub([{"params": params}, {"params": []}], lr=0.1),
}


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("params", PARAMETERS.values(), ids=PARAMETERS)
def test_any_parameters_and_options_of_an_ordinary_subclass_are_served(params, make, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_steps("Test", make(params()), mode)


class SubSparse(torch.optim.SparseAdam):
    def step(self, closure=None):
        return super().step(closure)


def test_a_subclass_for_sparse_gradients_is_tried_with_sparse_gradients():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_steps("Test", SubSparse(nn.Embedding(4, 2, sparse=True).parameters(), lr=0.1), "decoupled")


@pytest.mark.parametrize("every", [2, 5, 6, 7, 10, 15, 20])
def test_lookahead_is_served_whenever_it_looks_back(every):
    check_steps("Test", Lookahead(make_model().parameters(), every=every), "decoupled")
    with pytest.raises(ValueError, match="does not keep"):
        check_steps("Test", Lookahead(make_model().parameters(), every=every), "prox")


class Masked(Plain):
    """Moves only some weights, which its constructor chooses."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["mask"] = torch.zeros_like(param).index_fill_(0, torch.tensor([-1]), 1.0)

    def update(self, param, group):
        param.sub_(self.state[param]["mask"] * param.grad, alpha=group["lr"])


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_that_the_copies_see_only_part_of_is_no_reason_to_refuse(mode):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_steps("Test", Masked([nn.Parameter(torch.randn(9, 2))], lr=0.1), mode)
    assert len(told) == (mode != "grad")


class NeedsItsParameters(Plain):
    """Steps with parameters of its own only."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.own = {id(param) for group in self.param_groups for param in group["params"]}

    def update(self, param, group):
        if id(param) not in self.own:
            raise KeyError("not mine:\n another parameter")
        super().update(param, group)


@pytest.mark.parametrize("mode", MODES)
def test_an_optimizer_that_cannot_be_tried_is_warned_of_once_where_the_mode_changes_weights(mode):
    model = make_model()
    optimizer = NeedsItsParameters(model.parameters())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
        for _ in range(3):
            set_gradients(model, 0.1)
            optimizer.step()
    assert len(told) == (mode != "grad")
    for warning in told:
        assert "suits NeedsItsParameters could not be tried" in str(warning.message)
        assert "use mode 'grad' or 'loss'" in str(warning.message)
        assert "\n" not in str(warning.message)
        assert warning.filename == __file__


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
