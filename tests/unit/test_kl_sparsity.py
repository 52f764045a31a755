"""The sparsity of activations: the divergence that other libraries compute, also for dead and saturated units."""

import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, kl_divergence

from tests.helpers import assert_close, assert_differs, make_data
from torchreg import ActivityRegularizer, KLSparsity

SQUASHES = {"none": lambda a: a, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
each_squash = pytest.mark.parametrize("squash", SQUASHES)


@each_squash
@pytest.mark.parametrize("shape", [(8,), (8, 5), (8, 3, 2, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("target", [0.05, 0.5])
def test_the_divergence_is_that_of_torchs_bernoulli_variables(squash, shape, target):
    activation = torch.rand(shape, dtype=torch.float64)
    means = SQUASHES[squash](activation).mean(0)
    expected = 0.3 * kl_divergence(Bernoulli(torch.full_like(means, target)), Bernoulli(means)).sum()
    assert_close(KLSparsity(0.3, target, squash).value(activation) / len(activation), expected)


@each_squash
def test_the_gradient_of_the_divergence_is_autograds(squash):
    penalty, activation = KLSparsity(0.3, 0.1, squash), torch.rand(8, 5, dtype=torch.float64)
    activation[:, 1:3] = torch.tensor([0.0, 1.0])  # two units at the ends
    leaf = activation.clone().requires_grad_()
    penalty.value(leaf).backward()
    assert_close(penalty.gradient(activation), leaf.grad)
    assert torch.autograd.gradcheck(penalty.value, torch.rand(4, 3, dtype=torch.float64, requires_grad=True) / 2 + 0.2)


@each_squash
def test_the_divergence_is_zero_at_the_target_and_positive_elsewhere(squash):
    def cost(mean):
        unsquashed = {"none": lambda m: m, "sigmoid": torch.logit, "tanh": torch.atanh}[squash](mean)
        return KLSparsity(1.0, 0.2, squash).value(unsquashed.expand(4, 1)).item()

    means = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    costs = [cost(mean) for mean in means]
    assert_close(min(costs), cost(torch.tensor(0.2, dtype=torch.float64)))
    assert_close(min(costs), 0.0)
    assert sum(c > 1e-6 for c in costs) == 18


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_dead_or_a_saturated_unit_costs_a_finite_amount_and_has_no_gradient(dtype, end):
    penalty, activation = KLSparsity(0.5), torch.full((4, 3), end, dtype=dtype)
    assert 0 < penalty.value(activation) < 1000
    assert penalty.value(activation).dtype == dtype
    assert not penalty.gradient(activation).any()


def test_an_activity_regularizer_draws_sigmoid_units_to_the_target():
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()).double()
    x, _ = make_data()
    activity = ActivityRegularizer(model, KLSparsity(1.0, target=0.2), nn.Sigmoid)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        model(x)
        activity.value().backward()
        optimizer.step()
    assert_close(model(x).mean(0), torch.full((5,), 0.2, dtype=torch.float64), tolerance=1e-3)


def test_activations_outside_of_the_unit_interval_are_refused():
    activation = torch.tensor([[-0.5, 0.5], [0.0, 2.0]])
    with pytest.raises(ValueError, match=r"activations must be in \[0, 1\], got -0\.5 to 2: use squash='sigmoid'"):
        KLSparsity(1.0).value(activation)
    with pytest.raises(ValueError, match=r"activations must be >= 0, got -0\.5 to 2: squash='sigmoid' takes any"):
        KLSparsity(1.0, squash="tanh").gradient(activation)
    assert KLSparsity(1.0, squash="sigmoid").value(activation) > 0


@each_squash
def test_on_another_device_no_step_waits_for_a_value(squash):
    """A tensor on the device ``meta`` has none: to read one raises."""
    penalty, activation = KLSparsity(1.0, squash=squash), torch.empty(3, 2, device="meta", requires_grad=True)
    penalty.value(activation).backward()
    assert activation.grad.is_meta
    assert penalty.gradient(activation.detach()).is_meta


@pytest.mark.parametrize("squash", ["none", "tanh"])
def test_where_a_step_would_wait_the_value_of_a_refused_activation_is_nan(squash, monkeypatch):
    penalty, inside = KLSparsity(1.0, squash=squash), torch.tensor([[0.5, 0.5], [0.0, 0.25]])
    expected = penalty.value(inside), penalty.gradient(inside)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close((penalty.value(inside), penalty.gradient(inside)), expected)
    outside = inside.clone().fill_diagonal_(-0.5).requires_grad_()
    value = penalty.value(outside)
    value.backward()
    assert value.isnan()
    assert outside.grad.diag().isnan().all()
    assert penalty.gradient(outside.detach()).isnan().all()


def test_means_of_half_precision_are_taken_in_single_precision():
    activation = torch.full((200_000, 1), 0.25, dtype=torch.float16)  # their sum is beyond float16
    value = KLSparsity(1e-3, target=0.5).value(activation)
    assert_close(value.double(), KLSparsity(1e-3, target=0.5).value(activation.double()), tolerance=1e-3)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, float("nan")])
def test_a_target_that_no_mean_could_meet_is_refused(target):
    with pytest.raises(ValueError, match=r"KLSparsity: target must be in \(0, 1\), got"):
        KLSparsity(1.0, target)


def test_an_unknown_squash_is_refused():
    with pytest.raises(ValueError, match="squash must be one of none, sigmoid, tanh, got 'relu'"):
        KLSparsity(1.0, squash="relu")


def test_the_divergence_is_a_penalty_like_the_others():
    penalty = KLSparsity(0.1, target=0.2)
    assert 0.5 * penalty == KLSparsity(0.05, target=0.2)
    assert penalty + penalty == KLSparsity(0.2, target=0.2)
    assert repr(penalty) == "KLSparsity(0.1, target=0.2, squash='none')"
    assert pickle.loads(pickle.dumps(penalty)) == penalty
    assert_differs(KLSparsity(0.1, 0.3).value(torch.full((2, 2), 0.5)), penalty.value(torch.full((2, 2), 0.5)))
