"""Ordinary optimizers that hold unusual things: what they hold is no reason to refuse them."""

import logging
import threading
import warnings

import pytest
import torch
from torch import nn

from tests.helpers import make_model, weights_of
from tests.unit.other_optimizers import Lookahead, Plain
from tests.unit.training import set_gradients
from torchreg import L2, Regularizer
from torchreg.hooks import check_steps

MODES = ("grad", "decoupled", "prox")


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
