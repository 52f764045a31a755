"""Penalties on derivatives by the inputs: closed forms of linear models, torch.func and finite differences."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model
from torchreg import L2, ActivityRegularizer, InputGradient, Jacobian, Stacked

X, Y = make_data()
CLASSES = Y.argmax(1)


def linear(inputs=6, outputs=3):
    torch.manual_seed(4)
    return nn.Linear(inputs, outputs, dtype=torch.float64)


def jacobians(model, x):
    return torch.func.vmap(torch.func.jacrev(lambda one: model(one[None])[0]))(x).flatten(2)


# -- Jacobian --------------------------------------------------------------------------------------------------------


def test_the_jacobian_of_a_linear_model_is_its_weight():
    model = linear()
    jacobian = Jacobian(model, 0.3, projections=None)
    model(X)
    jacobian.value().backward()
    assert_close(jacobian.value(), 0.15 * model.weight.square().sum())
    assert_close(model.weight.grad, 0.3 * model.weight)
    assert model.bias.grad is None


def test_the_exact_norm_is_that_of_torch_func_and_so_is_its_gradient():
    model = make_model()
    jacobian = Jacobian(model, 0.3, projections=None)
    model(X)
    value = jacobian.value()
    expected = 0.15 * jacobians(model, X).square().sum((1, 2)).mean()
    assert_close(value, expected)
    slopes = [
        torch.autograd.grad(one, list(model.parameters()), allow_unused=True, materialize_grads=True)
        for one in (value, expected)
    ]
    assert_close(*slopes)
    (whole,) = torch.autograd.functional.jacobian(lambda *x: model(*x).sum(0), (X,))  # of all examples at once
    assert_close(value, 0.15 * whole.square().sum() / len(X))


def test_images_and_maps_count_all_their_inputs_and_outputs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh()).double(), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    jacobian = Jacobian(model, 1.0, projections=None)
    model(x)
    value = jacobian.value()
    each = torch.func.vmap(torch.func.jacrev(lambda one: model(one[None])[0].flatten()))(x)
    assert_close(value, each.square().sum() / 2 / 4)


@pytest.mark.parametrize("projections", [1, 4])
def test_random_projections_estimate_the_norm_without_bias(projections):
    model = make_model()
    exact, draws = Jacobian(model, 1.0, projections=None), []
    estimate = Jacobian(model, 1.0, projections, generator=torch.Generator().manual_seed(0))
    model(X)
    draws = torch.stack([estimate.value().detach() for _ in range(2000)])
    error = draws.std() / 2000**0.5
    assert (draws.mean() - exact.value()).abs() < 4 * error
    assert error < 0.01 * exact.value()


@pytest.mark.parametrize("projections", [1, None])
def test_under_batch_normalization_the_norm_is_that_of_all_outputs_by_all_inputs(projections):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    jacobian = Jacobian(model, 1.0, projections, generator=torch.Generator().manual_seed(0))
    model(X[:5])
    draws = torch.stack([jacobian.value().detach() for _ in range(2000)])
    jacobian.remove()
    expected = torch.autograd.functional.jacobian(model, X[:5]).square().sum() / 2 / 5
    assert (draws.mean() - expected).abs() < 4 * draws.std() / 2000**0.5
    assert draws.std() < 3 * expected


def test_projections_divide_the_variance():
    model = make_model()
    model_variances = []
    for projections in (1, 4):
        estimate = Jacobian(model, 1.0, projections, generator=torch.Generator().manual_seed(0))
        model(X)
        model_variances.append(torch.stack([estimate.value().detach() for _ in range(1000)]).var())
    assert 3 < model_variances[0] / model_variances[1] < 5.3


def test_one_output_needs_no_chance():
    model = linear(outputs=1)
    jacobian = Jacobian(model, 0.3)
    model(X)
    assert_close(jacobian.value(), 0.15 * model.weight.square().sum(), tolerance=1e-6)


def test_a_generator_makes_the_directions_repeatable():
    model = make_model()
    values = []
    for seed in (1, 1, 2):
        jacobian = Jacobian(model, 1.0, generator=torch.Generator().manual_seed(seed))
        model(X)
        values.append(jacobian.value().detach())
    assert_bit_equal(values[0], values[1])
    assert_differs(values[0], values[2])


# -- the gradient of the loss ----------------------------------------------------------------------------------------


def test_the_input_gradient_of_a_linear_softmax_has_its_closed_form():
    model = linear()
    gradient = InputGradient(model, 0.3)
    loss = F.cross_entropy(model(X), CLASSES)
    each = (model(X).softmax(1) - F.one_hot(CLASSES, 3)) @ model.weight  # W^T (p - y)
    loss = F.cross_entropy(model(X), CLASSES)
    value, expected = gradient.value(loss), 0.15 * each.square().sum(1).mean()
    assert_close(value, expected)
    assert_close(*(torch.autograd.grad(one, list(model.parameters())) for one in (value, expected)))


def test_the_input_gradient_of_a_network_is_that_of_each_example_alone():
    model = make_model()
    gradient = InputGradient(model, 1.0)
    value = gradient.value(F.mse_loss(model(X), Y))
    slope = torch.func.grad(lambda x, y: F.mse_loss(model(x[None])[0], y))
    each = torch.func.vmap(slope)(X, Y)
    assert_close(value, each.square().sum() / 2 / len(X))
    step, direction = 1e-5, torch.randn_like(X[:1])
    with torch.no_grad():
        ends = [F.mse_loss(model(X[:1] + sign * step * direction), Y[:1]) for sign in (1, -1)]
    assert_close((ends[0] - ends[1]) / (2 * step), (each[0] * direction[0]).sum(), tolerance=1e-7)


def test_losses_of_each_example_give_the_same_as_their_mean():
    model = make_model()
    gradient = InputGradient(model, 1.0)
    losses = F.cross_entropy(model(X), CLASSES, reduction="none")
    assert_close(gradient.value(losses), gradient.value(losses.mean()))


def test_a_training_step_is_that_of_the_penalty_written_out():
    ours, theirs = make_model(), make_model()
    criterion = InputGradient(ours, 0.1).penalize(nn.CrossEntropyLoss())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, theirs)]
    for _ in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        criterion(ours(X), CLASSES).backward()
        x = X.clone().requires_grad_()
        loss = F.cross_entropy(theirs(x), CLASSES)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + 0.05 * len(x) * slope.square().sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_close(ours.state_dict(), theirs.state_dict())


def test_criteria_with_penalties_are_criteria_for_others():
    model = make_model()
    activity = ActivityRegularizer(model, L2(0.1), "")
    jacobian, gradient = Jacobian(model, 0.3, None), InputGradient(model, 0.2)
    criterion = activity.penalize(jacobian.penalize(gradient.penalize(nn.CrossEntropyLoss())))
    output = model(X)
    loss = F.cross_entropy(output, CLASSES)
    expected = loss + gradient.value(loss) + jacobian.value() + 0.05 * output.square().sum(1).mean()
    assert_close(criterion(output, CLASSES), expected)


# -- both ------------------------------------------------------------------------------------------------------------


def value_of(penalty, output):
    return penalty.value() if isinstance(penalty, Jacobian) else penalty.value(output.square().mean())


each_kind = pytest.mark.parametrize("kind", [Jacobian, InputGradient])


@each_kind
def test_the_pass_itself_does_not_change(kind):
    model, plain = make_model(), make_model()
    x = X.clone()
    kind(model, 1.0)
    assert_bit_equal(model(x), plain(x))
    assert x.grad is None
    assert not x.requires_grad


@each_kind
def test_nothing_is_recorded_in_evaluation_or_without_gradients(kind):
    model = make_model()
    penalty = kind(model, 1.0)
    with torch.no_grad():
        model(X)
    assert value_of(penalty, X) == 0
    model.eval()
    model(X)
    assert value_of(penalty, X) == 0
    criterion = penalty.penalize(F.mse_loss)
    assert_bit_equal(criterion(model(X), Y), F.mse_loss(model(X), Y))
    model.train()
    assert criterion(model(X), Y) > F.mse_loss(model(X), Y)


@each_kind
def test_scale_and_strength_multiply(kind):
    model = make_model()
    options = {"projections": None} if kind is Jacobian else {}
    one, other = kind(model, 1.0, **options), kind(model, 0.25, **options)
    other.scale = torch.tensor(2.0, dtype=torch.float64)
    output = model(X)
    assert_close(value_of(other, output), value_of(one, output) / 2)
    assert f"{kind.__name__}(0.25" in repr(other)
    silent = kind(model, 0.0, **options)
    assert value_of(silent, model(X)) == 0


def test_terms_are_named_as_those_of_other_regularizers():
    model = make_model()
    jacobian, gradient = Jacobian(model, 1.0, None), InputGradient(model, 1.0)
    assert jacobian.terms() == {}
    loss = F.mse_loss(model(X), Y)
    assert_close(jacobian.terms(), {"Jacobian": jacobian.value()})
    assert_close(gradient.terms(loss), {"InputGradient": gradient.value(loss)})


@each_kind
def test_inputs_by_keyword_and_several_inputs_count(kind):
    class Two(nn.Module):
        def forward(self, a, *, b, flag=True):
            return 2 * a + 3 * b if flag else a

    model = Two()
    penalty = kind(model, 1.0, **({"projections": None} if kind is Jacobian else {}))
    output = model(X, b=X.clone())
    if kind is Jacobian:
        assert_close(penalty.value(), torch.tensor((4.0 + 9.0) * 6 / 2, dtype=X.dtype))
    else:
        slope = 2 * output / output[0].numel()  # of the mean square of one example
        assert_close(value_of(penalty, output), 13 * slope.square().sum(1).mean() / 2)


@each_kind
def test_the_batch_may_be_another_dimension(kind):
    options = {"projections": None} if kind is Jacobian else {}
    model, x = make_model(), X.view(8, 4, 6)
    first, second = kind(model, 1.0, **options), kind(model, 1.0, batch_dim=1, **options)
    output = model(x)
    assert_close(value_of(second, output), value_of(first, output) * (2 if kind is Jacobian else 0.5))


@each_kind
def test_removal_ends_the_recording_and_so_does_the_end_of_life(kind):
    model = make_model()
    with kind(model, 1.0) as penalty:
        model(X)
    penalty.remove()
    assert value_of(penalty, X) == 0
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    other = kind(model, 1.0)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
    assert not model._forward_pre_hooks


@each_kind
def test_copies_record_on_their_own(kind):
    options = {"projections": None} if kind is Jacobian else {}
    model = make_model()
    penalty = kind(model, 1.0, **options)
    alone = copy.deepcopy(model)
    alone(X).sum().backward()
    twin_model, twin = copy.deepcopy((model, penalty))
    with torch.no_grad():
        twin_model[0].weight.mul_(2)
    ours, theirs = value_of(penalty, model(X)), value_of(twin, twin_model(X))
    assert ours > 0
    assert theirs > 0
    assert_differs(ours, theirs)
    shallow = copy.copy(penalty)
    assert_close(value_of(shallow, model(X)), ours)


@each_kind
def test_half_precision_and_autocast_work(kind):
    model = make_model(dtype=torch.float32)
    penalty = kind(model, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(X.float())
    value = value_of(penalty, output.float())
    value.backward()
    assert value > 0
    assert value.dtype == torch.float32
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@each_kind
def test_a_model_may_change_its_input_in_place(kind):
    model = nn.Sequential(nn.ReLU(inplace=True), linear())
    penalty, x = kind(model, 1.0), X.clone()
    output = model(x)
    assert value_of(penalty, output) > 0
    assert_bit_equal(x, X)


@each_kind
def test_checkpointed_blocks_give_the_same(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.is_checkpointed = make_model(), False

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False) if self.is_checkpointed else self.inner(x)

    model, grads = Model(), []
    penalty = kind(model, 1.0, **({"projections": None} if kind is Jacobian else {}))
    for model.is_checkpointed in (True, False):
        model.zero_grad()
        value_of(penalty, model(X)).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert_close(*grads)


def test_mixtures_and_dictionaries_of_outputs_are_read():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return {"ids": torch.arange(3), "logits": self.inner(x)}

    model = Named()
    jacobian = Jacobian(model, 1.0, None)
    model(X)
    assert_close(jacobian.value(), model.inner.weight.square().sum() / 2)


def test_an_output_that_does_not_depend_on_the_input_costs_nothing():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.a.expand(len(x), 3) * 1

    model = Constant()
    jacobian = Jacobian(model, 1.0)
    model(X)
    assert jacobian.value() == 0


@each_kind
def test_an_empty_batch_costs_nothing(kind):
    model = make_model()
    penalty = kind(model, 1.0)
    output = model(X[:0])
    value = penalty.value() if kind is Jacobian else penalty.value(output.sum())
    assert value == 0


@each_kind
def test_unfit_arguments_are_refused(kind):
    name, model = kind.__name__, make_model()
    with pytest.raises(ValueError, match=f"{name}: strength must be finite and >= 0, got -1"):
        kind(model, -1.0)
    with pytest.raises(TypeError, match=f"{name}: strength must be a number, got '1'"):
        kind(model, "1")
    with pytest.raises(TypeError, match=f"{name}: model must be"):
        kind(None, 1.0)
    with pytest.raises(ValueError, match=f"{name}: model must not be a stack"):
        kind(Stacked([make_model(), make_model()]), 1.0)
    tokens = nn.Embedding(4, 3)
    penalty = kind(tokens, 1.0)
    with pytest.raises(
        TypeError, match=f"{name}: Embedding must be called with a floating-point tensor, got torch.int64"
    ):
        tokens(torch.tensor([1]))
    penalty.remove()


def test_unfit_projections_and_losses_are_refused():
    model = make_model()
    for projections in (0, 1.5, -1):
        with pytest.raises(ValueError, match="Jacobian: projections must be a whole number >= 1, or None"):
            Jacobian(model, 1.0, projections)
    gradient = InputGradient(model, 1.0)
    stale = F.mse_loss(model(X), Y)
    output = model(X)
    with pytest.raises(ValueError, match="InputGradient: loss must be that of the model's last forward pass"):
        gradient.value(stale)
    with pytest.raises(ValueError, match="InputGradient: loss must be that of the model's last forward pass"):
        gradient.value(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"one number for each of the 32 examples, got the shape \(32, 3\)"):
        gradient.value((output - Y).square())


def test_fused_attention_refuses_a_second_derivative_and_plain_attention_has_it():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    model = Attention()
    gradient = InputGradient(model, 1.0)
    x = torch.randn(2, 2, 4, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = model(x)
    with pytest.raises(RuntimeError) as caught:
        gradient.value(output.square().mean()).backward()
    assert "derivative" in str(caught.value)
    with sdpa_kernel(SDPBackend.MATH):
        output = model(x)
    assert gradient.value(output.square().mean()) > 0
