"""The losses of a stack are those of each member, also for inputs and targets of its own."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_close
from tests.unit.stacking import (
    MEMBERS,
    Y,
)
from torchreg import Stacked
from torchreg import nn as layers
from torchreg.nn import seed_dropout


@pytest.mark.parametrize(
    "criterion",
    [
        nn.functional.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()),
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]).double(), ignore_index=1, label_smoothing=0.2),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.MultiMarginLoss(),
        nn.MultiMarginLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()),
        nn.MSELoss(),
        nn.functional.mse_loss,
        nn.functional.huber_loss,
    ],
    ids=lambda criterion: getattr(criterion, "__name__", repr(criterion)),
)
def test_the_losses_are_those_of_the_criterion_for_each_member(criterion):
    outputs = torch.randn(4, 12, 3, dtype=torch.float64)
    is_regression = "mse" in str(criterion).lower() or "huber" in str(criterion)
    for targets in [torch.randn(12, 3).double()] if is_regression else [Y, Y.flip(0)]:
        found = Stacked([nn.Linear(1, 1)] * 4).per_member(criterion)(outputs, targets)
        assert_close(found, torch.stack([criterion(own, targets) for own in outputs]))


def test_soft_targets_and_maps_have_their_cross_entropies():
    losses = Stacked([nn.Linear(1, 1)] * 2).per_member(nn.CrossEntropyLoss())
    outputs, soft = torch.randn(2, 5, 3), torch.rand(5, 3).softmax(1)
    assert_close(losses(outputs, soft), torch.stack([nn.CrossEntropyLoss()(own, soft) for own in outputs]), 1e-6)
    maps, classes = torch.randn(2, 5, 3, 4, 4), torch.randint(3, (5, 4, 4))
    assert_close(losses(maps, classes), torch.stack([nn.CrossEntropyLoss()(own, classes) for own in maps]), 1e-6)


# -- inputs of each member's own ----------------------------------------------------------------------------------

OWN = {
    "a perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), layers.Dropout(0.5), nn.Linear(8, 3)),
    "all dropped": lambda: nn.Sequential(nn.Linear(6, 8), layers.Dropout(1.0), nn.Linear(8, 3)),
    "other noise": lambda: nn.Sequential(layers.GaussianDropout(0.3), nn.Linear(6, 8), layers.AlphaDropout(0.3)),
    "rows that drop together": lambda: nn.Sequential(nn.Linear(6, 8), layers.Dropout(0.5, noise_shape=(None, 1))),
    "with a normalization": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one after another"])
@pytest.mark.parametrize("make", OWN.values(), ids=OWN.keys())
def test_members_with_inputs_and_targets_of_their_own(make, vectorize):
    models = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        models.append(make().double())
        if any(getattr(module, "generator", 0) is None for module in models[-1].modules()):
            seed_dropout(models[-1], seed)
    stack = Stacked(models, vectorize=vectorize)
    x = torch.randn(MEMBERS, 5, 6, dtype=torch.float64)
    y = torch.randint(3, (MEMBERS, 5))
    y[0, :2] = -100
    for _ in range(3):  # with new masks each time
        losses = stack.per_member(nn.CrossEntropyLoss(), shared=False)(stack.each(x), y)
        alone = [
            nn.functional.cross_entropy(model(own), target) for model, own, target in zip(models, x, y, strict=True)
        ]
        assert_close(losses, torch.stack(alone), 1e-12)
    losses.sum().backward()
    torch.stack(alone).sum().backward()
    for name, param in stack.named_parameters():
        assert_close(param.grad, torch.stack([model.get_parameter(name).grad for model in models]), 1e-12)
    stack.eval()
    assert_close(stack.each(x), torch.stack([model.eval()(own) for model, own in zip(models, x, strict=True)]), 1e-12)


@pytest.mark.parametrize(
    "criterion",
    [
        *(nn.MSELoss(), nn.functional.mse_loss, nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(beta=0.3)),
        *(nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]))),
        *(nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 3.0])), nn.BCEWithLogitsLoss(torch.rand(5, 1))),
        *(nn.SoftMarginLoss(), nn.MultiLabelSoftMarginLoss(), nn.PoissonNLLLoss()),
    ],
    ids=lambda criterion: getattr(criterion, "__name__", repr(criterion)),
)
def test_losses_of_targets_of_their_own(criterion):
    outputs, targets = torch.randn(2, MEMBERS, 5, 3)
    targets = targets.abs() if isinstance(criterion, nn.PoissonNLLLoss) else targets.sign()
    losses = Stacked([nn.Linear(1, 1)] * MEMBERS).per_member(criterion, shared=False)(outputs, targets)
    assert_close(losses, torch.stack([criterion(o, t) for o, t in zip(outputs, targets, strict=True)]), 1e-6)


@pytest.mark.parametrize("shape", [(5, 6), (MEMBERS + 1, 5, 6), ()], ids=str)
def test_inputs_without_a_row_for_each_member_are_told(shape):
    with pytest.raises(ValueError, match=r"each\(\) takes tensors with a row for each of the 4 members, got one of"):
        Stacked([nn.Linear(6, 3)] * MEMBERS).each(torch.zeros(shape))
