"""Where the strengths that are tuned in training start, and which starts and settings are refused."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers import assert_close, make_model
from tests.unit.tuning import (
    HELD_OUT,
    X,
    Y,
    step,
)
from torchreg import L1, L2, ElasticNet, MaxNorm, Regularizer, Stacked, linear
from torchreg.optim import SGDW, ProxAdam, RMSpropW
from torchreg.tuning import AutoStrength

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


def test_a_scale_for_each_parameter_must_name_them_all():
    regularizer = Regularizer(make_model(), L2(0.1))
    with pytest.raises(ValueError, match=r"must name each penalized parameter, 0\.weight, 2\.weight, got 0\.weight"):
        regularizer.scale = {"0.weight": 1.0}
    with pytest.raises(ValueError, match="finite number >= 0"):
        regularizer.scale = {"0.weight": 1.0, "2.weight": -1.0}
