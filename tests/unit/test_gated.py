"""Layers that learn what to drop: their noise, their complexity, what they leave behind."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.special import expit
from torch import nn
from torch.nn.utils import parametrize, prune

import torchreg
from tests.helpers import assert_bit_equal, assert_close, seeded
from torchreg import L2, Complexity, Regularizer, compress
from torchreg.diagnostics import compression
from torchreg.nn import ConcreteDropout, HardConcrete, VariationalDropout, pruned

KINDS = [ConcreteDropout, VariationalDropout, HardConcrete]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5, dtype=torch.float64), (7, 6)),
    "linear, one example": (lambda: nn.Linear(6, 5, dtype=torch.float64), (6,)),
    "linear over a sequence": (lambda: nn.Linear(6, 5, dtype=torch.float64), (7, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, dtype=torch.float64), (7, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2, dtype=torch.float64), (7, 3, 9, 8)),
    "conv2d, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", dtype=torch.float64),
        (2, 3, 5, 5),
    ),
    "conv2d, one example": (lambda: nn.Conv2d(3, 4, 3, bias=False, dtype=torch.float64), (3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, dtype=torch.float64), (2, 2, 4, 4, 4)),
}
each_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        VariationalDropout(nn.Linear(6, 5, dtype=torch.float64)),
        nn.ReLU(),
        HardConcrete(nn.Linear(5, 4, dtype=torch.float64)),
        ConcreteDropout(nn.Linear(4, 3, dtype=torch.float64)),
    )


# -- the layers ---------------------------------------------------------------------------------------------------


@each_kind
@each_layer
def test_what_is_pruned_computes_the_same(kind, make, shape):
    layer = kind(make()).eval()
    with torch.no_grad():
        getattr(layer, layer.rates).normal_(0, 3)
    x = torch.randn(shape, dtype=torch.float64)
    ordinary = layer.pruned()
    assert type(ordinary) is type(layer.layer)
    assert_close(ordinary(x), layer(x))


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


@each_kind
def test_other_layers_are_refused(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__}: layer must be a torch.nn.Linear, Conv1d, .*, got LSTM"):
        kind(nn.LSTM(3, 3))


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


# -- variational dropout ------------------------------------------------------------------------------------------


def test_variational_noise_has_the_mean_and_variance_of_noisy_weights():
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64), generator=seeded(2))
    with torch.no_grad():
        layer.log_sigma2.uniform_(-2, 0)
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    y = layer(x.expand(200_000, 3)).detach()
    deviation = (layer.log_sigma2.exp() @ x.square()).sqrt().detach()
    assert ((y.mean(0) - layer.layer(x)).abs() < 4.5 * deviation / math.sqrt(200_000)).all()
    assert_close(y.std(0), deviation, tolerance=0.01)


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


def test_drowned_weights_are_dropped_in_evaluation():
    layer = VariationalDropout(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        layer.layer.weight.copy_(torch.tensor([[1.0, 0.01]]))
        layer.log_sigma2.fill_(math.log(0.01))
    assert layer.eval()(torch.tensor([[1.0, 1.0]])).item() == 1.0
    assert layer.pruned().weight.tolist() == [[1.0, 0.0]]


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


def test_what_closed_gates_leave_can_be_compressed():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), HardConcrete(nn.Linear(8, 3)))
    with torch.no_grad():
        model[2].log_alpha[2:] = -10
    small = compress(pruned(model))
    assert small[0].out_features == 2
    x = torch.randn(4, 6)
    assert_close(small(x), model.eval()(x), tolerance=1e-5)


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


# -- the complexity as a penalty ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_the_regularizer_adds_the_layers_complexity_once(mode):
    model = network()
    regularizer = Regularizer(model, Complexity(0.01), mode=mode)
    expected = 0.01 * sum(model[i].complexity() for i in (0, 2, 3))
    assert_close(regularizer.value(), expected)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    if mode == "loss":
        regularizer.value().backward()
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with regularizer.attach(optimizer):
            optimizer.step()
    for param, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(0 * param if param.grad is None else param.grad, 0 * param if gradient is None else gradient)


def test_the_complexity_counts_once_where_torch_func_differentiates_the_formulas_themselves():
    regularizer = Regularizer(network(), Complexity(0.01))
    one = torch.ones((), dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="no derivative"):  # by the weights; that by a factor is right
        found = torch.func.grad(lambda scale: scale * regularizer.value())(one)
    assert_close(found, regularizer.value())


def test_terms_tell_the_divergences_from_the_gates():
    model = network()
    terms = Regularizer(model, Complexity(1.0)).terms()
    assert terms.keys() == {"KL", "L0"}
    assert_close(terms["KL"], model[0].complexity() + model[3].complexity())
    assert_close(terms["L0"], model[2].complexity())


def test_second_derivatives_of_the_penalized_loss_are_those_of_the_formula():
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64))
    value = Regularizer(layer, Complexity(1.0)).value()
    (first,) = torch.autograd.grad(value, layer.log_sigma2, create_graph=True)
    (expected,) = torch.autograd.grad(layer.complexity(), layer.log_sigma2, create_graph=True)
    assert_close(
        torch.autograd.grad(first.square().sum(), layer.log_sigma2)[0],
        torch.autograd.grad(expected.square().sum(), layer.log_sigma2)[0],
    )


def test_other_penalties_leave_the_rates_alone():
    shown = str(Regularizer(network(), L2(1e-4)))
    assert shown.count("learned drop rate") == 3
    assert "0.layer.weight" in shown


def test_a_schedule_brings_the_divergence_in():
    model = network()
    regularizer = Regularizer(model, Complexity(1.0), schedule=torchreg.linear(steps=10, start=0.0, end=1.0, after=5))
    for _ in range(5):
        assert regularizer.value() == 0
        regularizer.step()
    regularizer.step()
    assert_close(regularizer.value(), 0.1 * sum(model[i].complexity() for i in (0, 2, 3)))


def test_a_copy_of_the_regularizer_goes_with_the_copied_model():
    regularizer = Regularizer(network(), Complexity(1.0))
    twin = copy.deepcopy(regularizer)
    with torch.no_grad():
        regularizer.model[0].log_sigma2.add_(1)
    assert twin.value() != regularizer.value()


def test_a_model_without_such_layers_and_sums_with_other_penalties_are_refused():
    with pytest.raises(ValueError, match=r"must choose at least one parameter, got none of .*not learned to drop"):
        Regularizer(nn.Linear(2, 2), Complexity(1.0))
    for model in (nn.Linear(2, 2), network()):
        with pytest.raises(
            ValueError, match=r"must not be part of a sum, got Complexity\(1.0\) \+ L2\(1.0\): make one"
        ):
            Regularizer(model, Complexity(1.0) + L2(1.0))


@pytest.mark.parametrize("pattern", ["*.weight", "*log_sigma2"])
def test_a_pattern_must_match_all_that_the_complexity_is_a_function_of(pattern):
    with pytest.raises(ValueError, match=r"is a function of its layer's other parameters, which have .*one pattern"):
        Regularizer(network(), {pattern: Complexity(1.0), "*": L2(0.1)})
    whole = {"0.*": Complexity(1.0), "2.log_alpha": Complexity(2.0), "*": L2(0.1)}
    assert set(Regularizer(network(), whole).terms()) == {"KL", "L0", "L2"}


@pytest.mark.parametrize("frozen", [["log_sigma2"], ["layer.weight"]])
def test_frozen_parameters_do_not_make_the_complexity_less(frozen):
    layer = VariationalDropout(nn.Linear(3, 2, dtype=torch.float64))
    for name, param in layer.named_parameters():
        param.requires_grad_(name not in frozen)
    value = Regularizer(layer, Complexity(1.0)).value()
    assert_close(value, layer.complexity())
    value.backward()
    free = layer.layer.weight if frozen == ["log_sigma2"] else layer.log_sigma2
    assert free.grad.any()


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


@each_kind
def test_layers_whose_weight_is_no_parameter_are_refused(kind):
    for layer in (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.LazyLinear(3)):
        with pytest.raises(ValueError, match="weight must be a parameter, got a lazy or parametrized one"):
            kind(layer)


def test_models_on_the_meta_device_can_be_shown():
    with torch.device("meta"):
        assert "p=?" in repr(ConcreteDropout(nn.Linear(3, 2)))


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


# -- pruning and compression --------------------------------------------------------------------------------------


def test_pruning_a_model_replaces_every_layer_and_leaves_the_model_alone():
    model = network().eval()
    before = copy.deepcopy(model.state_dict())
    ordinary = pruned(model)
    assert [type(layer) for layer in ordinary] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    x = torch.randn(5, 6, dtype=torch.float64)
    assert_close(ordinary(x), model(x))
    assert_bit_equal(dict(model.state_dict()), dict(before))
    assert type(pruned(model[0])) is nn.Linear


def test_a_layer_used_twice_stays_one_layer():
    shared = HardConcrete(nn.Linear(3, 3))
    ordinary = pruned(nn.ModuleList([shared, shared]))
    assert ordinary[0] is ordinary[1]


def test_compression_counts_weights_units_bits_and_bytes():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data[1:] = 0
    counted = compression(model)
    assert counted.weights == 18 / 10
    assert counted.units == 18 / 6
    assert counted.bits == pytest.approx(32 * 18 / (32 * 10 + math.log2(math.comb(12, 4))))
    assert counted.bytes == 4 * (4 + 2) + 4 * (1 + 2)  # 4-1-2 without zeros, with three biases
    assert compression(nn.Sequential(nn.ReLU())) == (1, 1, 1, 0)
    assert compression(nn.ModuleList([nn.Linear(2, 2)])).units is None


def narrowed(units, hidden):
    """A network of which so many inputs and hidden units are left, without zeros among their weights."""
    sizes = [784, *hidden, 10]
    layers = [nn.Linear(before, after) for before, after in pairwise(sizes)]
    with torch.no_grad():
        for layer, inputs, outputs in zip(layers, units, [*units[1:], 10], strict=True):
            layer.weight[:, inputs:] = 0
            layer.weight[outputs:] = 0
            layer.bias[outputs:] = 0
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


@pytest.mark.parametrize(
    ("units", "hidden", "published"),
    [
        ((245, 160, 55), (500, 300), 195_100),  # structured Bayesian pruning
        ((266, 88, 33), (300, 100), 107_092),  # L0
        ((97, 71, 33), (300, 100), 38_696),  # VIBNet
    ],
)
def test_the_bytes_are_those_of_the_published_table(units, hidden, published):
    """Utku Evci et al., "Rigging the Lottery", 2020, table 2."""
    assert compression(narrowed(units, hidden)).bytes == published


def test_the_bytes_of_a_sparse_network_count_a_mask_and_the_values():
    """RigL+ of the same table: 375-62-51 in 16,113 bytes, with 88.6 % zeros among the weights that are left."""
    model = narrowed((375, 62, 51), (300, 100))
    many = 0
    with torch.no_grad():
        for place, (outputs, inputs) in zip((0, 2, 4), ((62, 375), (51, 62), (10, 51)), strict=True):
            order = torch.arange(max(outputs, inputs))
            chance = torch.rand(outputs, inputs)
            chance[order % outputs, order % inputs] = 2.0  # each unit and input stays
            kept = chance >= chance.flatten().topk(round(0.114 * chance.numel())).values[-1]
            model[place].weight[:outputs, :inputs] *= kept
            many += chance.numel()
    assert compression(model).bytes == pytest.approx(many / 8 + 4 * 0.114 * many + 4 * (62 + 51 + 10), abs=10)
    assert compression(model).bytes == pytest.approx(16_113, rel=0.005)  # the share is published to three digits


def test_the_bytes_of_a_dense_network_are_those_of_its_parameters():
    dense = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    assert compression(dense).bytes == 4 * sum(param.numel() for param in dense.parameters())
    assert compression(nn.ModuleList([nn.Linear(2, 2)])).bytes is None


def test_training_with_the_divergence_finds_the_inputs_that_matter():
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    y = x[:, :3].sum(1, keepdim=True)
    layer = VariationalDropout(nn.Linear(20, 1), log_sigma2=-5.0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    Regularizer(layer, Complexity(1 / 512), mode="grad").attach(optimizer)
    for _ in range(1500):
        optimizer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        optimizer.step()
    kept = layer.pruned().weight[0] != 0
    assert kept[:3].all()
    assert not kept[3:].any()


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
