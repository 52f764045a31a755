"""Each optimizer, coupling and form of decay against NumPy, under schedules of the learning rate and the momentum.

The updates are written from the papers and from torch's documentation, in double precision.
"""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from tests.helpers import assert_close
from tests.optimizers import COUPLINGS, DECOUPLED, FORMS, each_kernel
from torchreg.schedules import cosine

STEPS, DECAY = 30, 0.002
CURVATURE = np.diag([1.0, 2.0, 3.0, 0.5]) + 0.1
START, MINIMUM = np.array([1.0, -2.0, 0.5, -0.03]), np.array([0.5, 1.0, 0.0, 0.1])


def gradient(w, t):
    """Leads away from the start, then back and beyond."""
    return CURVATURE @ (w - (MINIMUM if t <= 8 else 2 * START - MINIMUM))


def a_weight():
    return nn.Parameter(torch.from_numpy(START.copy()))


def set_gradients(optimizer, t):
    for group in optimizer.param_groups:
        for w in group["params"]:
            w.grad = torch.from_numpy(gradient(w.detach().numpy(), t))


@pytest.fixture(autouse=True)
def double_by_default():
    torch.set_default_dtype(torch.float64)  # torch keeps step counts, and NAdam's product of momenta, in this dtype
    yield
    torch.set_default_dtype(torch.float32)


# -- the updates: of gradient g, what was (s, zero at first), the number of the step, and the group's options ---------


def sgd(g, s, t, lr, momentum, dampening, nesterov, **_):
    s["m"] = g if t == 1 else momentum * s["m"] + (1 - dampening) * g
    return lr * (g + momentum * s["m"] if nesterov else s["m"])


def adam(g, s, t, lr, betas, eps, amsgrad, **_):
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g**2
    s["largest"] = np.maximum(s["largest"], s["v"])
    v = s["largest"] if amsgrad else s["v"]
    return lr * s["m"] / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def rmsprop(g, s, t, lr, alpha, eps, momentum, centered, **_):
    s["v"] = alpha * s["v"] + (1 - alpha) * g**2
    s["mean"] = alpha * s["mean"] + (1 - alpha) * g
    v = s["v"] - s["mean"] ** 2 if centered else s["v"]
    s["m"] = momentum * s["m"] + g / (np.sqrt(v) + eps)
    return lr * s["m"]


def adagrad(g, s, t, lr, lr_decay, eps, **_):
    s["sum"] = s["sum"] + g**2
    return lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["sum"]) + eps)


def nadam(g, s, t, lr, betas, eps, momentum_decay, **_):
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g**2
    now, then = (betas[0] * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    s["log product"] = s["log product"] + np.log(now)
    product = np.exp(s["log product"])
    m = then * s["m"] / (1 - product * then) + (1 - now) * g / (1 - product)
    return lr * m / (np.sqrt(s["v"] / (1 - betas[1] ** t)) + eps)


def radam(g, s, t, lr, betas, eps, **_):
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g**2
    m, longest = s["m"] / (1 - betas[0] ** t), 2 / (1 - betas[1]) - 1
    length = longest - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
    if length <= 5:
        return lr * m
    variance = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return lr * m * np.sqrt(variance) * np.sqrt(1 - betas[1] ** t) / (np.sqrt(s["v"]) + eps)


def adamax(g, s, t, lr, betas, eps, **_):
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    s["u"] = np.maximum(betas[1] * s["u"], np.abs(g) + eps)
    return lr * s["m"] / (1 - betas[0] ** t) / s["u"]


UPDATES = {
    "SGDW": sgd,
    "AdamW": adam,
    "RMSpropW": rmsprop,
    "AdagradW": adagrad,
    "NAdamW": nadam,
    "RAdamW": radam,
    "AdamaxW": adamax,
}


# -- the decays -------------------------------------------------------------------------------------------------------


def rate(coupling, lr, peak):
    return {"lr": lr, "constant": 1.0, "corrected": lr**2 / peak}.get(coupling, lr / peak)


def threshold(x, t):
    return np.sign(x) * np.maximum(np.abs(x) - t, 0)


def step(w, update, amount, decay="L2", towards="zero", cautious=False):
    target = START if towards == "start" else 0
    if cautious:
        amount = amount * (update * (w - target) >= 0)
    if decay == "L2":
        return w - amount * (w - target) - update
    return target + threshold(w - update - target, amount)


def rising(optimizer, lr):
    for group in optimizer.param_groups:
        group["max_lr"] = 2 * lr
    return LambdaLR(optimizer, lambda t: (1 - t / STEPS) * (2 if t > 5 else 0.5))


SCHEDULERS = {
    "lambda": (rising, 2.0),
    "cosine": (lambda optimizer, lr: CosineAnnealingLR(optimizer, STEPS), 1.0),
    "one cycle": (
        lambda optimizer, lr: OneCycleLR(
            optimizer, 3 * lr, total_steps=STEPS + 1, cycle_momentum={"momentum", "betas"} & optimizer.defaults.keys()
        ),
        3.0,
    ),
}


@pytest.mark.parametrize(("ours", "base", "options"), DECOUPLED.values(), ids=DECOUPLED.keys())
@pytest.mark.parametrize(("make_scheduler", "peak"), SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("schedule", [None, cosine(steps=STEPS, end=0.2)], ids=["constant", "scheduled"])
@pytest.mark.parametrize("coupling", [*COUPLINGS, "timescale"])
def test_each_form_is_its_formula_under_a_schedule(ours, base, options, make_scheduler, peak, schedule, coupling):
    groups = [{"params": [a_weight()], **form} for form in FORMS.values()]
    strength = {"timescale": 1 / DECAY} if coupling == "timescale" else {"weight_decay": DECAY}
    optimizer = ours(groups, **options, **strength, coupling=coupling, decay_schedule=schedule)
    scheduler = make_scheduler(optimizer, options["lr"])
    expected, memories = [START] * len(FORMS), [defaultdict(float) for _ in FORMS]
    for t in range(1, STEPS + 1):
        for i, (form, group) in enumerate(zip(FORMS.values(), optimizer.param_groups, strict=True)):
            amount = rate(coupling, group["lr"], peak * options["lr"]) * DECAY * (schedule(t - 1) if schedule else 1)
            update = UPDATES[ours.__name__](gradient(expected[i], t), memories[i], t, **group)
            expected[i] = step(expected[i], update, amount, **form)
        set_gradients(optimizer, t)
        optimizer.step()
        scheduler.step()
    actual = {name: group["params"][0].detach() for name, group in zip(FORMS, optimizer.param_groups, strict=True)}
    assert_close(actual, dict(zip(FORMS, map(torch.from_numpy, expected), strict=True)))
    assert len({tuple(w.tolist()) for w in actual.values()}) == len(FORMS)  # each form does something of its own


@each_kernel
def test_the_implementations_agree_on_each_coupling_and_form(ours, base, options):
    results = []
    for implementation in (options, {**options, "foreach": False, **({"fused": False} if "fused" in options else {})}):
        groups = [
            {"params": [a_weight(), a_weight()], "coupling": coupling, **form}
            for coupling in COUPLINGS
            for form in FORMS.values()
        ]
        optimizer = ours(groups, **implementation, weight_decay=DECAY)
        scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
        for t in range(7, 11):
            set_gradients(optimizer, t)
            optimizer.step()
            scheduler.step()
        results.append([w.detach() for group in optimizer.param_groups for w in group["params"]])
    assert_close(*results)
