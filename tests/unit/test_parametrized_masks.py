"""Modes that change stored tensors: of computed weights they take masked ones, and refuse all others."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.unit.parametrizing import MASKS, Same, Symmetric, by, each_layer, inputs_of, linear, weight_of
from torchreg import L1, GroupLasso, Nuclear, Regularizer, named
from torchreg.diagnostics import sparsity
from torchreg.tuning import strength_max, strength_path

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


class Lower(nn.Module):
    """A mask that is always the same."""

    def forward(self, w):
        return w.tril()


class Largest(nn.Module):
    """A mask that depends on the values."""

    def forward(self, w):
        return w * (w.abs() >= w.abs().median())


class Positive(nn.Module):
    def forward(self, w):
        return w.relu()


@each_layer
@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_modes_that_change_stored_tensors_refuse_what_they_cannot_change(make, mode, request):
    model = nn.Sequential(make())
    if request.node.callspec.id.split("-", 1)[1] in MASKS:
        Regularizer(model, L1(1.0), mode=mode)
        refused = GroupLasso(1.0) if mode == "prox" else Nuclear(1.0)
    else:
        refused = L1(1.0)
    with pytest.raises(ValueError, match=rf"mode '{mode}' .*0\.weight is computed from .*'grad' or 'loss'.*select"):
        Regularizer(model, refused, mode=mode)
    if isinstance(model[0], nn.Linear):
        model.append(linear())
        regularizer = Regularizer(model, refused, mode=mode, select=named("1.*"))
        assert [entry.name for entry in regularizer.entries if entry.is_penalized] == ["1.weight"]


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_a_frozen_weight_is_refused_when_it_is_trained_again(mode):
    model = nn.Sequential(parametrizations.weight_norm(linear()), by(Same)(linear()), linear())
    model[:2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(1.0), mode=mode).attach(optimizer)
    model[1].requires_grad_(True)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    start = model[1].weight.detach().clone()
    optimizer.step()
    less = (start.abs() - 0.1).clamp(min=0) * start.sign() if mode == "prox" else start - 0.1 * start.sign()
    torch.testing.assert_close(model[1].weight, less)
    assert [entry.name for entry in regularizer.entries if entry.is_penalized] == ["1.weight", "2.weight"]
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"0\.weight is computed from"):
        optimizer.step()


def test_a_step_refuses_a_weight_that_has_become_computed():
    model = nn.Sequential(linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(1.0), mode="prox").attach(optimizer)
    parametrizations.spectral_norm(model[0])
    model(inputs_of(model)).sum().backward()
    with pytest.raises(ValueError, match=r"0\.weight is computed from .* by the parametrization SpectralNorm"):
        optimizer.step()


@pytest.mark.parametrize(
    ("step", "is_right"), [(Same, True), (Lower, True), (Largest, False), (Positive, False), (Symmetric, False)]
)
def test_a_parametrization_is_a_mask_if_it_behaves_like_one(step, is_right):
    model = nn.Sequential(by(step)(linear()))
    if is_right:
        Regularizer(model, L1(1.0), mode="prox")
    else:
        with pytest.raises(ValueError, match=f"the parametrization {step.__name__}"):
            Regularizer(model, L1(1.0), mode="prox")


@pytest.mark.parametrize("change", [by(Lower), lambda layer: prune.l1_unstructured(layer, "weight", 5)])
def test_masked_weights_are_trained_as_by_a_loop_of_ones_own(change):
    torch.manual_seed(0)
    model = nn.Sequential(change(linear()))
    mask = model[0].weight != 0
    w, bias = (tensor.detach().clone().requires_grad_() for tensor in (model[0].weight, model[0].bias))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(0.4), mode="prox").attach(optimizer)
    for _ in range(5):
        x = torch.randn(6, 4).double()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        gradient, slope = torch.autograd.grad((x @ (w * mask).T + bias).square().mean(), (w, bias))
        moved = w - 0.1 * gradient
        w = (moved.sign() * (moved.abs() - 0.04).clamp(min=0)).detach().requires_grad_()
        bias = (bias - 0.1 * slope).detach().requires_grad_()
    torch.testing.assert_close(weight_of(model), w * mask)


def test_the_identity_allows_any_penalty():
    plain, same = nn.Sequential(linear()), nn.Sequential(linear())
    same.load_state_dict(plain.state_dict())
    by(Same)(same[0])
    for model in (plain, same):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Regularizer(model, GroupLasso(0.5), mode="prox").attach(optimizer)
        model(torch.ones(2, 4).double()).sum().backward()
        optimizer.step()
    assert torch.equal(plain[0].weight, same[0].weight)


def test_a_path_of_a_masked_model_is_that_of_the_kept_inputs():
    torch.manual_seed(0)
    x, y = torch.randn(20, 4).double(), torch.randn(20, 1).double()

    def masked():
        return prune.custom_from_mask(nn.Linear(4, 1), "weight", torch.tensor([[1, 0, 1, 1]]))

    kept = x[:, [0, 2, 3]]
    slopes = 2 / len(x) * kept.T @ (y - y.mean())  # of the mean square, where the weights are zero
    assert strength_max(masked(), L1(1.0), (x, y)).strength == pytest.approx(slopes.abs().max().item())
    options = {"penalty": L1(1.0), "strengths": [0.1], "folds": 2, "executor": "stacked", "verbose": False}
    ours = strength_path(masked, train=(x, y), **options)
    plain = strength_path(lambda: nn.Linear(3, 1), train=(kept, y), **options)
    assert ours.points[0].valid_loss.mean == pytest.approx(plain.points[0].valid_loss.mean)


def test_zeros_are_counted_in_the_weight_that_acts():
    model = nn.Sequential(prune.l1_unstructured(linear(), "weight", 12))
    assert sparsity(model) == {"0.weight": 0.75}
