"""Dropout of weights: other ones for each example, and what the paper does in evaluation."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.cases import each_duplicate
from tests.helpers import assert_bit_equal, assert_close, assert_differs, seeded
from torchreg import functional as f
from torchreg.nn import DropConnect, connect

CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(3, 4, 3, padding=1, dtype=torch.float64), (5, 3, 8)),
    "2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, dtype=torch.float64), (5, 4, 9, 8)),
    "2d, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64),
        (5, 3, 6, 6),
    ),
    "3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2, dtype=torch.float64), (2, 2, 5, 5, 5)),
}


def masks(layer: nn.Module, p: float, count: int, seed: int) -> Tensor:
    """Those that a layer with the generator draws first."""
    return f.keep_mask(layer.weight, p, (count, *layer.weight.shape), seeded(seed)).double() / (1 - f.representable(p))


# -- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(7, 6), (7, 3, 6), (7, 2, 3, 6)])
def test_each_example_meets_weights_of_its_own(p, shape):
    linear = nn.Linear(6, 5, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = DropConnect(linear, p, generator=seeded(1))(x)
    weights = linear.weight * masks(linear, p, 7, 1)
    expected = torch.stack([F.linear(one, weight, linear.bias) for one, weight in zip(x, weights, strict=True)])
    assert_close(y, expected)
    outward = torch.randn(y.shape, dtype=torch.float64)
    inputs = (x, *linear.parameters())
    assert_close(torch.autograd.grad(y, inputs, outward), torch.autograd.grad(expected, inputs, outward))


@pytest.mark.parametrize(("make", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_each_example_meets_convolutions_of_its_own(make, shape):
    layer = make()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = DropConnect(layer, 0.3, generator=seeded(2))(x)
    weights = layer.weight * masks(layer, 0.3, len(x), 2)
    alone = [
        torch.func.functional_call(layer, {"weight": weight}, (one,))
        for one, weight in zip(x.split(1), weights, strict=True)
    ]
    expected, outward, inputs = torch.cat(alone), torch.randn(y.shape, dtype=torch.float64), (x, *layer.parameters())
    assert_close(y, expected)
    assert_close(torch.autograd.grad(y, inputs, outward), torch.autograd.grad(expected, inputs, outward))


def test_weights_are_dropped_with_the_rate_and_others_for_each_example():
    linear = nn.Linear(30, 20, bias=False)
    nn.init.ones_(linear.weight)
    layer = DropConnect(linear, 0.3, generator=seeded(3))
    dropped = torch.stack([layer(row.expand(300, 30)) == 0 for row in torch.eye(30)]).double()
    assert abs(dropped.mean().item() - 0.3) < 4.5 * math.sqrt(0.21 / dropped.numel())
    assert (dropped.mean(1) - 0.3).abs().max().item() < 5 * math.sqrt(0.21 / 300)  # of each of the weights
    assert_differs(dropped[:, 0], dropped[:, 1])


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(6, 5, 1)])
def test_one_mask_for_the_batch_where_asked(make):
    layer = DropConnect(make(), 0.5, per_example=False, generator=seeded(4))
    assert layer.shares_mask
    x = torch.randn(1, 6, *[1] * (layer.layer.weight.ndim - 2))
    y = layer(x.expand(9, *x.shape[1:]))
    assert_close(y, y[:1].expand_as(y), tolerance=1e-6)
    assert_differs(y, layer(x.expand(9, *x.shape[1:])))


def test_a_single_example_needs_no_batch():
    assert DropConnect(nn.Linear(6, 5))(torch.ones(6)).shape == (5,)
    assert DropConnect(nn.Conv2d(3, 4, 1))(torch.ones(3, 5, 5)).shape == (4, 5, 5)
    assert DropConnect(nn.Linear(6, 5))(torch.ones(0, 6)).shape == (0, 5)
    assert DropConnect(nn.Conv2d(3, 4, 1))(torch.ones(0, 3, 5, 5)).shape == (0, 4, 5, 5)


def test_the_size_of_chunks_does_not_matter(monkeypatch):
    results = []
    for chunk in (1, 70, 1 << 20):
        monkeypatch.setattr(connect, "_CHUNK", chunk)
        torch.manual_seed(0)
        linear = nn.Linear(6, 5, dtype=torch.float64)
        x = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
        y = DropConnect(linear, 0.4, generator=seeded(5))(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, linear.weight))])
    assert_close(results[1:], [results[0]] * 2)


def test_a_byte_a_weight_and_example_is_kept_for_the_backward_pass():
    saved: dict[int, int] = {}
    layer, x = DropConnect(nn.Linear(100, 50), 0.3), torch.ones(64, 100)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        layer(x)
    assert sum(saved.values()) <= 64 * 100 * 50 + x.nbytes + layer.layer.weight.nbytes


def test_convolutions_keep_the_masked_weights_too():
    saved: dict[int, int] = {}
    layer, x = DropConnect(nn.Conv1d(16, 32, 3), 0.3), torch.ones(64, 16, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        layer(x)
    assert sum(saved.values()) <= 5 * 64 * layer.layer.weight.numel() + x.nbytes + layer.layer.weight.nbytes


@pytest.mark.parametrize("frozen", ["weight", "bias", "input"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_theirs(frozen):
    linear, x = nn.Linear(6, 5, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    inputs = {"weight": linear.weight, "bias": linear.bias, "input": x}
    outputs = []
    for needed in (inputs.keys(), inputs.keys() - {frozen}):
        for name, tensor in inputs.items():
            tensor.grad = None
            tensor.requires_grad_(name in needed)
        DropConnect(linear, 0.5, generator=seeded(12))(x).square().sum().backward()
        outputs.append({name: tensor.grad for name, tensor in inputs.items()})
    assert outputs[1].pop(frozen) is None
    assert_close(outputs[1], {name: grad for name, grad in outputs[0].items() if name != frozen})


def test_transforms_see_plain_expressions():
    linear, x = nn.Linear(6, 5, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    layer = DropConnect(linear, 0.4, generator=seeded(13))
    actual = torch.func.grad(lambda x: layer(x).sum())(x)
    kept = torch.rand(7, 5, 6, generator=seeded(13)) >= 0.4
    assert_close(actual, (linear.weight * kept / 0.6).sum(1).detach())


@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 20), lambda: nn.Conv1d(30, 20, 1)], ids=["linear", "conv"])
def test_compiled_it_drops_with_the_rate(make):
    layer = DropConnect(make(), 0.3)
    nn.init.ones_(layer.layer.weight)
    nn.init.zeros_(layer.layer.bias)
    x = torch.zeros(400, 30, *[1] * (layer.layer.weight.ndim - 2))
    x[:, 0] = 1
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7), tolerance=1e-6)
    assert abs((y == 0).double().mean().item() - 0.3) < 4.5 * math.sqrt(0.21 / y.numel())
    assert_differs(y[0], y[1])


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(6, 5, 1)], ids=["linear", "conv"])
def test_autocast_gives_the_dtype_that_the_layer_gives(make):
    layer = DropConnect(make(), 0.5)
    x = torch.randn(4, 6, *[1] * (layer.layer.weight.ndim - 2))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == layer.layer(x).dtype == torch.bfloat16
    y.sum().backward()
    assert all(param.grad.dtype == torch.float32 for param in layer.parameters())


@pytest.mark.parametrize("per_example", [True, False])
def test_a_rate_that_rounds_to_1_drops_all(per_example):
    linear = nn.Linear(6, 5)
    assert_close(DropConnect(linear, 1 - 2**-18, per_example=per_example)(torch.ones(7, 6)), linear.bias.expand(7, 5))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_are_the_layer_and_its_bias(p):
    linear = nn.Linear(6, 5)
    x = torch.randn(7, 6)
    assert_close(DropConnect(linear, p)(x), linear(x) if p == 0 else linear.bias.expand(7, 5), tolerance=1e-6)


def test_many_gradients_may_be_asked_for_at_once():
    layer = DropConnect(nn.Linear(6, 2, dtype=torch.float64), 0.4)
    x = torch.randn(3, 6, dtype=torch.float64)

    def output(x: Tensor) -> Tensor:
        layer.generator = seeded(12)
        return layer(x)

    assert_close(*(torch.autograd.functional.jacobian(output, x, vectorize=at_once) for at_once in (True, False)))


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_have_one_mask_for_all_times(make):
    recurrent = make(3, 4, num_layers=2, dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    before = {name: param.detach().clone() for name, param in recurrent.named_parameters()}
    y, _ = DropConnect(recurrent, 0.5, generator=seeded(6))(x)
    source, masked = seeded(6), copy.deepcopy(recurrent)
    for name, param in masked.named_parameters():
        if name.startswith("weight_hh"):
            param.data = f.drop(param.data, 0.5, param.shape, generator=source)
    assert_close(y, masked(x)[0])
    assert_differs(y, recurrent(x)[0])
    assert_bit_equal({name: param.detach() for name, param in recurrent.named_parameters()}, before)
    y.sum().backward()
    assert all(param.grad is not None for param in recurrent.parameters())


def test_recurrent_layers_take_states_and_packed_sequences():
    gru, state = nn.GRU(3, 4, dtype=torch.float64), torch.randn(1, 2, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    outputs = [
        DropConnect(gru, 0.5, generator=seeded(14))(x, state)[0],
        DropConnect(gru, 0.5, generator=seeded(14))(x, hx=state)[0],
        DropConnect(gru, 0.5, generator=seeded(14))(nn.utils.rnn.pack_padded_sequence(x, [5, 5]), state)[0].data,
    ]
    assert_close(outputs[1], outputs[0])
    assert_close(outputs[2], outputs[0].flatten(0, 1))


# -- evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, nn.ReLU(), torch.tanh])
def test_mean_inference_is_the_layer(activation):
    linear, x = nn.Linear(6, 5), torch.randn(7, 6)
    expected = linear(x) if activation is None else activation(linear(x))
    assert_bit_equal(DropConnect(linear, 0.5, activation=activation).eval()(x), expected)


def test_moments_of_a_relu_are_the_integral():
    linear = nn.Linear(4, 3, dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64)
    y = DropConnect(linear, 0.3, inference="moments", activation=nn.ReLU()).eval()(x)
    mean, variance = linear(x).detach(), 0.3 / 0.7 * (x.square() @ linear.weight.square().T).detach()
    for i in range(2):
        for j in range(3):
            m, d = mean[i, j].item(), math.sqrt(variance[i, j].item())
            integral = quad(lambda u, m=m, d=d: u * norm.pdf(u, m, d), 0, m + 12 * d)[0] if m + 12 * d > 0 else 0.0
            assert y[i, j].item() == pytest.approx(integral, abs=1e-7)


def test_moments_are_close_to_the_average_over_masks():
    torch.manual_seed(7)
    linear = nn.Linear(200, 3, dtype=torch.float64)
    x = torch.rand(1, 200, dtype=torch.float64)
    moments = DropConnect(linear, 0.5, inference="moments", activation=nn.ReLU()).eval()(x)
    sampled = DropConnect(linear, 0.5, activation=nn.ReLU(), generator=seeded(8))(x.expand(20_000, 200))
    assert_close(moments[0], sampled.mean(0), tolerance=0.01)
    assert_differs(moments, linear(x).relu())


def test_other_activations_are_sampled():
    linear, x = nn.Linear(5, 2), torch.randn(3, 5)
    make = {"inference": "moments", "activation": torch.tanh}
    few = DropConnect(linear, 0.5, samples=20_000, generator=seeded(9), **make).eval()(x)
    deviation = ((x.square() @ linear.weight.square().T).detach()).sqrt()
    grid = torch.tensor(norm.ppf((torch.arange(2000).numpy() + 0.5) / 2000), dtype=torch.float32)
    expected = torch.tanh(linear(x).unsqueeze(-1) + deviation.unsqueeze(-1) * grid).mean(-1)
    assert_close(few, expected, tolerance=0.02)


@pytest.mark.parametrize("size", [1e-3, 260.0])
def test_moments_of_float16_neither_overflow_nor_vanish(size):
    layer = DropConnect(nn.Linear(8, 4, bias=False), 0.5, inference="moments", activation=nn.ReLU()).eval()
    x = torch.full((1, 8), size)
    expected = layer(x)
    assert_close(layer.half()(x.half()) / size, expected.half() / size, tolerance=2e-3)
    with torch.autocast("cpu", dtype=torch.float16):
        assert_close(layer.float()(x).float() / size, expected / size, tolerance=2e-3)


def test_without_noise_moments_have_a_gradient():
    layer = DropConnect(nn.Linear(3, 2), 0.5, inference="moments", activation=nn.ReLU()).eval()
    x, inputs = torch.zeros(1, 3, requires_grad=True), list(layer.parameters())
    nn.init.constant_(layer.layer.bias, 0.5)
    y, expected = layer(x), layer.layer(x).relu()
    assert_close(y, expected, tolerance=1e-6)
    inputs.append(x)
    assert_close(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), tolerance=1e-6)


# -- copies and errors --------------------------------------------------------------------------------------------


@each_duplicate
def test_copies_and_checkpoints_take_the_generator_with_them(duplicate):
    layer, x = DropConnect(nn.Linear(6, 5), generator=seeded(10)), torch.ones(4, 6)
    layer(x)
    twin, loaded = duplicate(layer), DropConnect(nn.Linear(6, 5), generator=seeded(11))
    loaded.load_state_dict(layer.state_dict())
    expected = layer(x)
    assert_bit_equal([twin(x), loaded(x)], [expected] * 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DropConnect(nn.ReLU()), TypeError, r"layer must be a torch.nn.Linear, .*, got ReLU"),
        (lambda: DropConnect(nn.Linear(2, 2), 1.5), ValueError, r"p, the probability of dropping, .*, got 1.5"),
        (lambda: DropConnect(nn.Linear(2, 2), inference="exact"), ValueError, "inference must be one of mean, moments"),
        (lambda: DropConnect(nn.Linear(2, 2), samples=0), ValueError, "samples must be a whole number >= 1, got 0"),
        (lambda: DropConnect(nn.LSTM(2, 2), per_example=True), ValueError, "a LSTM must have one mask for the batch"),
        (lambda: DropConnect(nn.GRU(2, 2), inference="moments"), ValueError, "a GRU must have one mask"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_is_refused_in_the_forward_pass():
    layer, x = DropConnect(nn.Linear(2, 2)), torch.ones(1, 2)
    layer.p = float("nan")
    with pytest.raises(ValueError, match=r"p, the probability of dropping, .*, got nan"):
        layer(x)
    elsewhere = DropConnect(nn.Linear(2, 2), generator=SimpleNamespace(device=torch.device("cuda")))
    with pytest.raises(ValueError, match="generator must be on the input's device cpu, got one on cuda"):
        elsewhere(x)


@pytest.mark.parametrize(
    "rewrite", [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.identity(m, "weight")]
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_weight_that_only_a_call_of_the_layer_computes_is_refused(rewrite):
    layer = DropConnect(nn.Linear(3, 2))
    rewrite(layer.layer)
    with pytest.raises(
        ValueError, match=r"DropConnect: the layer's weight must be a parameter, it is behind torch\.nn"
    ):
        layer(torch.ones(4, 3))
    layer.eval()(torch.ones(4, 3))


def test_a_parametrized_weight_is_dropped_as_it_acts():
    layer, x = DropConnect(nn.Linear(3, 2), generator=seeded(16)), torch.ones(4, 3)
    with torch.no_grad():
        layer.layer.weight.fill_(3.0)
    expected = layer(x)
    nn.utils.parametrizations.weight_norm(layer.layer)
    layer.layer.parametrizations.weight.original1.data.fill_(1.0)
    layer.layer.parametrizations.weight.original0.data.fill_(3 * 3**0.5)
    layer.generator.manual_seed(16)
    assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "change",
    [nn.utils.parametrizations.weight_norm, lambda gru, name: prune.random_unstructured(gru, name, 0.5)],
    ids=["normalized", "pruned"],
)
def test_parametrized_recurrent_weights_are_refused_rather_than_kept(change):
    gru = nn.GRU(3, 4)
    change(gru, "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 must be parameters of the layer, got parametrized ones"):
        DropConnect(gru)(torch.ones(5, 2, 3))
