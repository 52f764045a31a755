"""Variational dropout: its noise, its divergence, what evaluation drops, and training that drops it, too."""

import math
import pickle

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, seeded
from tests.unit.gating import each_layer
from torchreg.nn import ConcreteDropout, VariationalDropout


def test_variational_noise_has_the_mean_and_variance_of_noisy_weights():
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64), generator=seeded(2))
    with torch.no_grad():
        layer.log_sigma2.uniform_(-2, 0)
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    y = layer(x.expand(200_000, 3)).detach()
    deviation = (layer.log_sigma2.exp() @ x.square()).sqrt().detach()
    assert ((y.mean(0) - layer.layer(x)).abs() < 4.5 * deviation / math.sqrt(200_000)).all()
    assert_close(y.std(0), deviation, tolerance=0.01)


@pytest.mark.parametrize("size", [1e-3, 260.0, 3e4])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_noise_of_float16_neither_overflows_nor_vanishes(is_autocast, size):
    layer = VariationalDropout(nn.Linear(8, 4), log_sigma2=-18.0, generator=seeded(2))
    x = torch.full((20_000, 8), size)
    if is_autocast:
        with torch.autocast("cpu", dtype=torch.float16):
            y = layer(x)
    else:
        y = layer.half()(x.half())
    expected = math.sqrt(8 * size**2 * math.exp(-18) + 1e-8)
    noise = (y - y.mean(0)).float().std(0)
    rounding = y.abs().amax().float() * torch.finfo(torch.float16).eps
    assert ((noise - expected).abs() <= 0.05 * expected + rounding).all()


@pytest.mark.parametrize("threshold", [math.nan, None, "3"])
def test_the_threshold_must_be_a_number(threshold):
    with pytest.raises(ValueError, match="VariationalDropout: threshold must be a number, got"):
        VariationalDropout(nn.Linear(3, 2), threshold=threshold)


@pytest.mark.parametrize("log_alpha", [-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
def test_the_divergence_is_the_papers_approximation_of_the_integral(log_alpha):
    """KL = E log|1 + sqrt(alpha) e| - log(alpha)/2 for a normal e, less its limit at infinity."""
    alpha = math.exp(log_alpha)

    def density(e: float) -> float:
        return math.exp(-e * e / 2) / math.sqrt(2 * math.pi) * math.log(abs(1 + math.sqrt(alpha) * e))

    peak = max(-1 / math.sqrt(alpha), -12.0)
    integral = quad(density, -12, peak)[0] + quad(density, peak, 12, limit=200)[0]
    at_infinity = -(math.log(2) + 0.5772156649015329) / 2  # E log|e|
    layer = VariationalDropout(nn.Linear(1, 1, bias=False, dtype=torch.float64))
    weight = torch.ones(1, 1, dtype=torch.float64)
    ours = layer.complexity_of(torch.tensor([[log_alpha]], dtype=torch.float64), weight).item()
    assert ours == pytest.approx(integral - log_alpha / 2 - at_infinity, abs=0.01)


@pytest.mark.parametrize("index", [0, 1])
def test_the_written_out_gradient_is_autograds(index):
    layer = VariationalDropout(nn.Linear(50, 40, dtype=torch.float64))
    with torch.no_grad():
        layer.log_sigma2.uniform_(-25, 5)
        layer.layer.weight[0, :5] = 0
    tensors = layer.log_sigma2, layer.layer.weight
    with torch.no_grad():
        written_out = layer._complexity_gradient(index, *tensors)
    assert_close(written_out, layer._complexity_gradient(index, *tensors).detach(), tolerance=1e-11)
    assert (written_out == 0).any()  # where log alpha is beyond its limits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_finite_gradients_everywhere(dtype):
    layer = VariationalDropout(nn.Linear(4, 3)).to(dtype)
    with torch.no_grad():
        layer.layer.weight[0] = 1e-4
        layer.layer.weight[1] = 0
    layer.complexity().backward()
    x = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == dtype
    with torch.no_grad():
        written_out = [layer._complexity_gradient(i, layer.log_sigma2, layer.layer.weight) for i in (0, 1)]
    for gradient in (x.grad, *(param.grad for param in layer.parameters()), *written_out):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    large = ConcreteDropout(nn.Linear(300, 300).to(dtype), length_scale=100.0)
    assert large.complexity().isfinite()  # 65504 is the largest number of half precision


def test_drowned_weights_are_dropped_in_evaluation():
    layer = VariationalDropout(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        layer.layer.weight.copy_(torch.tensor([[1.0, 0.01]]))
        layer.log_sigma2.fill_(math.log(0.01))
    assert layer.eval()(torch.tensor([[1.0, 1.0]])).item() == 1.0
    assert layer.pruned().weight.tolist() == [[1.0, 0.0]]


# -- clipped in training ------------------------------------------------------------------------------------------


def clipped(**options):
    """A layer in which the first of each unit's three weights is below the threshold, and the others are above it."""
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64), train_clip=True, generator=seeded(2), **options)
    with torch.no_grad():
        layer.layer.weight.copy_(torch.tensor([[1.0, 0.1, -0.2], [-2.0, 0.05, 0.1]]))
        layer.log_sigma2.fill_(0.0)
    return layer


def test_clipped_in_training_the_mean_is_that_of_evaluation_and_the_noise_stays():
    layer = clipped()
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    y = layer(x.expand(200_000, 3)).detach()
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64) + layer.layer.bias.detach()  # of the first weights alone
    deviation = math.sqrt(0.25 + 1 + 4)  # of all three
    assert ((y.mean(0) - mean).abs() < 4.5 * deviation / math.sqrt(200_000)).all()
    assert_close(y.std(0), torch.full((2,), deviation, dtype=torch.float64), tolerance=0.01)
    assert_close(layer.eval()(x), mean)


@pytest.mark.parametrize("threshold", [3.0, 0.5, 100.0])
def test_the_gradients_of_a_clipped_pass_are_those_of_the_formula(threshold):
    layer, x = clipped(threshold=threshold), torch.randn(7, 3, dtype=torch.float64)
    weight, log_sigma2 = (p.detach().clone().requires_grad_() for p in (layer.layer.weight, layer.log_sigma2))
    noise = torch.randn(7, 2, dtype=torch.float64, generator=seeded(2))
    is_kept = log_sigma2 - 2 * weight.abs().log() <= threshold
    mean = x @ (weight * is_kept).T + layer.layer.bias
    expected = mean + noise * (x.square() @ log_sigma2.exp().T + 1e-8).sqrt()
    y = layer(x)
    assert_close(y, expected)
    y.square().sum().backward()
    for own, theirs in zip(
        (layer.layer.weight.grad, layer.log_sigma2.grad),
        torch.autograd.grad(expected.square().sum(), (weight, log_sigma2)),
        strict=True,
    ):
        assert_close(own, theirs)
    assert ((layer.layer.weight.grad != 0) == is_kept).all()
    assert layer.log_sigma2.grad.all()


def test_clipping_changes_neither_the_complexity_nor_what_is_pruned_nor_the_state():
    layer = clipped()
    plain = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64), generator=seeded(2))
    plain.load_state_dict(layer.state_dict())
    assert_close(layer.complexity(), plain.complexity())
    assert_bit_equal([layer.pruned().weight], [plain.pruned().weight])
    gradients = torch.autograd.grad(layer.complexity(), (layer.layer.weight, layer.log_sigma2))
    assert all(each.all() for each in gradients)  # also of weights above the threshold
    assert (layer.extra_repr(), plain.extra_repr()) == ("threshold=3.0, train_clip=True", "threshold=3.0")
    assert pickle.loads(pickle.dumps(layer)).train_clip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clipping_in_half_precision_keeps_the_dtype_and_is_finite(dtype):
    layer = clipped().to(dtype)
    y = layer(torch.ones(4, 3, dtype=dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert all(param.grad.dtype == dtype and param.grad.isfinite().all() for param in layer.parameters())


def test_a_clipped_pass_compiles_to_the_eager_one():
    layer, x = clipped(), torch.zeros(7, 3, dtype=torch.float64)  # no noise without inputs but that of 1e-8
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    layer.generator = None  # torch.compile cannot follow one
    assert_close(compiled(x), layer.pruned()(x).expand(7, 2), tolerance=1e-3)
    x.fill_(1)
    torch.manual_seed(0)
    gradients = torch.autograd.grad(compiled(x).sum(), layer.layer.weight)[0]
    assert_close(gradients, torch.tensor([[7.0, 0, 0]] * 2, dtype=torch.float64))


@each_layer
def test_clipping_is_for_all_layers(make, shape):
    layer = VariationalDropout(make(), train_clip=True, log_sigma2=-40.0)
    with torch.no_grad():
        layer.log_sigma2.view(-1)[::2] = -3.0
        layer.layer.weight.view(-1)[::2] = 1e-3
        x = torch.zeros(shape, dtype=torch.float64)
        assert_close(layer(x), layer.pruned()(x), tolerance=1e-3)  # no noise without inputs
        layer.log_sigma2.sub_(layer.log_sigma2 + 40)
        layer.layer.weight.view(-1)[::2] = 1e-12
        x = torch.randn(shape, dtype=torch.float64)
        assert_close(layer(x), layer.pruned()(x), tolerance=1e-2)
