"""A penalty counts once per optimizer step, however the step is made: the traps of ``torch.optim``, one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_penalty, each_step_mode
from tests.helpers import assert_bit_equal, assert_close, make_data, make_model, train, weights_of
from tests.optimizers import each_optimizer
from tests.unit.training import PENALTY, run, set_gradients, sgd
from torchreg import L2, Regularizer

# -- accumulation and closures ------------------------------------------------------------------------------------


@each_optimizer
@each_step_mode
def test_a_penalty_counts_once_over_four_micro_batches(make_optimizer, mode):
    assert_close(run(mode, make_optimizer, micro_batches=4), run(mode, make_optimizer), tolerance=1e-11)


@each_optimizer
@each_step_mode
def test_a_closure_changes_nothing(make_optimizer, mode):
    assert_bit_equal(run(mode, make_optimizer, closure=True), run(mode, make_optimizer))


@each_step_mode
def test_a_closure_by_keyword_changes_nothing(mode):
    model = make_model()
    optimizer = sgd(model)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    step = optimizer.step
    optimizer.step = lambda closure: step(closure=closure)
    assert_bit_equal(train(model, optimizer, 5, closure=True), run(mode))


@pytest.mark.shows("grad")
@pytest.mark.parametrize("line_search", ["strong_wolfe", None])
@each_penalty
def test_lbfgs_minimizes_the_penalized_loss(case, line_search):
    x, y = make_data()
    losses = {"ours": [], "autograd": []}
    models = {"ours": make_model(), "autograd": make_model()}
    for kind, model in models.items():
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5, line_search_fn=line_search)
        regularizer = Regularizer(model, case.penalty, mode="grad")
        if kind == "ours":
            regularizer.attach(optimizer)

        def closure(kind=kind, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            if kind == "autograd":
                loss = loss + case.formula(model[0].weight) + case.formula(model[2].weight)
            loss.backward()
            return loss

        for _ in range(4):
            losses[kind].append(optimizer.step(closure).detach())
    assert_close(losses["ours"], losses["autograd"], tolerance=1e-9)
    assert_close(weights_of(models["ours"]), weights_of(models["autograd"]), tolerance=1e-9)


@pytest.mark.parametrize(("mode", "remaining"), [("grad", 0.95), ("decoupled", 0.95), ("prox", 1 / 1.05)])
def test_a_penalty_counts_once_though_the_closure_is_called_twice(mode, remaining):
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            return super().step(closure)

    model = make_model()
    optimizer = Twice(model.parameters(), lr=0.05)
    Regularizer(model, L2(1.0), mode=mode).attach(optimizer)
    before = weights_of(model)
    optimizer.step(lambda: set_gradients(model, 0.0))
    assert_close(weights_of(model)["0.weight"], remaining * before["0.weight"])


def test_lbfgs_is_refused_where_it_would_make_nonsense():
    model = make_model()
    for mode in ("decoupled", "prox"):
        with pytest.raises(ValueError, match="LBFGS makes many steps in one call: use mode 'grad' or 'loss'"):
            Regularizer(model, L2(1.0), mode=mode).attach(torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("maximize", [True, False])
def test_the_loss_of_a_closure_is_the_objective_that_its_gradients_belong_to(maximize):
    model = make_model()
    regularizer = Regularizer(model, L2(1.0), mode="grad")
    penalty = regularizer.value().item()
    regularizer.attach(optimizer := sgd(model, maximize=maximize))
    loss = optimizer.step(lambda: torch.tensor(3.0, dtype=torch.float64))
    assert_close(loss.item(), 3.0 - penalty if maximize else 3.0 + penalty)


def test_a_closure_may_return_nothing():
    model = make_model()
    optimizer = sgd(model, momentum=0)
    Regularizer(model, L2(1.0), mode="grad").attach(optimizer)
    before = weights_of(model)
    assert optimizer.step(lambda: set_gradients(model, 0.0)) is None
    assert_close(weights_of(model)["0.weight"], 0.95 * before["0.weight"])


def test_a_closures_loss_is_the_penalized_one_in_mode_grad_only():
    x, y = make_data()
    for mode in ("grad", "decoupled", "prox"):
        model = make_model()
        regularizer = Regularizer(model, PENALTY, mode=mode).attach(optimizer := sgd(model))
        plain = F.mse_loss(model(x), y)
        expected = plain + regularizer.value() if mode == "grad" else plain
        loss = optimizer.step(lambda model=model: F.mse_loss(model(x), y))
        assert_close(loss.detach(), expected.detach())


# -- steps within steps, and steps that fail ----------------------------------------------------------------------


class Inherited(torch.optim.SGD):
    """Fires its step hooks twice: its own step is wrapped, and so is the one it calls."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.fixture
def fired() -> list[str]:
    """Fills up with the hooks that fire; a plain SGD was made before, so that its step is wrapped."""
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    return []


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@each_step_mode
def test_a_subclass_that_calls_the_step_of_its_base_counts_once(mode, closure, fired):
    def make(params):
        optimizer = Inherited(params, lr=0.05, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
        return optimizer

    assert_bit_equal(run(mode, make, closure=closure), run(mode))
    assert len(fired) == 10  # without the double firing the test would be vacuous


@pytest.mark.parametrize("late", [True, False], ids=["after the update", "in the closure"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, Inherited])
@each_step_mode
def test_a_step_that_raises_does_not_silence_the_next_one(mode, kind, late, fired):
    def fail(*_):
        raise RuntimeError("interrupted")

    model = make_model()
    optimizer = kind(model.parameters(), lr=0.0, momentum=0.9)  # at lr 0 the interrupted step itself moves nothing
    hook = optimizer.register_step_post_hook(fail)  # before ours, which is then never told that the step ended
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    with pytest.raises(RuntimeError, match="interrupted"):
        optimizer.step(None if late else fail)
    hook.remove()
    optimizer.param_groups[0]["lr"] = 0.05
    assert_bit_equal(train(model, optimizer, steps=5), run(mode))


@each_step_mode
def test_a_schedule_wrapper_around_step_changes_nothing(mode):
    def scheduled(params):
        optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9)
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)  # wraps optimizer.step
        return optimizer

    assert_bit_equal(run(mode, scheduled), run(mode))
