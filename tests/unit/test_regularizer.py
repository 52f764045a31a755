"""A regularizer as a number: its value, its place in the loss, its schedule, its table."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_case_and_mode, each_mode, each_penalty, each_step_mode
from tests.helpers import assert_bit_equal, assert_close, make_model, train, weights_of
from torchreg import L1, L2, Regularizer, cosine, linear


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


# -- the value ----------------------------------------------------------------------------------------------------


@pytest.mark.shows(None)
@each_case_and_mode
def test_the_value_is_the_sum_over_the_weights_in_every_mode(case, mode):
    model = make_model()
    regularizer = Regularizer(model, case.penalty, mode=mode)
    assert_close(regularizer.value(), case.formula(model[0].weight) + case.formula(model[2].weight))


@pytest.mark.shows("value")
@each_penalty
def test_terms_split_the_value_by_kind_and_patterns_add_up(case):
    model = make_model()
    terms = Regularizer(model, {"0.*": case.penalty, "*": L1(0.7)}).terms()
    kinds = {term.label for term in (*case.penalty.terms, L1(0.7))}
    assert terms.keys() == kinds
    assert_close(sum(terms.values()), case.formula(model[0].weight) + 0.7 * model[2].weight.abs().sum())


def test_the_scale_multiplies_value_and_terms():
    model = make_model()
    regularizer = Regularizer(model, L1(0.2) + L2(0.5))
    value, terms = regularizer.value(), regularizer.terms()
    regularizer.scale = 3.0
    assert_close(regularizer.value(), 3 * value)
    assert_close(regularizer.terms(), {name: 3 * term for name, term in terms.items()})
    regularizer.scale = torch.tensor(3.0, dtype=torch.float64)
    assert_close(regularizer.value(), 3 * value)


def test_the_value_follows_the_weights_and_is_differentiable():
    model = make_model()
    regularizer = Regularizer(model, L2(1.0))
    regularizer.value().backward()
    assert_close(model[0].weight.grad, model[0].weight)
    assert model[0].bias.grad is None
    before = regularizer.value().item()
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert regularizer.value().item() > before


def test_frozen_weights_are_not_in_the_value_and_without_any_it_is_zero():
    model = make_model()
    regularizer = Regularizer(model, L2(1.0))
    model[0].requires_grad_(False)
    assert_close(regularizer.value(), model[2].weight.square().sum() / 2)
    model.requires_grad_(False)
    assert regularizer.value().item() == 0
    assert regularizer.terms() == {}


# -- penalize -----------------------------------------------------------------------------------------------------


def test_penalize_adds_the_value_in_training_and_never_in_validation():
    model, output, target = make_model(), torch.randn(4, 3), torch.randn(4, 3)
    regularizer = Regularizer(model, L2(0.5))
    criterion = regularizer.penalize(nn.MSELoss())
    plain = F.mse_loss(output, target)
    assert_close(criterion(output, target), plain + regularizer.value())
    model.eval()
    assert_bit_equal(criterion(output, target), plain)
    criterion.train()  # the model's mode decides, not the criterion's
    assert_bit_equal(criterion(output, target), plain)


def test_penalize_passes_on_all_arguments_and_takes_any_function():
    model, output, target = make_model().eval(), torch.randn(4, 3), torch.randn(4, 3)
    criterion = Regularizer(model, L2(0.5)).penalize(F.mse_loss)
    assert_bit_equal(criterion(output, target, reduction="sum"), F.mse_loss(output, target, reduction="sum"))


def test_a_penalized_loss_does_not_own_the_model():
    criterion = Regularizer(make_model(), L2(0.5)).penalize(nn.MSELoss())
    assert criterion.state_dict() == {}
    assert list(criterion.parameters()) == []


@each_step_mode
def test_penalize_refuses_a_mode_that_acts_in_the_optimizer(mode):
    with pytest.raises(ValueError, match=f"this one has mode '{mode}'"):
        Regularizer(make_model(), L2(0.5), mode=mode).penalize(nn.MSELoss())


# -- the schedule -------------------------------------------------------------------------------------------------


@each_mode
def test_the_schedule_follows_the_steps(mode):
    model = make_model()
    optimizer = sgd(model)
    regularizer = Regularizer(model, L2(0.5), mode=mode, schedule=linear(10)).attach(optimizer)
    scales = []
    for _ in range(4):
        scales.append(regularizer.scale)
        train(model, optimizer, steps=1)
    assert_close(scales, [1.0, 0.9, 0.8, 0.7])


@pytest.mark.parametrize(("mode", "steps"), [("grad", 5), ("decoupled", 5), ("prox", 5)])
def test_a_scheduled_run_is_a_run_with_the_scale_set_by_hand(mode, steps):
    ours, byhand = make_model(), make_model()
    scheduled, plain = sgd(ours), sgd(byhand)
    Regularizer(ours, L1(0.5), mode=mode, schedule=cosine(steps)).attach(scheduled)
    manual = Regularizer(byhand, L1(0.5), mode=mode).attach(plain)
    for step in range(steps):
        manual.scale = cosine(steps)(step)
        train(byhand, plain, steps=1)
    assert_bit_equal(train(ours, scheduled, steps), weights_of(byhand))


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_every_third_step_acts_three_times_as_far(mode):
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L2(0.5), mode=mode, every=3).attach(optimizer)
    seen = []
    for _ in range(7):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        seen.append(model.weight.detach().clone())
    once = 1 - 0.3 * 0.5 if mode == "decoupled" else 1 / (1 + 0.3 * 0.5)
    assert_close(torch.stack(seen), torch.stack([start * once**n for n in (0, 0, 1, 1, 1, 2, 2)]), tolerance=1e-6)


@pytest.mark.parametrize(("every", "mode"), [(0, "prox"), (True, "prox"), (2.0, "prox"), (2, "grad"), (2, "loss")])
def test_an_every_that_cannot_be_is_refused(every, mode):
    with pytest.raises(ValueError, match="Regularizer: every"):
        Regularizer(nn.Linear(2, 1), L2(0.5), mode=mode, every=every)


def test_every_counts_the_steps_of_one_optimizer_and_stays_as_it_was_made():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    regularizer = Regularizer(model, L2(0.5), mode="prox", every=2)
    with pytest.raises(ValueError, match="every=2 counts the steps of one optimizer, got 2: make a Regularizer for"):
        regularizer.attach(*(torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strength", "Regularizer: strength cannot be set: scale multiplies"),
        ("penalty", "Regularizer: penalty cannot be set: entries shows"),
        ("select", "Regularizer: select cannot be set: entries shows"),
        ("mode", "no setter"),
        ("model", "no setter"),
        ("every", "no setter"),
        ("entries", "no setter"),
    ],
)
def test_what_would_change_nothing_cannot_be_set(name, message):
    regularizer = Regularizer(nn.Linear(2, 1), L2(0.5))
    regularizer.value()
    with pytest.raises(AttributeError, match=message):
        setattr(regularizer, name, 1)
    assert hasattr(regularizer, name) == (name not in ("strength", "penalty", "select"))


def test_a_checkpoint_of_a_regularizer_with_another_every_is_not_taken_for_its_own():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L2(0.5), mode="prox", every=2).attach(optimizer)
    model.weight.grad = torch.zeros(1, 2)
    optimizer.step()
    state = optimizer.state_dict()
    regularizer.remove()
    with Regularizer(model, L2(0.5), mode="prox", every=2).attach(optimizer) as equal:
        optimizer.load_state_dict(state)
        assert equal.state_dict()["steps"] == 1
    with Regularizer(model, L2(0.5), mode="prox", every=3).attach(optimizer) as other:
        with pytest.warns(UserWarning, match="does not hold its state"):
            optimizer.load_state_dict(state)
        assert other.state_dict()["steps"] == 0


def test_step_drives_the_schedule_by_hand():
    regularizer = Regularizer(make_model(), L2(0.5), schedule=linear(4))
    regularizer.step()
    assert_close(regularizer.scale, 0.75)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_a_schedule_that_returns_nonsense_is_refused_with_its_step(bad):
    with pytest.raises(ValueError, match=f"schedule must return a finite scale >= 0, got {bad!r} at step 0"):
        Regularizer(make_model(), L2(0.5), schedule=lambda step: bad)
    regularizer = Regularizer(make_model(), L2(0.5), schedule=lambda step: bad if step == 2 else 1.0)
    regularizer.step()
    with pytest.raises(ValueError, match="at step 2"):
        regularizer.step()


# -- what it shows ------------------------------------------------------------------------------------------------


def test_the_repr_shows_every_parameter_with_its_penalty_or_the_reason():
    model = make_model(widths=(2, 3, 3, 1))
    model[2].weight.requires_grad_(False)
    model[4].weight = nn.Parameter(model[4].weight[:, :2])
    lines = repr(Regularizer(model, {"0.*": L1(0.1) + L2(0.2), "*": L2(0.3)}, mode="prox")).splitlines()
    assert lines[:2] == [
        "Regularizer(mode='prox', scale=1.0): 2 of 6 parameters penalized, 8 of 24 values",
        "  not attached",
    ]
    rows = [line.split(maxsplit=1)[0] for line in lines[2:]]
    assert rows == ["parameter", "0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    endings = ["penalty", "L1(0.1) + L2(0.2)", "- bias", "- frozen", "- bias", "L2(0.3)", "- bias"]
    for line, ending in zip(lines[2:], endings, strict=True):
        assert line.endswith(ending)


def test_the_repr_names_all_places_of_a_tied_parameter():
    layer = nn.Linear(2, 2, bias=False)
    assert repr(Regularizer(nn.Sequential(layer, layer), L2(0.5))).endswith("L2(0.5) (tied: 1.weight)")
