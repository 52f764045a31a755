"""Whatever takes a penalty says what to write in the place of a class or of a list."""

import pytest
import torch
from torch import nn

from torchreg import L1, L2, ActivityRegularizer, MaxNorm, Penalty, Regularizer
from torchreg.optim import ProxAdam, ProxSGD
from torchreg.penalties import Effective, NofM, NonNegative
from torchreg.tuning import AutoStrength, strength_max, strength_path


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
        (MaxNorm, r"got the class MaxNorm: call it, as in MaxNorm\(max_norm\)"),
        (NofM, r"got the class NofM: call it, as in NofM\(n, m\)"),
        (NonNegative, r"got the class NonNegative: call it, as in NonNegative\(\)"),
        (Penalty, r"got the class Penalty: give it one of its subclasses, such as L1\(1e-4\)"),
        ("L1" * 1000, rf"got '{'L1' * 39}L\.\.\."),
        (nn.Linear, "got the class Linear"),
        (nn.Linear(2, 2), "got a Linear"),
        (0.1, r"got 0\.1"),
        (None, "got None"),
    ],
    ids=[
        "a class",
        "a list",
        "a class with a bound",
        "a class with two numbers",
        "a class with nothing to choose",
        "an abstract class",
        "a long text",
        "another class",
        "a module",
        "a number",
        "none",
    ],
)
def test_what_is_no_penalty_is_told_with_what_to_write(take, penalty, told):
    with pytest.raises(TypeError, match=rf"{told}\Z"):
        take(penalty)


def test_of_several_patterns_the_wrong_one_is_named():
    with pytest.raises(TypeError, match=r"such as L2\(1e-4\) for '\*\.bias', got 0\.1\Z"):
        Regularizer(nn.Linear(2, 1), {"weight": L1(0.1), "*.bias": 0.1})


@pytest.mark.parametrize(
    ("given", "told"), [(torch.tensor(0.1), "a Tensor"), (b"L1", "a bytes"), ([L1], "the class L1"), (None, "None")]
)
def test_what_is_no_regularizer_is_told(given, told):
    with pytest.raises(TypeError, match=rf"must be a Regularizer or several, got {told}: the order is"):
        AutoStrength(given, [], nn.functional.mse_loss)


def test_a_class_is_no_predicate():
    with pytest.raises(TypeError, match=r"select must be a selector or a predicate on ParamInfo, got the class L1\Z"):
        Regularizer(nn.Linear(2, 1), L1(0.1), select=L1)
