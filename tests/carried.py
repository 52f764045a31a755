"""Trainings with regularizers that have a state, which must travel in the checkpoints of the optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import FEATURES, OUTPUTS, make_data, make_model, through_a_file, train
from torchreg import L1, L2, L2SP, DropoutSchedule, Regularizer, linear
from torchreg.nn import ConcreteDropout, Dropout, seed_dropout
from torchreg.optim import ProxAdam, ProxSGD, TargetSparsity
from torchreg.tuning import AutoRate, AutoStrength

STEPS = 16  # of a whole training
Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def network() -> nn.Sequential:
    """Its dropout has a generator, whose state is in the model's: not every trainer saves torch's own."""
    model = make_model().insert(2, Dropout(0.5))
    seed_dropout(model, 7)
    return model


def concrete() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        linear = nn.Linear(FEATURES, OUTPUTS, dtype=torch.float64)
    return nn.Sequential(ConcreteDropout(linear, p=0.3))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for name, p in model.named_parameters() if "logit_p" not in name], lr=0.05)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def prox(cls: Any) -> Optimizers:
    return lambda model: cls(model.parameters(), L1(1e-3), lr=0.05)


def scheduled(model: nn.Module, optimizer: Any, mode: str = "prox", penalty: Any = None) -> Any:
    return Regularizer(model, penalty or L1(0.1), mode=mode, schedule=linear(STEPS)).attach(optimizer)


def fading_dropout(model: nn.Module, optimizer: Any) -> Any:
    return DropoutSchedule(model, linear(STEPS)).attach(optimizer)


def tuned(model: nn.Module, optimizer: Any, per: str = "parameter", examples: Any = None) -> Any:
    regularizer = Regularizer(model, L2(0.1), mode="decoupled")
    held_out = make_data() if examples is None else examples
    return AutoStrength(regularizer, held_out, nn.MSELoss(), per=per, batch_size=5).attach(optimizer)


def tuned_over_batches(model: nn.Module, optimizer: Any) -> Any:
    x, y = make_data()
    return tuned(model, optimizer, "regularizer", list(zip(x.split(5), y.split(5), strict=True)))


def tuned_rate(model: nn.Module, optimizer: Any) -> Any:
    data = make_data()
    return AutoRate(model, data, data, nn.MSELoss(), every=2, batch_size=5).attach(optimizer)


def steered(model: nn.Module, optimizer: Any) -> Any:
    return TargetSparsity(optimizer, 0.5, steps=STEPS)


def tensors(step: int) -> torch.Tensor:
    return torch.tensor(0.8**step, dtype=torch.float64)


def by_tensors(model: nn.Module, optimizer: Any) -> Any:
    return Regularizer(model, L2(0.1), mode="decoupled", schedule=tensors).attach(optimizer)


@dataclass(frozen=True)
class Kind:
    """What makes the optimizer, and what attaches each object to it."""

    make_optimizer: Optimizers
    attach: tuple[Callable[..., Any], ...]
    make_model: Callable[[], nn.Module] = network


KINDS = {
    "schedule-grad": Kind(adam, (partial(scheduled, mode="grad"),)),
    "schedule-decoupled": Kind(sgd, (partial(scheduled, mode="decoupled"),)),
    "schedule-prox": Kind(adam, (scheduled,)),
    "schedule of tensors": Kind(sgd, (by_tensors,)),
    "reference": Kind(adam, (partial(scheduled, mode="decoupled", penalty=L2SP(0.5)),)),
    "dropout": Kind(sgd, (fading_dropout,)),
    "sparsity-SGD": Kind(prox(ProxSGD), (steered,)),
    "sparsity-Adam": Kind(prox(ProxAdam), (steered,)),
    "strength": Kind(adam, (tuned,)),
    "strength over batches": Kind(adam, (tuned_over_batches,)),
    "rate": Kind(adam, (tuned_rate,), concrete),
    "all of an Adam": Kind(adam, (partial(scheduled, mode="grad"), scheduled, fading_dropout, tuned)),
    "all of a ProxSGD": Kind(prox(ProxSGD), (partial(scheduled, mode="grad"), fading_dropout, steered)),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
HALF = STEPS // 2
KEY = "torchreg"


def begun(kind: Kind, *, attached: bool = True) -> tuple[Any, Any, list[Any]]:
    model = kind.make_model()
    optimizer = kind.make_optimizer(model)
    owners = [attach(model, optimizer) for attach in kind.attach] if attached else []
    return model, optimizer, owners


def half(model: nn.Module, optimizer: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """The seed serves layers that have no generator of their own."""
    torch.manual_seed(seed)
    return train(model, optimizer, HALF)


def without_entries(state: Any) -> Any:
    for group in state["param_groups"]:
        group.pop(KEY, None)
    return state


def halfway(kind: Kind) -> tuple[list[Any], dict[str, torch.Tensor], list[Any]]:
    """A training at half its steps; what it saved; and its weights at the end."""
    model, optimizer, owners = begun(kind)
    half(model, optimizer)
    saved = through_a_file([model.state_dict(), optimizer.state_dict()])
    return saved, half(model, optimizer, seed=1), [owner.state_dict() for owner in owners]
