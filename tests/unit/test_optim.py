"""The decoupled optimizers' arithmetic: torch's own without decay, the documented one with it, in each group.

Each coupling and form is compared with NumPy in ``tests/oracle/test_couplings.py``.
"""

import contextlib
import math
import pickle
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from tests.helpers import assert_bit_equal, assert_close, make_model, train, weights_of
from tests.optimizers import COUPLINGS, FORMS, KERNELS, each_coupling, each_decoupled, each_kernel, undecayed
from tests.unit.training import a_weight, one_step
from torchreg import L1
from torchreg.optim import SGDW, AdamW, DecoupledDecay, NAdamW, ProxSGD, RAdamW, decoupled

# -- against torch's own optimizers -------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_decay_it_is_its_base_to_the_bit_in_every_coupling_and_form(ours, base, options, dtype):
    results = []
    for kind, forms in ((ours, FORMS.values()), (partial(undecayed, base), [{}] * len(FORMS))):
        weights = [nn.Parameter(torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3)) for _ in forms]
        groups = [{"params": [w], **form} for w, form in zip(weights, forms, strict=True)]
        if kind is ours:
            groups = [{**group, "coupling": COUPLINGS[i % 4], "weight_decay": 0} for i, group in enumerate(groups)]
        optimizer = kind(groups, **options)
        for step in range(30):
            for w in weights:
                w.grad = (w.detach() - math.sin(step)).tanh()
            optimizer.step()
        results.append(weights)
    assert_bit_equal(*results)


@pytest.mark.parametrize(
    ("ours", "base", "options"),
    [row for row in KERNELS.values() if row[0] in (AdamW, NAdamW, RAdamW)],
    ids=[name for name, row in KERNELS.items() if row[0] in (AdamW, NAdamW, RAdamW)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coupled_to_the_learning_rate_it_is_torchs_own_to_the_bit(ours, base, options, dtype):
    results = []
    for kind, extra in ((ours, {}), (base, {} if ours is AdamW else {"decoupled_weight_decay": True})):
        model = make_model(dtype=dtype)
        optimizer = kind(model.parameters(), weight_decay=0.1, **options, **extra)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for _ in range(20):
            train(model, optimizer, steps=1)
            scheduler.step()
        results.append(weights_of(model))
    assert_bit_equal(*results)


@each_decoupled
def test_a_groups_of_other_coupling_does_not_change_the_rest(ours, base, options):
    results = []
    for coupling in ("lr", "constant"):
        model = make_model()
        other = {"params": [a_weight()], "coupling": coupling}
        optimizer = ours([{"params": list(model.parameters())}, other], **options, weight_decay=0.1)
        results.append(train(model, optimizer, steps=20))
    assert_close(*results)


# -- the couplings ------------------------------------------------------------------------------------------------


def test_the_documented_table_is_what_a_thousand_steps_leave():
    lines = DecoupledDecay.__doc__.split("coupling       lr = 1 ")[1].splitlines()[1:]
    rows = [re.findall(r'"(\w+)"\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)', line) for line in lines]
    documented = {row[0][0]: [float(number) for number in row[0][1:]] for row in rows if row}
    assert documented.keys() == {*COUPLINGS, "timescale"}
    for column, (lr, falls) in enumerate([(1.0, False), (0.1, False), (1.0, True)]):
        groups = [{"params": [a_weight()], "coupling": coupling, "timescale": 1000} for coupling in documented]
        optimizer = SGDW(groups, lr=lr, weight_decay=0.001)
        scheduler = LambdaLR(optimizer, lambda step, falls=falls: 1 - step / 1000 if falls else 1.0)
        for _ in range(1000):
            one_step(optimizer)
            scheduler.step()
        for group, numbers in zip(optimizer.param_groups, documented.values(), strict=True):
            assert f"{group['params'][0].item():.3f}" == f"{numbers[column]:.3f}"


@pytest.mark.parametrize(
    ("coupling", "remaining"), [("lr", 0.8), ("independent", 0.6), ("constant", 0.6), ("corrected", 0.8)]
)
def test_only_couplings_lr_and_corrected_depend_on_the_learning_rate(coupling, remaining):
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
        {"params": [second], "coupling": "constant"},
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


@each_coupling
def test_the_largest_rate_of_a_cycle_is_its_reference(coupling):
    w = a_weight()
    optimizer = SGDW([w], lr=123.0, momentum=0.9, weight_decay=0.1, coupling=coupling)
    scheduler = OneCycleLR(optimizer, max_lr=0.5, total_steps=10, pct_start=0.2)
    remaining = 1.0
    for _ in range(9):
        lr = optimizer.param_groups[0]["lr"]
        rate = {"lr": lr, "independent": lr / 0.5, "constant": 1.0, "corrected": lr**2 / 0.5}[coupling]
        remaining *= 1 - 0.1 * rate
        one_step(optimizer)
        scheduler.step()
    assert_close(w.item(), remaining)


def test_the_initial_rate_is_the_schedulers_where_there_is_one():
    w = a_weight()
    optimizer = SGDW([w], lr=0.4, weight_decay=0.4, coupling="independent")
    optimizer.param_groups[0]["lr"] = 0.2
    one_step(optimizer)
    assert_close(w.item(), 1 - 0.4 / 2)
    LambdaLR(optimizer, lambda step: 1.0)
    one_step(optimizer)
    assert_close(w.item(), (1 - 0.4 / 2) * (1 - 0.4))


@pytest.mark.parametrize("kind", [SGDW, AdamW, decoupled(torch.optim.Adadelta)])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_schedule_is_another_name_of_independent(kind, form):
    results = []
    for coupling in ("independent", "schedule"):
        w = nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = kind([w], lr=0.3, weight_decay=0.1, coupling=coupling, **form)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for gradient in (0.5, -0.3, 0.1):
            one_step(optimizer, gradient)
            scheduler.step()
        results.append(w.detach())
    assert_bit_equal(*results)


# -- what is refused ----------------------------------------------------------------------------------------------

BAD = [
    (
        {"coupling": "linear"},
        "coupling must be one of lr, independent, schedule, constant, corrected, timescale, got 'linear'",
    ),
    ({"coupling": None}, "coupling must be one of lr, independent, schedule, constant, corrected, timescale, got None"),
    ({"decay": "l2"}, "decay must be one of L2, L1, got 'l2'"),
    ({"towards": "init"}, "towards must be one of zero, start, got 'init'"),
    ({"weight_decay": -0.1}, "weight_decay.*-0.1"),
    ({"weight_decay": float("nan")}, "weight_decay.*nan"),
    ({"weight_decay": float("inf")}, "weight_decay must be finite and >= 0, got inf"),
    ({"weight_decay": torch.tensor(-0.1)}, "weight_decay"),
    ({"weight_decay": torch.tensor(float("nan"))}, "weight_decay"),
    *(
        (
            {"coupling": name, "lr": 0.0, "weight_decay": 0.1},
            f"coupling '{name}' divides by the initial lr, which must be > 0, got 0",
        )
        for name in ("schedule", "corrected")
    ),
    *(
        ({"coupling": name, "weight_decay": 1.5}, f"weight_decay must be at most 1 with coupling '{name}', .*got 1.5")
        for name in ("constant", "independent", "schedule")
    ),
]
each_kind = pytest.mark.parametrize("kind", [SGDW, AdamW, decoupled(torch.optim.Rprop)], ids=lambda it: it.__name__)
each_bad = pytest.mark.parametrize(("bad", "message"), BAD, ids=lambda value: str(value)[:50])


def refused(error, message):
    return pytest.raises(error, match=rf"\A[^\n]*{message}[^\n]*\Z")  # one line


@each_kind
@each_bad
def test_bad_options_are_refused_in_one_line(kind, bad, message):
    with refused(ValueError, message):
        kind([a_weight()], **{"lr": 0.1, **bad})


@each_kind
@each_bad
def test_a_group_that_is_refused_leaves_nothing_behind(kind, bad, message):
    optimizer = kind([a_weight()], lr=0.1, weight_decay=0.1)
    before = str(optimizer.state_dict())
    with refused(ValueError, message):
        optimizer.add_param_group({"params": [a_weight()], "towards": "start", **bad})
    assert str(optimizer.state_dict()) == before
    one_step(optimizer)


@each_decoupled
def test_an_option_that_would_couple_the_decay_is_refused(ours, base, options):
    with refused(ValueError, f"{ours.__name__}: decoupled_weight_decay must not be given, got True: .* coupling"):
        ours([a_weight()], **options, decoupled_weight_decay=True)


@each_decoupled
def test_what_is_no_schedule_is_refused(ours, base, options):
    with refused(TypeError, f"{ours.__name__}: decay_schedule must be a function of the step number, got 0.5"):
        ours([a_weight()], **options, decay_schedule=0.5)


def test_couplings_that_do_not_divide_by_the_rate_take_one_of_zero_and_only_independence_bounds_the_decay():
    SGDW([a_weight()], lr=0.0, coupling="lr")
    SGDW([a_weight()], lr=0.0, coupling="constant")
    AdamW([a_weight()], weight_decay=1.5, coupling="lr")


class Required(torch.optim.SGD):
    """An optimizer whose decay has no default."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


@pytest.mark.parametrize("coupling", ["independent", "schedule", "constant"])
def test_a_default_decay_that_the_learning_rate_would_multiply_is_not_the_share_of_a_step(coupling):
    message = f"AdamW: weight_decay must be given with coupling '{coupling}', .* the default 0.01 is for coupling 'lr'"
    group = {"params": [a_weight()], "coupling": coupling}
    for wrong in (
        lambda: AdamW([a_weight()], coupling=coupling),
        lambda: AdamW(nn.Linear(2, 2), coupling=coupling),
        lambda: AdamW([group]),
        lambda: AdamW([{"params": [a_weight()], "weight_decay": 0.1}, {"params": [a_weight()]}], coupling=coupling),
        lambda: AdamW([a_weight()]).add_param_group(group),
    ):
        with refused(ValueError, message):
            wrong()
    for decay in (0.0, 1e-4, {"*": 1e-4}):
        given = AdamW(nn.Linear(2, 2), weight_decay=decay, coupling=coupling)
        pickle.loads(pickle.dumps(given)).add_param_group({"params": [a_weight()]})
    AdamW([a_weight()], 1e-3, (0.9, 0.99), 1e-8, 1e-4, coupling=coupling)
    AdamW([{**group, "weight_decay": 1e-4}])
    SGDW([a_weight()], coupling=coupling)  # has no decay by default
    decoupled(Required)([a_weight()], lr=0.1, weight_decay=0.1, coupling=coupling)


def test_the_schedule_may_begin_at_zero():
    w = a_weight()
    optimizer = SGDW([w], lr=0.1, weight_decay=0.4, coupling="independent")
    scheduler = LambdaLR(optimizer, lambda step: step / 2)  # a warm-up
    for expected in (1.0, 0.8, 0.48):
        one_step(optimizer)
        assert_close(w.item(), expected)
        scheduler.step()


# -- learning rates above the largest ---------------------------------------------------------------------------------

RISING = {
    "CyclicLR": lambda it: CyclicLR(it, base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False),
    "LambdaLR": lambda it: LambdaLR(it, lambda step: 1.0 + step),
    "MultiplicativeLR": lambda it: MultiplicativeLR(it, lambda step: 1.1),
    "StepLR": lambda it: StepLR(it, step_size=1, gamma=2.0),
    "by hand": lambda it: SimpleNamespace(
        step=lambda: [group.update(lr=group["lr"] * 1.01) for group in it.param_groups]
    ),
}
WITHIN = {
    "LinearLR": lambda it: LinearLR(it, 0.1, total_iters=7),
    "cosine": lambda it: CosineAnnealingLR(it, 5),
    "restarts": lambda it: CosineAnnealingWarmRestarts(it, 3),
    "warm-up": lambda it: SequentialLR(it, [LinearLR(it, 0.3, total_iters=3), CosineAnnealingLR(it, 9)], [3]),
    "one cycle": lambda it: OneCycleLR(it, 0.5, total_steps=40, cycle_momentum=False),
}
each_rate = pytest.mark.parametrize("rate", [float, torch.tensor, lambda lr: torch.tensor([lr])])


@pytest.mark.parametrize("kind", [SGDW, AdamW, partial(ProxSGD, penalty=L1(0.0), biases=True)])
@pytest.mark.parametrize("coupling", ["independent", "schedule", "corrected"])
@pytest.mark.parametrize("make_scheduler", RISING.values(), ids=RISING.keys())
@each_rate
def test_a_rate_above_the_largest_is_refused_before_anything_changes_and_max_lr_serves_it(
    kind, coupling, make_scheduler, rate
):
    first, w = a_weight(), a_weight()
    groups = [{"params": [first], "coupling": "lr"}, {"params": [w], "coupling": coupling}]
    optimizer = kind(groups, lr=rate(0.1), weight_decay=0.2)
    scheduler = make_scheduler(optimizer)

    def state():
        return first.item(), w.item(), optimizer.param_groups[1]["weight_decay"]

    for _ in range(3):
        before = state()
        with contextlib.suppress(ValueError):
            one_step(optimizer)
        if state() == before:
            break
        scheduler.step()
    with refused(ValueError, f"lr must not be above .* {coupling!r}, .*: set 'max_lr' in the parameter group"):
        one_step(optimizer)
    assert state() == before
    optimizer.param_groups[1]["max_lr"] = 1.0
    one_step(optimizer)
    assert 0.8 * before[1] < w.item() < before[1]


@pytest.mark.parametrize("coupling", ["independent", "corrected"])
@pytest.mark.parametrize("make_scheduler", WITHIN.values(), ids=WITHIN.keys())
@each_rate
def test_a_schedule_that_only_reaches_its_largest_rate_goes_on(coupling, make_scheduler, rate):
    optimizer = SGDW([w := a_weight()], lr=rate(0.1), weight_decay=0.02, coupling=coupling)
    scheduler = make_scheduler(optimizer)
    for _ in range(30):
        one_step(optimizer)
        scheduler.step()
    assert 0.98**30 <= w.item() < 1


@pytest.mark.parametrize("coupling", ["lr", "constant"])
def test_couplings_that_do_not_divide_by_the_largest_rate_take_every_rate(coupling):
    optimizer = SGDW([a_weight()], lr=0.1, weight_decay=0.1, coupling=coupling)
    scheduler = RISING["LambdaLR"](optimizer)
    for _ in range(5):
        one_step(optimizer)
        scheduler.step()


def test_without_decay_every_rate_is_taken():
    optimizer = SGDW([a_weight()], lr=0.1, weight_decay=0.0, coupling="independent")
    optimizer.param_groups[0]["lr"] = 1.0
    one_step(optimizer)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf"), 1.5])
def test_a_decay_that_is_set_later_is_checked_in_the_step(decay):
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.1, coupling="constant")
    optimizer.param_groups[0]["weight_decay"] = decay
    with refused(ValueError, "weight_decay must be"):
        one_step(optimizer)
    assert w.item() == 1


def test_a_decay_that_its_schedule_raises_above_1_is_refused():
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.6, coupling="constant", decay_schedule=lambda t: 2.0)
    with refused(ValueError, "weight_decay must be at most 1 .*got 1.2"):
        one_step(optimizer)
    assert w.item() == 1
