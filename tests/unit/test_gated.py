"""Layers that learn what to drop: their noise, their rates, and which layers they take."""

import copy
import math
import pickle

import pytest
import torch
from scipy.special import expit
from torch import nn
from torch.nn.utils import parametrize, prune

from tests.helpers import assert_bit_equal, assert_close, seeded
from tests.unit.gating import each_kind, each_layer
from torchreg.nn import ConcreteDropout, HardConcrete

# -- every kind ---------------------------------------------------------------------------------------------------


@each_kind
@each_layer
def test_training_keeps_the_shape_and_reaches_all_parameters(kind, make, shape):
    layer = kind(make())
    y = layer(torch.randn(shape, dtype=torch.float64))
    assert y.shape == layer.layer(torch.randn(shape, dtype=torch.float64)).shape
    y.square().sum().backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in layer.parameters())


@each_kind
def test_a_generator_decides_the_noise_and_survives_in_the_state(kind):
    layer, x = kind(nn.Linear(6, 5), generator=seeded(1)), torch.ones(9, 6)
    layer(x)
    state = copy.deepcopy(layer.state_dict())
    expected = [layer(x) for _ in range(2)]
    layer.load_state_dict(state)
    assert_bit_equal([layer(x) for _ in range(2)], expected)
    twin = pickle.loads(pickle.dumps(layer))
    assert_bit_equal(twin(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_noise_does_not_follow_the_default_dtype(dtype):
    layer = HardConcrete(nn.Linear(1000, 1))
    torch.set_default_dtype(dtype)
    try:
        noise = layer._uniform(torch.ones(1), (100_000,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert noise.dtype == torch.float32
    assert len(noise.unique()) > 90_000


@each_kind
def test_other_layers_are_refused(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__}: layer must be a torch.nn.Linear, Conv1d, .*, got LSTM"):
        kind(nn.LSTM(3, 3))


@each_kind
def test_layers_whose_weight_is_no_parameter_are_refused(kind):
    for layer in (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.LazyLinear(3)):
        with pytest.raises(ValueError, match="weight must be a parameter, got a lazy or parametrized one"):
            kind(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConcreteDropout(nn.Linear(2, 2), p=1.0), r"p must be a number in \(0, 1\), got 1.0"),
        (lambda: ConcreteDropout(nn.Linear(2, 2), temperature=0), r"temperature must be a number in \(0, inf\), got 0"),
        (lambda: HardConcrete(nn.Linear(2, 2), p=0.0), r"p must be a number in \(0, 1\), got 0.0"),
        (lambda: HardConcrete(nn.Linear(2, 2), units="both"), "units must be one of inputs, outputs, got 'both'"),
        (lambda: HardConcrete(nn.Linear(2, 2), stretch=(0.0, 1.0)), "stretch must reach below 0 and above 1"),
        (lambda: HardConcrete(nn.Conv2d(4, 4, 1, groups=2)), "a grouped convolution must have units='outputs'"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_on_the_meta_device_can_be_shown():
    with torch.device("meta"):
        assert "p=?" in repr(ConcreteDropout(nn.Linear(3, 2)))


# -- hard concrete ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_gates_are_closed_as_often_as_the_complexity_says(p):
    layer = HardConcrete(nn.Linear(1000, 1, bias=False), p=p, generator=seeded(3))
    nn.init.ones_(layer.layer.weight)
    gates = layer._draw(torch.ones(1000, 1000))
    share = 1 - layer.complexity().item() / 1000
    assert (gates == 0).float().mean().item() == pytest.approx(
        share, abs=4.5 * math.sqrt(share * (1 - share) / 1e6) + 1e-6
    )
    low, high = layer.stretch
    closed = torch.logit(torch.tensor(p)) + layer.temperature * math.log(-low / high)
    assert share == pytest.approx(expit(closed.item()), abs=1e-3)
    assert ((gates >= 0) & (gates <= 1)).all()
    assert (gates == 1).any()


def test_gates_are_those_of_the_layers_units():
    inputs, outputs = HardConcrete(nn.Conv2d(3, 4, 1)), HardConcrete(nn.Conv2d(3, 4, 1), units="outputs")
    assert (inputs.gates.shape, outputs.gates.shape) == ((3,), (4,))
    x = torch.randn(5, 3, 6, 6)
    ratio = outputs(x) / outputs.layer(x)
    assert_close(ratio, ratio[..., :1, :1].expand_as(ratio), tolerance=1e-4)  # whole maps


# -- concrete dropout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_relaxed_mask_drops_with_rate_p(p):
    layer = ConcreteDropout(nn.Linear(1000, 1, bias=False), p=p, temperature=0.01, generator=seeded(4))
    noise = layer._uniform(torch.ones(1), (1_000_000,))
    kept = (torch.logit(noise) - layer.logit_p).sigmoid() > 0.5
    assert (~kept).float().mean().item() == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / 1e6))


def test_at_low_temperature_the_mean_is_kept():
    layer = ConcreteDropout(
        nn.Linear(1, 1, bias=False, dtype=torch.float64), p=0.3, temperature=0.01, generator=seeded(5)
    )
    nn.init.ones_(layer.layer.weight)
    assert layer(torch.ones(200_000, 1, dtype=torch.float64)).mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_entropy_counts_every_input_channel_of_a_convolution(groups):
    layer = ConcreteDropout(nn.Conv2d(4, 6, 1, groups=groups, dtype=torch.float64), p=0.3, length_scale=0.5)
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    expected = 0.25 * layer.layer.weight.square().sum() / (2 * 0.7) - 4 * entropy
    assert_close(layer.complexity(), expected, tolerance=1e-6)


def test_the_learned_rate_is_the_entropys_and_the_priors_optimum():
    """With data that say nothing, p settles where the complexity has its minimum, found by a grid."""
    layer = ConcreteDropout(nn.Linear(4, 3, dtype=torch.float64), p=0.1, length_scale=1.0)
    weight = layer.layer.weight.detach()
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    best = grid[torch.stack([layer.complexity_of(logit, weight) for logit in grid]).argmin()]
    optimizer = torch.optim.Adam([layer.logit_p], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        layer.complexity().backward()
        optimizer.step()
    assert layer.logit_p.item() == pytest.approx(best.item(), abs=1e-3)


# -- parametrized after it was wrapped ----------------------------------------------------------------------------


class Halved(nn.Module):
    def forward(self, w):
        return w / 2


def rewrites(name):
    """Ways to compute a tensor of a layer from other parameters: as it is read, and before each call."""
    norms = [] if name == "bias" else [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
    older = [] if name == "bias" else [nn.utils.weight_norm, nn.utils.spectral_norm]
    own = [lambda layer: parametrize.register_parametrization(layer, name, Halved())]
    return own + norms, [*older, lambda layer: prune.l1_unstructured(layer, name, 0.5)]


LINEAR_AND_CONVOLUTION = [(lambda: nn.Linear(6, 5), (7, 6)), (lambda: nn.Conv2d(6, 5, 2), (7, 6, 4, 4))]


@pytest.mark.parametrize(("make", "shape"), LINEAR_AND_CONVOLUTION)
@pytest.mark.parametrize("units", ["inputs", "outputs"])
@pytest.mark.parametrize("rewrite", rewrites("weight")[0] + rewrites("bias")[0])
def test_gates_on_a_parametrized_layer_are_those_on_the_weights_that_act(make, shape, units, rewrite):
    layer, x = HardConcrete(make(), units=units).eval(), torch.randn(shape)
    with torch.no_grad():
        layer.log_alpha.normal_(0, 3)
    before = layer.complexity()
    rewrite(layer.layer)
    inner = copy.deepcopy(layer.layer)
    gates = layer.gates.view(-1, *[1] * (len(shape) - 2))
    assert_close(layer(x), inner(x * gates) if units == "inputs" else inner(x) * gates, tolerance=1e-6)
    assert_close(layer.complexity(), before)
    ordinary = layer.pruned()
    assert type(ordinary) is type(make())
    assert_close(ordinary(x), layer(x), tolerance=1e-5)
    assert parametrize.is_parametrized(layer.layer)  # unharmed
    layer(x).sum().backward()


def test_a_spectral_norm_makes_one_step_in_each_forward_pass():
    layer, alone, x = HardConcrete(nn.Linear(6, 5), generator=seeded(5)), nn.Linear(6, 5), torch.randn(7, 6)
    alone.load_state_dict(layer.layer.state_dict())
    for each in (layer.layer, alone):
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(each)
    for _ in range(3):
        layer(x), alone(x), layer.complexity()
    assert_bit_equal(dict(layer.layer.named_buffers()), dict(alone.named_buffers()))


@each_kind
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_the_complexity_or_the_pruned_layer_cannot_follow_is_refused(kind, name, older):
    for rewrite in rewrites(name)[older]:
        layer, x = kind(nn.Linear(6, 5)), torch.randn(7, 6)
        rewrite(layer.layer)
        if name == "weight" and kind is not HardConcrete:
            with pytest.raises(
                ValueError, match=rf"^{kind.__name__}: layer\.weight must be a parameter, because the c"
            ):
                layer(x)
        elif older:
            layer(x)
            with pytest.raises(ValueError, match=rf"^{kind.__name__}: pruned\(\) needs the layer's {name} as a param"):
                layer.pruned()
        else:
            assert_close(layer.eval().pruned()(x), layer(x), tolerance=1e-5)


@each_kind
def test_parametrized_rates_are_refused(kind):
    layer = kind(nn.Linear(6, 5))
    parametrize.register_parametrization(layer, layer.rates, Halved())
    with pytest.raises(
        ValueError, match=rf"^{kind.__name__}: {layer.rates} must be a parameter, .* a parametrization: rem"
    ):
        layer(torch.randn(7, 6))
