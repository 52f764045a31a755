"""Strengths that are tuned in training: the hypergradient against finite differences, and what becomes of it."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import PENALTIES, each_duplicate
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model
from torchreg import L1, L2, ElasticNet, GroupLasso, Huber, MaxNorm, Regularizer, Stacked, linear
from torchreg.optim import SGDW, ProxAdam, RMSpropW
from torchreg.tuning import AutoStrength
from torchreg.tuning.online.descent import NO_MOMENTS, normalized
from torchreg.tuning.online.held_out import _moved, loss_of
from torchreg.tuning.online.hypergradient import hypergradients, penalty_updates_of
from torchreg.tuning.online.updates import updates_of

X, Y = make_data()
HELD_OUT = X.flip(0) + 0.3, Y.flip(0) - 0.2

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.05),
    "SGD-momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "SGD-dampening": partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.4),
    "SGD-nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD-maximize": partial(torch.optim.SGD, lr=0.05, momentum=0.9, maximize=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "Adam-decay": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "Adam-amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True, betas=(0.8, 0.9)),
    "Adam-maximize": partial(torch.optim.Adam, lr=0.01, maximize=True),
    "Adam-fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def step(model, optimizer, batch):
    optimizer.zero_grad()
    F.mse_loss(model(X[batch]), Y[batch]).backward()
    optimizer.step()


def measured(penalties, make_optimizer, steps=3):
    """The hypergradient of each regularizer in the last step, and how the held-out loss depends on its scale."""
    model = make_model()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(0.7).add_(0.05)  # no ties among weights, where a subgradient is one of many
    optimizer = make_optimizer(model.parameters())
    regularizers = [Regularizer(model, penalty, mode=mode).attach(optimizer) for penalty, mode in penalties]
    for number in range(steps - 1):
        step(model, optimizer, slice(number, number + 12))
    state = deepcopy((model.state_dict(), optimizer.state_dict()))

    def loss_after(scales):
        model.load_state_dict(state[0])
        optimizer.load_state_dict(deepcopy(state[1]))
        for regularizer, scale in zip(regularizers, scales, strict=True):
            regularizer.scale = scale
        step(model, optimizer, slice(20, 30))
        return F.mse_loss(model(HELD_OUT[0]), HELD_OUT[1])

    acts = []
    for regularizer in regularizers:
        regularizer._listeners.append(lambda *at: acts.extend(penalty_updates_of(*at)))
    loss = loss_after([1.0] * len(regularizers))
    for regularizer in regularizers:
        regularizer._listeners.clear()
    weights = list(dict.fromkeys(act.param for act in acts))
    found = dict.fromkeys(regularizers, 0.0)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        own = [act for act in acts if act.param is weight]
        for act, slope in zip(own, hypergradients(own, gradient), strict=True):
            found[act.regularizer] += slope.item()
    expected, h = [], 2e-5
    for number in range(len(regularizers)):
        at = [loss_after([1 + h * k * (i == number) for i in range(len(regularizers))]).item() for k in (-2, -1, 1, 2)]
        expected.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h))
    return list(found.values()), expected


def assert_slopes_agree(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours - theirs) <= 1e-6 * abs(theirs) + 1e-11
        assert theirs != 0


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_hypergradient_is_that_of_the_unrolled_step(name, mode):
    decays = "weight_decay" in OPTIMIZERS[name].keywords  # a ridge would be a second decay
    penalty = Huber(0.3, delta=0.5) if decays else ElasticNet(0.3, l1_ratio=0.3)
    assert_slopes_agree(*measured([(penalty, mode)], OPTIMIZERS[name]))


@pytest.mark.parametrize("case", PENALTIES, ids=lambda case: case.name)
@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
def test_each_penalty_has_its_hypergradient(case, mode):
    if mode == "prox" and not case.is_proximal:
        pytest.skip("no proximal operator")
    assert_slopes_agree(*measured([(case.penalty, mode)], OPTIMIZERS["Adam"]))


def test_what_acts_later_is_differentiated_through():
    penalties = [(L2(0.5), "decoupled"), (L1(1.0), "prox"), (GroupLasso(0.5), "prox")]
    assert_slopes_agree(*measured(penalties, OPTIMIZERS["Adam"]))


@pytest.mark.parametrize("name", ["SGD-momentum", "Adam"])
@pytest.mark.parametrize(
    "penalties",
    [
        [(L2(0.5), "decoupled"), (ElasticNet(0.5, l1_ratio=0.5), "decoupled")],
        [(L2(0.5), "decoupled"), (L2(0.7), "grad")],
        [(L2(0.5), "grad"), (L2(0.7), "decoupled"), (L1(0.5), "prox")],
    ],
    ids=str,
)
def test_so_is_what_acts_before_the_update(name, penalties):
    assert_slopes_agree(*measured(penalties, OPTIMIZERS[name]))


def test_a_first_step_with_dampening_takes_the_whole_gradient():
    assert_slopes_agree(*measured([(L2(0.5), "grad")], OPTIMIZERS["SGD-dampening"], steps=1))


def test_a_weight_that_never_had_a_gradient_responds_as_adam_would():
    direction = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)

    def stepped(h):
        weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        weight.grad = torch.tensor([0.0, 0.0, 1e-3], dtype=torch.float64) + h * direction
        optimizer = torch.optim.Adam([weight], lr=0.01)
        (update,) = updates_of(optimizer)
        optimizer.step()
        return weight.detach(), update.response(weight.detach(), direction)

    h = 1e-13  # small next to Adam's eps
    assert_close(stepped(0.0)[1], (stepped(h)[0] - stepped(-h)[0]) / (2 * h), 1e-4)


# -- tuning ---------------------------------------------------------------------------------------------------------


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


# -- accumulation, scaled gradients, closures and trainers -----------------------------------------------------------


def tuned_by(make_steps, mode, *, make_optimizer=None, validation=HELD_OUT):
    """The weights and the strength after eight steps that a function makes of the optimizer and a loss."""
    model = make_model()
    optimizer = (make_optimizer or partial(torch.optim.Adam, lr=0.01))(model.parameters())
    auto = AutoStrength(Regularizer(model, L2(0.1), mode=mode), validation, nn.MSELoss(), every=1).attach(optimizer)
    for number in range(8):
        make_steps(optimizer, lambda batch: F.mse_loss(model(X[batch]), Y[batch]), number)
    return model.state_dict(), auto.strengths["L2"]


def whole(optimizer, loss, number):
    optimizer.zero_grad()
    loss(slice(0, 32)).backward()
    optimizer.step()


def in_parts(optimizer, loss, number):
    optimizer.zero_grad()
    for at in range(0, 32, 8):
        (loss(slice(at, at + 8)) / 4).backward()
    optimizer.step()


def with_a_closure(optimizer, loss, number):
    def closure():
        optimizer.zero_grad()
        value = loss(slice(0, 32))
        value.backward()
        return value

    optimizer.step(closure)


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("make_steps", [in_parts, with_a_closure])
def test_the_strength_is_that_of_the_whole_batch(make_steps, mode):
    (weights, strength), (expected, target) = (tuned_by(each, mode) for each in (make_steps, whole))
    assert_close(weights, expected, 1e-10)
    assert_close(strength, target, 1e-8)
    assert strength != 0.1


@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_tune_as_plain_ones_and_a_skipped_step_is_none(fused, mode):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)

    def scaled(optimizer, loss, number):
        for factor in (math.inf, 1.0) if number == 4 else (1.0,):  # an extra step, which is skipped
            optimizer.zero_grad()
            scaler.scale(loss(slice(0, 32)) * factor).backward()
            scaler.step(optimizer)
            scaler.update()

    make_optimizer = partial(torch.optim.Adam, lr=0.01, fused=fused)
    (weights, strength), (expected, target) = (
        tuned_by(each, mode, make_optimizer=make_optimizer) for each in (scaled, whole)
    )
    assert_close(weights, expected, 1e-7)  # the fused kernel rounds
    assert_close(strength, target, 1e-6)


class Named(nn.Module):
    """A model as transformers has it: keywords in, a dict with the loss out."""

    def __init__(self):
        super().__init__()
        self.net = make_model()

    def forward(self, x, labels=None):
        outputs = self.net(x)
        return {"logits": outputs} if labels is None else {"logits": outputs, "loss": F.mse_loss(outputs, labels)}


@pytest.mark.parametrize("form", ["pair", "mapping", "mapping of inputs"])
def test_held_out_batches_may_be_mappings(form):
    model = Named()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = HELD_OUT
    validation, criterion = {
        "pair": ([(x, y)], lambda outputs, targets: F.mse_loss(outputs["logits"], targets)),
        "mapping": ([{"x": x, "labels": y}], lambda outputs, batch: outputs["loss"]),
        "mapping of inputs": ([({"x": x}, y)], lambda outputs, targets: F.mse_loss(outputs["logits"], targets)),
    }[form]
    auto = AutoStrength(Regularizer(model, L2(0.1), mode="prox"), validation, criterion, every=1).attach(optimizer)
    for number in range(8):
        whole(optimizer, lambda batch: model(X[batch], Y[batch])["loss"], number)
    assert_close(auto.strengths["L2"], tuned_by(whole, "prox")[1], 1e-6)


def test_held_out_batches_are_moved_to_the_models_device():
    seen = []

    class Asked(nn.Linear):
        def forward(self, input):
            seen.append(input.device.type)
            return super().forward(input)

    with torch.device("meta"):
        model = Asked(6, 3)
    loss = loss_of(model, nn.MSELoss(), (torch.ones(2, 6), torch.ones(2, 3)))
    assert seen == ["meta"]
    assert loss.is_meta
    nested = {"a": [torch.ones(1), (torch.ones(1), "text")], "b": 3}
    moved = _moved(nested, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert moved["b"] == 3


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


def test_a_loader_is_gone_through_again_and_again():
    loader = [(X[:8], Y[:8]), (X[8:], Y[8:])]
    batches = AutoStrength(Regularizer(make_model(), L2(1.0), mode="grad"), loader, nn.MSELoss())._batches
    assert [len(next(batches)[0]) for _ in range(5)] == [8, 24, 8, 24, 8]
    pairs = AutoStrength(Regularizer(make_model(), L2(1.0), mode="grad"), (X, Y), nn.MSELoss(), batch_size=10)._batches
    seen = torch.cat([next(pairs)[0] for _ in range(3)])
    assert len(seen.unique(dim=0)) == 30
    assert_differs(next(pairs)[0], seen[:10])


SCALES = {
    "float": lambda names: 0.1,
    "tensor": lambda names: torch.tensor(0.1, dtype=torch.float64),
    "float32 tensor": lambda names: torch.tensor(0.1),
    "dict": lambda names: dict.fromkeys(names, 0.1),
    "dict of tensors": lambda names: dict.fromkeys(names, torch.tensor(0.1)),
}


@pytest.mark.parametrize("when", ["before", "after", "in training"])
@pytest.mark.parametrize("per", ["regularizer", "parameter"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_it_starts_from_the_scale_that_the_regularizer_has(scale, per, when):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, L2(0.2), mode="decoupled")
    scale = scale([a.name for a in regularizer.entries if a.is_penalized])
    if when == "before":
        regularizer.scale = scale
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), per=per, lr=0.01, every=1)
    if when == "after":
        regularizer.scale = scale
    auto.attach(optimizer)
    if when == "in training":
        step(model, optimizer, slice(0, 8))
        assert all(0.19 < strength < 0.21 for strength in auto.strengths.values())
        regularizer.scale = scale
    else:
        assert_close(list(auto.strengths.values()), [0.02] * (1 if per == "regularizer" else 2), tolerance=1e-7)
    step(model, optimizer, slice(0, 8))
    for strength in auto.strengths.values():
        assert abs(math.log(strength / 0.02)) == pytest.approx(0.01, rel=0.1)


def test_each_parameter_starts_from_its_own_scale_and_one_strength_from_one():
    model = make_model()
    regularizer = Regularizer(model, L2(0.2), mode="prox")
    regularizer.scale = {"0.weight": 0.5, "2.weight": torch.tensor(3.0)}
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), per="parameter")
    assert_close(auto.strengths, {"L2 0.weight": 0.1, "L2 2.weight": 0.6})
    with pytest.raises(ValueError, match=r"got 0.5 for 0\.weight and 3 for 2\.weight: use per='parameter'"):
        AutoStrength(regularizer, HELD_OUT, nn.MSELoss())


@pytest.mark.parametrize("scale", [0.0, torch.tensor(0.0), {"0.weight": 1.0, "2.weight": 0.0}], ids=str)
@pytest.mark.parametrize("late", [False, True])
def test_a_scale_of_zero_is_no_start(scale, late):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, L2(0.2), mode="prox")
    make = partial(AutoStrength, regularizer, HELD_OUT, nn.MSELoss(), per="parameter")
    auto = make() if late else None
    regularizer.scale = scale
    with pytest.raises(ValueError, match=r"scale must be > 0 to start from, got 0 for L2 (0|2)\.weight"):
        auto.attach(optimizer) if late else make()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(("strength", "scale"), [(1e-9, 1.0), (1.0, 1e-9), (1e5, 1.0), (1.0, torch.tensor(1e5))])
def test_a_start_outside_the_bounds_is_refused_and_on_them_is_not(strength, scale):
    regularizer = Regularizer(make_model(), L2(strength), mode="prox")
    regularizer.scale = scale
    with pytest.raises(ValueError, match=r"strength must start from 1e-08 to 10000, got .* for L2: widen bounds"):
        AutoStrength(regularizer, HELD_OUT, nn.MSELoss())
    start = strength * float(scale)
    for bounds in ((start, start), (start, 2 * start), (start / 2, start)):
        AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), bounds=bounds)


class Refused:
    """The mistakes, each with what is said of it."""

    model = make_model()

    def __init__(self):
        decay = Regularizer(self.model, L2(0.1), mode="decoupled")
        make = partial(AutoStrength, decay, HELD_OUT, nn.MSELoss())
        self.cases = {
            "got 'loss'": lambda: AutoStrength(Regularizer(self.model, L2(0.1)), HELD_OUT, nn.MSELoss()),
            "strength must be > 0": lambda: AutoStrength(
                Regularizer(self.model, L2(0.0), mode="prox"), HELD_OUT, nn.MSELoss()
            ),
            "at least one": lambda: AutoStrength(decay, (X[:0], Y[:0]), nn.MSELoss()),
            "as many targets": lambda: AutoStrength(decay, (X, Y[:3]), nn.MSELoss()),
            "act in each step": lambda: AutoStrength(
                Regularizer(self.model, L2(0.1), mode="prox", every=2), HELD_OUT, nn.MSELoss()
            ),
            "no schedule": lambda: AutoStrength(
                Regularizer(self.model, L2(0.1), mode="prox", schedule=linear(3)), HELD_OUT, nn.MSELoss()
            ),
            "must not be a stack": lambda: AutoStrength(
                Regularizer(Stacked([self.model]), L2(0.1), mode="prox"), HELD_OUT, nn.MSELoss()
            ),
            "of one model": lambda: AutoStrength(
                [decay, Regularizer(make_model(), L2(0.1), mode="prox")], HELD_OUT, nn.MSELoss()
            ),
            "lr must be": lambda: make(lr=0),
            "every must be": lambda: make(every=0),
            "per must be": lambda: make(per="layer"),
            "spread must be": lambda: make(spread=1.0),
            "bounds must be": lambda: make(bounds=(1.0, 0.1)),
            "a constraint has no strength": lambda: AutoStrength(
                Regularizer(self.model, MaxNorm(1.0), mode="prox"), HELD_OUT, nn.MSELoss()
            ).attach(torch.optim.SGD(self.model.parameters())),
            "batch_size must be": lambda: make(batch_size=0),
            "use mode 'decoupled'": lambda: AutoStrength(
                Regularizer(self.model, L2(0.1), mode="grad"), HELD_OUT, nn.MSELoss()
            ).attach(torch.optim.RMSprop(self.model.parameters())),
            "already attached": lambda: twice(make(), torch.optim.SGD(self.model.parameters())),
        }


def twice(auto, optimizer):
    with auto.attach(optimizer):
        auto.attach(optimizer)


@pytest.mark.parametrize("message", Refused().cases)
def test_a_mistake_is_one_clear_line(message):
    with pytest.raises(ValueError, match=message):
        Refused().cases[message]()


def test_a_loader_that_has_run_dry_is_told():
    model = make_model()
    optimizer = RMSpropW(model.parameters(), lr=0.01)
    auto = AutoStrength(Regularizer(model, L2(0.1), mode="prox"), iter([]), nn.MSELoss(), every=1).attach(optimizer)
    with pytest.raises(ValueError, match="at least one batch"):
        step(model, optimizer, slice(0, 8))
    auto.remove()
    with pytest.raises(TypeError, match="must be a Regularizer"):
        AutoStrength([], HELD_OUT, nn.MSELoss())


@pytest.mark.parametrize(
    ("make_optimizer", "mode"),
    [
        (partial(ProxAdam, penalty=L1(0.1)), "grad"),
        (partial(SGDW, lr=0.1, weight_decay=0.5, coupling="constant"), "decoupled"),
        (partial(torch.optim.RMSprop, weight_decay=0.1), "decoupled"),
        (partial(torch.optim.NAdam, weight_decay=0.1), "decoupled"),
    ],
)
def test_an_update_whose_derivative_is_not_known_is_refused(make_optimizer, mode):
    model = make_model()
    auto = AutoStrength(Regularizer(model, ElasticNet(0.1), mode=mode), HELD_OUT, nn.MSELoss())
    with pytest.raises(ValueError, match=f"mode '{mode}' needs"):
        auto.attach(make_optimizer(model.parameters()))
    assert not auto.regularizers[0]._optimizers


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


def test_a_held_out_loss_that_is_not_finite_is_told():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held_out = HELD_OUT[0] * math.nan, HELD_OUT[1]
    regularizer = Regularizer(model, L2(0.1), mode="decoupled")
    auto = AutoStrength(regularizer, held_out, nn.MSELoss(), every=1).attach(optimizer)
    with pytest.warns(UserWarning, match="must have a finite gradient, got nan: L2 stays as it is"):
        step(model, optimizer, slice(0, 16))
    assert_close(auto.strengths["L2"], 0.1)


def test_of_an_optimizer_that_steps_more_often_the_last_step_counts():
    model = make_model()
    often, seldom = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    regularizer = Regularizer(model, L2(0.1), mode="decoupled")
    auto = AutoStrength(regularizer, HELD_OUT, nn.MSELoss(), every=1).attach(often, seldom)
    F.mse_loss(model(X), Y).backward()
    for _ in range(3):
        often.step()
    assert [len(updates) for updates in auto._updates.values()] == [1]
    seldom.step()
    assert auto.strengths["L2"] != 0.1


def test_a_loader_that_shuffles_leaves_the_trainings_random_numbers_alone():
    def run(validation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        regularizer = Regularizer(model, L2(0.1), mode="decoupled")
        AutoStrength(regularizer, validation, nn.MSELoss(), bounds=(0.1, 0.1)).attach(optimizer)
        for _ in range(6):
            step(model, optimizer, slice(0, 16))
        return model.state_dict()

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*HELD_OUT), batch_size=10, shuffle=True)
    assert_bit_equal(run(loader), run(HELD_OUT))


def test_a_scale_for_each_parameter_must_name_them_all():
    regularizer = Regularizer(make_model(), L2(0.1))
    with pytest.raises(ValueError, match=r"must name each penalized parameter, 0\.weight, 2\.weight, got 0\.weight"):
        regularizer.scale = {"0.weight": 1.0}
    with pytest.raises(ValueError, match="finite number >= 0"):
        regularizer.scale = {"0.weight": 1.0, "2.weight": -1.0}
