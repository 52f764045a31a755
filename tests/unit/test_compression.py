"""A compressed model computes the same from fewer weights; what is not understood stays as it is."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchreg
from tests.helpers import assert_bit_equal, assert_close, assert_differs, weights_of
from tests.unit.compressing import (
    SIDE,
    assert_compresses,
    assert_same_outputs,
    build,
    image,
    kill,
    silence,
    size,
    widths,
)
from torchreg.diagnostics.dead_units import compress
from torchreg.regularizer.activity import ActivityRegularizer

# -- chains of layers ---------------------------------------------------------------------------------------------


def test_units_without_incoming_weights_are_folded_into_the_next_bias():
    model = build(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))
    kill(model[0], [1, 4])
    small = assert_compresses(model, torch.randn(5, 4).double(), [4, 3])
    folded = model[2].bias + model[2].weight[:, [1, 4]] @ model[0].bias[[1, 4]].sigmoid()
    assert_close(small[2].bias, folded)


def test_units_without_outgoing_weights_go():
    model = build(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    silence(model[2], [0, 5])
    small = assert_compresses(model, torch.randn(5, 4).double(), [4, 3])
    assert_bit_equal(small[2].bias, model[2].bias)


def test_what_only_dead_units_fed_dies_in_turn():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    kill(model[0], [0, 1])
    model[2].weight.data[3, 2:] = 0  # reads the two dead units only
    model[4].weight.data[1, [0, 1, 2, 4]] = 0  # reads that one only
    assert_compresses(model, torch.randn(5, 4).double(), [4, 4, 3, 2])


def test_what_only_fed_dead_units_dies_in_turn():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    silence(model[4], [1, 2])
    model[2].weight.data[[0, 3, 4], 5] = 0  # unit 5 is read by the two dead units only
    assert_compresses(model, torch.randn(5, 4).double(), [5, 3, 2])


def test_a_layer_keeps_one_unit_and_the_last_layer_all():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU())
    kill(model[0], range(6))
    kill(model[2], range(3))
    assert_compresses(model, torch.randn(5, 4).double(), [1, 3])


def test_a_model_without_dead_units_is_copied_as_it_is():
    model = build(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(147, 2))
    assert_bit_equal(weights_of(compress(model)), weights_of(model))


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_a_reader_without_bias_gets_one_only_where_it_must(bias):
    model = build(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))
    kill(model[0], [2])
    model[0].bias.data[2] = bias
    small = assert_compresses(model, torch.randn(5, 4).double(), [5, 3])
    assert (small[2].bias is None) == (bias == 0)


def test_a_unit_that_nobody_reads_makes_no_bias():
    model = build(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))
    kill(model[0], [2])
    silence(model[2], [2])
    assert assert_compresses(model, torch.randn(5, 4).double(), [5, 3])[2].bias is None


def test_a_writer_without_bias_writes_zeros():
    model = build(nn.Linear(4, 6, bias=False), nn.Sigmoid(), nn.Linear(6, 3))
    kill(model[0], [2])
    assert_compresses(model, torch.randn(5, 4).double(), [5, 3])


@pytest.mark.parametrize(
    "activation",
    [
        nn.Identity(), nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.RReLU(), nn.PReLU(),
        nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.LogSigmoid(),
        nn.Hardsigmoid(), nn.Hardswish(), nn.Tanh(), nn.Hardtanh(), nn.Tanhshrink(), nn.Hardshrink(), nn.Softshrink(),
        nn.Softplus(), nn.Softsign(), nn.Threshold(0.1, 20.0), nn.Dropout(0.5), nn.Dropout1d(), nn.AlphaDropout(),
        nn.FeatureAlphaDropout(), torchreg.nn.Dropout(0.5), torchreg.nn.GaussianDropout(),
        torchreg.nn.AlphaDropout(), nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False),
    ],
    ids=repr,
)  # fmt: skip
def test_a_constant_goes_through_every_activation(activation):
    model = build(nn.Linear(4, 6), activation, nn.Tanh(), nn.Linear(6, 3))
    kill(model[0], [1, 4])
    silence(model[3], [5])
    small = compress(model.train())  # in which dropout, normalization and RReLU would give other constants
    assert widths(small) == [3, 3]
    assert type(small[1]) is type(activation)
    assert_same_outputs(small.eval(), model.eval(), torch.randn(5, 4).double())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_lose_channels_with_normalization_pooling_and_flatten_between(dims):
    conv, norm, pool = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm", "MaxPool"))
    model = build(
        nn.Sequential(conv(2, 5, 3), norm(5), nn.ReLU()), pool(2), conv(5, 4, 2), norm(4), nn.Flatten(),
        nn.BatchNorm1d(4 * 2**dims), nn.Dropout(), nn.Linear(4 * 2**dims, 3), nn.ReLU(), nn.Linear(3, 2),
    )  # fmt: skip
    kill(model[0][0], [0, 3])
    kill(model[2], [2])
    silence(model[7], range(2**dims))  # all that comes from channel 0
    small = assert_compresses(model, image(dims=dims), [3, 2, 3, 2])
    assert small[0][1].num_features == len(small[0][1].running_mean) == 3
    assert small[5].num_features == len(small[5].weight) == 2 * 2**dims


def test_a_channel_that_is_read_at_one_position_only_stays():
    model = build(nn.Conv2d(2, 3, SIDE - 1), nn.Flatten(), nn.Linear(12, 2))
    silence(model[2], [4, 5, 6, 0, 1, 2, 3])
    assert_compresses(model, image(), [2, 2])  # channel 0 goes, channel 1 is read in one corner


def test_features_of_several_places_flatten_in_their_own_order():
    model = build(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
    kill(model[0], [1])
    silence(model[3], [2, 8, 14])
    assert_compresses(model, torch.randn(5, 3, 4).double(), [4, 3])


def test_layers_of_several_places_lose_units_too():
    model = build(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    kill(model[0], [1])
    assert_compresses(model, torch.randn(5, 7, 2, 4).double(), [5, 3])


# -- constants that do not stay constant --------------------------------------------------------------------------

PADDED = [{"padding": 1}, {"padding": (0, 1)}, {"padding": "same"}]
FAITHFUL = [
    {"padding": 0},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate"},
    {"padding": "same", "padding_mode": "circular"},
]


@pytest.mark.parametrize("options", PADDED, ids=str)
@pytest.mark.parametrize(("bias", "kept"), [(0.7, 5), (-0.7, 4), (0.0, 4)])  # the ReLU makes a negative constant 0
def test_before_zero_padding_a_channel_goes_only_if_it_is_zero(options, bias, kept):
    model = build(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3, **options))
    kill(model[0], [2])
    model[0].bias.data[2] = bias
    assert_compresses(model, image(), [kept, 3])


@pytest.mark.parametrize("options", FAITHFUL, ids=str)
def test_before_other_padding_a_constant_channel_goes(options):
    model = build(nn.Conv2d(2, 5, 3), nn.Sigmoid(), nn.Conv2d(5, 3, 3, **options))
    kill(model[0], [2])
    assert_compresses(model, image(), [4, 3])


def test_zero_padding_at_the_writer_does_not_matter():
    model = build(nn.Conv2d(2, 5, 3, padding=1), nn.Sigmoid(), nn.Conv2d(5, 3, 3))
    kill(model[0], [2])
    assert_compresses(model, image(), [4, 3])


@pytest.mark.parametrize(
    ("pool", "kept"),
    [
        (nn.MaxPool2d(3, padding=1), 4),
        (nn.MaxPool2d(2, ceil_mode=True), 4),
        (nn.MaxPool2d(2, dilation=3), 4),
        (nn.MaxPool2d(2, dilation=3, padding=1), 5),
        (nn.AvgPool2d(2), 4),
        (nn.AvgPool2d(2, ceil_mode=True), 4),
        (nn.AvgPool2d(3, padding=1), 5),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), 4),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False, ceil_mode=True), 4),
        (nn.AvgPool2d(2, divisor_override=3), 5),
        (nn.AdaptiveAvgPool2d(1), 4),
        (nn.AdaptiveAvgPool2d((3, 4)), 4),
        (nn.AdaptiveMaxPool2d(2), 4),
    ],
    ids=repr,
)
def test_a_constant_goes_through_pooling_where_it_stays_one(pool, kept):
    model = build(nn.Conv2d(2, 5, 2), nn.Sigmoid(), pool, nn.Softplus(), nn.Conv2d(5, 3, 1))
    kill(model[0], [2])
    assert_compresses(model, image(), [kept, 3])


@pytest.mark.parametrize("activation", [nn.Softshrink(9.0), nn.Hardtanh(), nn.Threshold(9.0, 0.0)], ids=repr)
def test_what_is_no_constant_before_an_activation_is_none_behind_it(activation):
    model = build(nn.Conv2d(2, 5, 2), nn.AvgPool2d(3, padding=1), activation, nn.Conv2d(5, 3, 1))
    kill(model[0], [2])
    model[0].bias.data[2] = 10.0  # the mean at the border is 4.4 in the corners, 6.7 on the sides
    assert_compresses(model, image(), [5, 3])


@pytest.mark.parametrize("constant", [float("inf"), float("nan")])
def test_a_constant_that_is_no_number_stays(constant):
    model = build(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3))
    kill(model[0], [1])
    model[0].bias.data[1] = constant
    assert widths(compress(model)) == [6, 3]


# -- what the new model is like -----------------------------------------------------------------------------------


def test_the_original_is_untouched_and_shares_nothing():
    model = build(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    kill(model[0], [1])
    before, kept = weights_of(model), copy.deepcopy(model)
    small = compress(model)
    for tensor in small.state_dict().values():
        tensor.add_(1)
    assert_bit_equal(weights_of(model), before)
    assert widths(model) == widths(kept)
    assert_differs(weights_of(small), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtype_mode_and_requires_grad_are_kept(dtype):
    model = build(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.Linear(5, 3)).to(dtype)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].requires_grad_(False)
    kill(model[0], [1])
    model[1].bias.data[1] = 1  # the constant must not vanish in the ReLU
    small = compress(model)
    assert widths(small) == [5, 5, 3]
    assert {tensor.dtype for tensor in small.state_dict().values()} == {dtype, torch.int64}
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    frozen = {name for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight", "3.weight", "3.bias"}
    assert all(p.grad is None and p.is_leaf for p in small.parameters())


def test_the_compressed_model_trains_on():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).train()
    kill(model[0], [1])
    model(torch.randn(5, 4).double()).sum().backward()
    small = compress(model)
    assert all(p.grad is None for p in small.parameters())
    small(torch.randn(5, 4).double()).sum().backward()
    assert all(p.grad.shape == p.shape for p in small.parameters())


def test_names_stay_so_the_outcome_saves_and_prints_as_before():
    model = build(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 3))
    kill(model[0][0], [1])
    small = compress(model)
    assert small.state_dict().keys() == model.state_dict().keys()
    assert repr(small) == repr(model).replace("6", "5")


def test_an_attached_activity_regularizer_is_no_harm():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    kill(model[0], [1])
    with ActivityRegularizer(model, torchreg.L1(1.0), "1"):
        assert widths(compress(model)) == [6, 3]
    assert widths(compress(model)) == [5, 3]


# -- any model at all ---------------------------------------------------------------------------------------------

ACTIVATIONS = st.sampled_from(
    [nn.ReLU, nn.Sigmoid, nn.Identity, nn.GELU, nn.Dropout, nn.Softshrink, nn.LayerNorm, nn.Softmax]
)
CHANCES = st.sampled_from([0.0, 0.3, 0.7, 1.0])


@st.composite
def models(draw):
    """Convolutions, then linear layers, with a random lot between, and random rows and columns of weights zero."""
    count = st.integers(1, 5)
    channels, modules, side = draw(st.integers(1, 3)), [], 8
    x = torch.randn(4, channels, side, side, dtype=torch.float64)
    for _ in range(draw(st.integers(0, 3))):
        outputs, padding, kernel = draw(count), draw(st.integers(0, 1)), draw(st.integers(1, 2))
        groups = draw(st.sampled_from([1, 1, channels]))
        mode = draw(st.sampled_from(["zeros", "circular"]))
        bias = draw(st.booleans())
        outputs *= groups
        modules.append(
            nn.Conv2d(channels, outputs, kernel, padding=padding, groups=groups, padding_mode=mode, bias=bias)
        )
        channels, side = outputs, side + 2 * padding - kernel + 1
        modules += [nn.BatchNorm2d(channels)] * draw(st.booleans())
        if (activation := draw(ACTIVATIONS)) is nn.Softmax:
            modules.append(nn.Softmax(1))
        else:
            modules.append(nn.GroupNorm(1, channels) if activation is nn.LayerNorm else activation())
        if draw(st.booleans()) and side > 3:
            kind, padding = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d])), draw(st.integers(0, 1))
            modules.append(kind(2, padding=padding))
            side = (side + 2 * padding) // 2
    modules.append(nn.Flatten())
    inputs = channels * side * side
    for _ in range(draw(st.integers(1, 4))):
        outputs = draw(count)
        modules.append(nn.Linear(inputs, outputs, bias=draw(st.booleans())))
        modules += [nn.BatchNorm1d(outputs)] * draw(st.booleans())
        activation = draw(ACTIVATIONS)
        arguments = {nn.LayerNorm: [outputs], nn.Softmax: [-1]}.get(activation, [])
        modules.append(activation(*arguments))
        inputs = outputs
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(modules)))
        modules = [nn.Sequential(*modules[:cut]), *modules[cut:]]
    model = build(*modules, seed=draw(st.integers(0, 1000)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            rows, columns = (torch.rand(n, generator=random) < draw(CHANCES) for n in module.weight.shape[:2])
            module.weight.data[rows] = 0
            module.weight.data[:, columns] = 0
            if module.bias is not None and draw(st.booleans()):
                module.bias.data[rows] = 0
    return model, x


@given(case=models())
def test_whatever_the_model_outputs_stay_and_a_second_time_finds_nothing(case):
    model, x = case
    small = compress(model)
    with torch.no_grad():
        assert_close(small(x), model(x), tolerance=1e-11)
    assert size(small) <= size(model)
    assert_bit_equal(weights_of(compress(small)), weights_of(small))
