"""Strengths that are tuned in training: what becomes of them."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_duplicate
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_model
from tests.unit.tuning import (
    HELD_OUT,
    assert_slopes_agree,
    measured,
    step,
)
from torchreg import L1, L2, ElasticNet, Regularizer
from torchreg.optim import SGDW
from torchreg.tuning import AutoStrength
from torchreg.tuning.online.descent import NO_MOMENTS, normalized


def ridge(start, mode="decoupled", *, steps=400, penalty=L2, tuned=True, **options):
    """A noisy linear regression on few examples, where some decay helps: the controller, and the held-out loss."""
    draw = torch.Generator().manual_seed(0)
    noise = partial(torch.randn, generator=draw, dtype=torch.float64)
    truth = noise(20, 1) * (torch.arange(20)[:, None] < 3)
    x, held_out = noise(25, 20), noise(400, 20)
    y, targets = (z @ truth + noise(len(z), 1) for z in (x, held_out))
    model = nn.Linear(20, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, penalty(start), mode=mode)
    auto = AutoStrength(regularizer, (held_out, targets), nn.MSELoss(), **options)
    (auto if tuned else regularizer).attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return auto, F.mse_loss(model(held_out), targets).item()


@pytest.mark.parametrize(("mode", "penalty"), [("decoupled", L2), ("grad", L2), ("prox", L2), ("prox", L1)])
def test_it_takes_most_of_what_the_best_strength_brings_wherever_it_starts(mode, penalty):
    grid = [ridge(10 ** (k / 2), mode, penalty=penalty, tuned=False)[1] for k in range(-6, 3)]
    ends = [ridge(start, mode, penalty=penalty) for start in (1e-6, 1e-2, 10.0)]
    for auto, loss in ends:
        assert loss < (min(grid) + grid[0]) / 2  # it sees one step ahead, so it need not be the very best
        assert_close(auto.strengths, ends[0][0].strengths, 0.3)


def test_a_slope_that_is_taken_every_third_step_counts_as_three():
    seldom = often = NO_MOMENTS
    for slope in (0.3, -0.2, 0.7):
        seldom, step_of_three = normalized(seldom, slope, every=3)
        for _ in range(3):
            often, each = normalized(often, slope)
        assert_close(step_of_three, each)


@pytest.mark.parametrize(("mode", "penalty"), [("decoupled", L2), ("grad", L2), ("prox", L1)])
def test_a_quarter_of_the_looks_finds_the_same_strength(mode, penalty):
    (seldom, loss), (often, expected) = (ridge(1e-4, mode, penalty=penalty, every=every) for every in (4, 1))
    assert (seldom._batches.count, often._batches.count) == (100, 400)
    assert_close(seldom.strengths, often.strengths, 0.1)
    assert_close(loss, expected, 0.01)


def test_it_only_looks_the_training_is_that_of_the_strengths_it_sets():
    def train(auto_lr):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        regularizer = Regularizer(model, L2(0.1), mode="decoupled").attach(optimizer)
        if auto_lr:
            AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), lr=auto_lr, bounds=(0.1, 0.1)).attach(optimizer)
        for _ in range(5):
            step(model, optimizer, slice(0, 16))
        assert all(module.training for module in model.modules())
        return model.state_dict()

    assert_close(train(None), train(1.0), 1e-15)  # exp(log(0.1 / 0.1)) is 1


def test_each_parameter_may_have_a_strength_of_its_own():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    regularizers = [Regularizer(model, L2(0.1), mode="decoupled"), Regularizer(model, {"0.*": L1(1e-3)}, mode="prox")]
    auto = AutoStrength(regularizers, HELD_OUT, nn.MSELoss(), per="parameter", every=2).attach(optimizer)
    for _ in range(9):
        step(model, optimizer, slice(0, 32))
    assert list(auto.strengths) == ["L2 0.weight", "L2 2.weight", "L1 0.weight"]
    assert_differs(*(auto.strengths[f"L2 {name}"] for name in ("0.weight", "2.weight")))
    first, second = (auto.strengths[f"L2 {name}"] / 0.1 for name in ("0.weight", "2.weight"))
    assert_close(regularizers[0].scale, {"0.weight": first, "2.weight": second})
    values = [L2(0.1).value(model.get_parameter(name)) for name in ("0.weight", "2.weight")]
    expected = first * values[0] + second * values[1]
    assert_close(regularizers[0].value(), expected)
    assert_close(sum(regularizers[0].terms().values()), expected)
    auto.remove()
    before = auto.strengths
    step(model, optimizer, slice(0, 32))
    assert_close(auto.strengths, before, 1e-15)
    assert not any(regularizer._listeners for regularizer in regularizers)


@pytest.mark.parametrize("spread", [math.inf, 10.0, 1.001])
def test_strengths_are_drawn_to_their_mean(spread):
    """The moves alone, and the moves of strengths that are drawn, by hand."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, L2(0.1), mode="decoupled")
    regularizer.scale = {"0.weight": 8.0, "2.weight": 0.5}
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), per="parameter", spread=spread, lr=0.02, every=1)
    auto.attach(optimizer)
    step(model, optimizer, slice(0, 32))
    pull = min(0.02 / math.log(spread), 1.0)
    for name, start in (("0.weight", 8.0), ("2.weight", 0.5)):
        left = math.log(regularizer.scale[name] / start) - pull * math.log(2.0 / start)
        assert abs(left) == pytest.approx(0.02)


def test_no_strength_runs_away_from_those_of_the_other_layers():
    """Slopes that always disagree: the strengths end a factor of about the spread from their mean."""
    model = make_model()
    regularizer = Regularizer(model, L1(1e-2), mode="prox")
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), per="parameter", every=1)
    first, second = auto._tuned
    for _ in range(2000):
        middle = (first.log_scale + second.log_scale) / 2
        for item, slope in ((first, -1.0), (second, 1.0)):
            pull = auto.lr / math.log(auto.spread)
            item.move(slope, auto.lr, auto.bounds, 1, pull * (middle - item.log_scale))
    assert_close(first.strength, 1e-2 * 10.0, 0.01)
    assert_close(second.strength, 1e-2 / 10.0, 0.01)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    def make():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        regularizer = Regularizer(model, L2(0.1), mode="decoupled")
        auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), batch_size=5, per="parameter").attach(optimizer)
        return model, optimizer, regularizer, auto

    parts = make()
    for number in range(20):
        if number == 9:
            torch.save([part.state_dict() for part in parts], tmp_path / "checkpoint.pt")
        step(*parts[:2], slice(0, 16))
    fresh = make()
    for part, state in zip(fresh, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for _ in range(9, 20):
        step(*fresh[:2], slice(0, 16))
    assert_bit_equal(fresh[0].state_dict(), parts[0].state_dict())
    assert fresh[3].strengths == parts[3].strengths


def test_strengths_stay_in_their_bounds_and_what_is_all_zero_is_let_go():
    auto, _ = ridge(1e-2, penalty=L1, mode="prox", lr=1.0, bounds=(1e-3, 2e-2), steps=30)
    assert 1e-3 <= auto.strengths["L1"] <= 2e-2
    model = make_model()
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(1e3), mode="prox")
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), lr=0.1, every=1).attach(optimizer)
    step(model, optimizer, slice(0, 32))
    assert_close(auto.strengths["L1"], 1e3 * math.exp(-0.1))


def test_a_decoupled_optimizer_without_decay_is_its_base():
    for mode in ("grad", "decoupled", "prox"):
        assert_slopes_agree(*measured([(ElasticNet(0.3), mode)], partial(SGDW, lr=0.05, momentum=0.9)))


@each_duplicate
def test_a_copy_goes_on_tuning(duplicate):
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    auto = AutoStrength(Regularizer(model, L2(0.1), mode="decoupled"), HELD_OUT, nn.MSELoss()).attach(optimizer)
    step(model, optimizer, slice(0, 16))
    twins = duplicate((model, optimizer, auto))
    for parts in ((model, optimizer), twins[:2]):
        for _ in range(3):
            step(*parts, slice(0, 16))
    assert auto.strengths == twins[2].strengths
    assert_bit_equal(twins[0].state_dict(), model.state_dict())
    twins[2].remove()
    twins[2].attach(twins[1])


def test_two_regularizers_of_one_kind_have_names_of_their_own():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    several = [Regularizer(model, {name: L2(0.1)}, mode="decoupled") for name in ("0.*", "2.*")]
    auto = AutoStrength(several, HELD_OUT, nn.MSELoss()).attach(optimizer)
    step(model, optimizer, slice(0, 16))
    assert list(auto.strengths) == ["L2 (1)", "L2 (2)"]
    auto.load_state_dict(auto.state_dict())


def test_a_state_is_that_of_the_strength_wherever_it_is_loaded():
    saved = AutoStrength(Regularizer(make_model(), L2(0.1), mode="grad"), HELD_OUT, nn.MSELoss()).state_dict()
    other = AutoStrength(Regularizer(make_model(), L2(0.2), mode="grad"), HELD_OUT, nn.MSELoss())
    other.load_state_dict(saved)
    assert_close(other.strengths["L2"], 0.1)
    scaled = Regularizer(make_model(), L2(0.2), mode="grad")
    scaled.scale = 0.5
    assert_close(AutoStrength(scaled, HELD_OUT, nn.MSELoss()).strengths["L2"], 0.1)


@pytest.mark.parametrize("numbers", [[0.0, 1.0], [0.0] * 7, [math.nan, 0.1, 0.0, 0.0, 0.0, 0.0]], ids=str)
def test_a_state_with_wrong_numbers_is_refused_and_changes_nothing(numbers):
    auto = AutoStrength(Regularizer(make_model(), L2(0.1), mode="grad"), HELD_OUT, nn.MSELoss())
    state = auto.state_dict()
    with pytest.raises(ValueError, match=r"\AAutoStrength: state must hold 6 finite numbers for L2, got \["):
        auto.load_state_dict({**state, "steps": 5, "knobs": {"L2": numbers}})
    assert auto.state_dict() == state


def test_a_held_out_loss_that_is_not_finite_is_told():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held_out = HELD_OUT[0] * math.nan, HELD_OUT[1]
    regularizer = Regularizer(model, L2(0.1), mode="decoupled")
    auto = AutoStrength(regularizer, held_out, nn.MSELoss(), every=1).attach(optimizer)
    with pytest.warns(UserWarning, match="must have a finite gradient, got nan: L2 stays as it is"):
        step(model, optimizer, slice(0, 16))
    assert_close(auto.strengths["L2"], 0.1)
