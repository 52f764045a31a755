"""Whatever takes a penalty says what to write in the place of a class or of a list."""

import pytest
import torch
from torch import nn

from torchreg import L1, L2, ActivityRegularizer, Regularizer
from torchreg.optim import ProxAdam, ProxSGD
from torchreg.penalties import Effective
from torchreg.tuning import strength_max, strength_path


def pair():
    return torch.zeros(4, 2), torch.zeros(4, 1)


TAKERS = {
    "Regularizer": lambda penalty: Regularizer(nn.Linear(2, 1), penalty),
    "ActivityRegularizer": lambda penalty: ActivityRegularizer(nn.Linear(2, 1), penalty),
    "Effective": lambda penalty: Effective(penalty, lambda layer: layer.weight),
    "ProxSGD": lambda penalty: ProxSGD(nn.Linear(2, 1).parameters(), penalty, lr=0.1),
    "ProxAdam": lambda penalty: ProxAdam(nn.Linear(2, 1).parameters(), penalty),
    "strength_max": lambda penalty: strength_max(nn.Linear(2, 1), penalty, pair()),
    "strength_path": lambda penalty: strength_path(lambda: nn.Linear(2, 1), penalty, pair(), pair()),
}


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize(
    ("penalty", "told"),
    [
        (L2, r"got the class L2: give it a strength, as in L2\(1e-4\)"),
        ([L1(0.1), L2(0.1)], r"got a list: add penalties up, as in L1\(1e-5\) \+ L2\(1e-4\)"),
        (nn.Linear, "got the class Linear"),
        (nn.Linear(2, 2), "got a Linear"),
        (0.1, r"got 0\.1"),
        (None, "got None"),
    ],
    ids=["a class", "a list", "another class", "a module", "a number", "none"],
)
def test_what_is_no_penalty_is_told_with_what_to_write(take, penalty, told):
    with pytest.raises(TypeError, match=rf"{told}\Z"):
        take(penalty)
