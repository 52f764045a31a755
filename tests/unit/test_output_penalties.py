"""Penalties on logits: what torch's own distributions and losses give, and the closed forms of their gradients."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn.utils.rnn import pack_padded_sequence

from tests.helpers import assert_close, make_data, make_model
from torchreg import L2, ActivityRegularizer, Confidence, Regularizer, ZLoss

KINDS = {
    ZLoss: lambda z: z.exp().sum(-1).log() ** 2,
    Confidence: lambda z: kl_divergence(Categorical(logits=z), Categorical(logits=torch.zeros_like(z))),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def logits(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).mul(2).to(dtype)


@each_kind
@pytest.mark.parametrize(
    ("shape", "dim"), [((8, 5), -1), ((8, 5), 1), ((4, 7, 5), -1), ((4, 5, 3, 2), 1), ((1, 1), 1), ((4, 5, 6), -2)]
)
def test_the_value_is_the_mean_over_all_distributions_times_the_examples(kind, shape, dim):
    z = logits(*shape)
    expected = 0.3 * KINDS[kind](z.movedim(dim, -1)).mean()
    assert_close(kind(0.3, dim).value(z) / len(z), expected)


@each_kind
@pytest.mark.parametrize(("shape", "dim"), [((8, 5), -1), ((4, 7, 5), -1), ((4, 5, 3, 2), 1)])
def test_the_gradient_is_autograds(kind, shape, dim):
    z, penalty = logits(*shape), kind(0.3, dim)
    leaf = z.clone().requires_grad_()
    penalty.value(leaf).backward()
    assert_close(penalty.gradient(z), leaf.grad)
    assert penalty.gradient(z.transpose(0, -1).contiguous().transpose(0, -1)).shape == z.shape
    assert torch.autograd.gradgradcheck(penalty.value, logits(3, *shape[1:]).requires_grad_())


def test_the_gradients_have_their_closed_forms():
    z = logits(6, 4)
    p, log_z = z.softmax(1), z.exp().sum(1, keepdim=True).log()
    entropy = Categorical(logits=z).entropy()[:, None]
    assert_close(ZLoss(0.5).gradient(z), 0.5 * 2 * log_z * p)
    assert_close(Confidence(0.5).gradient(z), 0.5 * p * (p.log() + entropy))


def test_confidence_is_the_negative_entropy_up_to_a_constant():
    z = logits(6, 4)
    assert_close(Confidence(0.5).value(z) / 6, 0.5 * (math.log(4) - Categorical(logits=z).entropy().mean()))


def test_label_smoothing_is_the_divergence_in_the_other_direction():
    z = logits(6, 4)
    uniform, predicted = Categorical(logits=torch.zeros_like(z)), Categorical(logits=z)
    smoothed = F.cross_entropy(z, torch.full_like(z, 0.25)) - math.log(4)  # against the uniform target alone
    assert_close(smoothed, kl_divergence(uniform, predicted).mean())
    assert (smoothed - Confidence(1.0).value(z) / 6).abs() > 0.1


@each_kind
def test_a_masked_class_leaves_value_and_gradient_finite(kind):
    z = logits(4, 5)
    z[:, 2] = -math.inf
    leaf = z.clone().requires_grad_()
    kind(1.0).value(leaf).backward()
    assert kind(1.0).value(z).isfinite()
    assert_close(leaf.grad, kind(1.0).gradient(z))
    assert not leaf.grad[:, 2].any()
    nearly = z.masked_fill(z.isinf(), -700.0)
    assert_close(kind(1.0).value(z), kind(1.0).value(nearly))


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_visible(kind, bad):
    z = logits(4, 5)
    z[1, 2] = bad
    assert not kind(1.0).value(z).isfinite()
    assert not kind(1.0).gradient(z)[1].isfinite().all()
    assert kind(1.0).gradient(z)[2].isfinite().all()


@each_kind
def test_huge_logits_do_not_overflow(kind):
    z = torch.tensor([[1e4, -1e4, 0.0], [500.0, 500.0, 500.0]])
    assert kind(1e-4).value(z).isfinite()
    assert kind(1e-4).gradient(z).isfinite().all()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(kind, dtype):
    z = logits(64, 100, dtype=dtype)
    value = kind(0.01).value(z)
    assert value.dtype == dtype
    assert kind(0.01).gradient(z).dtype == dtype
    assert_close(value.double(), kind(0.01).value(z.double()), tolerance=1e-2)


@each_kind
@pytest.mark.parametrize("shape", [(0, 5), (4, 0, 5)])
def test_an_empty_batch_costs_nothing(kind, shape):
    z = torch.zeros(shape, requires_grad=True)
    value = kind(1.0).value(z)
    value.backward()
    assert value == 0
    assert kind(1.0).gradient(z.detach()).shape == shape


@each_kind
def test_an_activity_regularizer_adds_the_mean_to_the_loss(kind):
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, kind(0.3), "")
    output = model(x)
    assert_close(activity.value(), 0.3 * KINDS[kind](output).mean())
    assert list(activity.terms()) == [kind.__name__]


@each_kind
def test_packed_sequences_count_each_real_token_once(kind):
    lengths, x = [5, 3, 2], torch.randn(3, 5, 4, dtype=torch.float64)
    model = nn.GRU(4, 6, batch_first=True).double()
    activity = ActivityRegularizer(model, kind(0.3), "")
    model(pack_padded_sequence(x, lengths, batch_first=True))
    tokens = torch.cat([model(x[i : i + 1, :n])[0][0] for i, n in enumerate(lengths)])
    with torch.no_grad():
        model(pack_padded_sequence(x, lengths, batch_first=True))
    model(pack_padded_sequence(x, lengths, batch_first=True))
    assert_close(activity.value(), 0.3 * KINDS[kind](tokens).mean())


def test_an_l2_penalty_on_logits_is_spectral_decoupling():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, L2(0.3), "")
    output = model(x)
    assert_close(activity.value(), 0.3 / 2 * output.square().sum(1).mean())  # lambda / 2 * |y|**2 of each example


@each_kind
def test_it_compiles_without_graph_breaks(kind):
    z, penalty = logits(6, 4, 5), kind(0.3, 1)
    for function in (penalty.value, penalty.gradient):
        assert_close(torch.compile(function, fullgraph=True, backend="eager")(z), function(z))


@each_kind
def test_it_is_a_penalty_like_the_others(kind):
    penalty = kind(0.1, 1)
    assert 0.5 * penalty == kind(0.05, 1)
    assert penalty + penalty == kind(0.2, 1)
    assert penalty != kind(0.1)
    assert repr(penalty) == f"{kind.__name__}(0.1, dim=1)"
    assert pickle.loads(pickle.dumps(penalty)) == penalty
    model = nn.Linear(4, 3)
    assert_close(Regularizer(model, penalty).value(), penalty.value(model.weight))


@each_kind
def test_unfit_arguments_are_refused(kind):
    name = kind.__name__
    for dim in (0, 1.0, None):
        with pytest.raises(ValueError, match=f"{name}: dim must be the dimension of the classes"):
            kind(1.0, dim)
    for shape, dim in (((4,), -1), ((), -1), ((4, 5), 2), ((4, 5), -2)):
        with pytest.raises(ValueError, match=rf"{name}: logits must have the batch first and .* dim={dim}, got the sh"):
            kind(1.0, dim).value(torch.zeros(shape))
    with pytest.raises(TypeError, match=f"{name}: logits must be real floating-point numbers, got torch.complex64"):
        kind(1.0).gradient(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=f"{name}: strength must be finite and >= 0"):
        kind(-1.0)
