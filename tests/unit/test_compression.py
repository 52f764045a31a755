"""A compressed model computes the same from fewer weights; what is not understood stays as it is."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

import torchreg
from tests.helpers import assert_bit_equal, assert_close, assert_differs, weights_of
from torchreg.diagnostics.dead_units import compress
from torchreg.regularizer.activity import ActivityRegularizer

SIDE = 9  # of the maps that convolutions get


def build(*modules, seed=0):
    """The modules in sequence, in double precision, with weights and running statistics that are all different."""
    model = nn.Sequential(*modules).double().eval()
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype))
            tensor.abs_() if name.endswith("running_var") else None
    return model


def kill(layer, units, *, also_outgoing=()):
    """Sets all that comes into some units of a layer to zero; their biases stay."""
    layer.weight.data[list(units)] = 0
    for reader in also_outgoing:
        reader.weight.data[:, list(units)] = 0


def silence(layer, columns):
    """Sets what a layer reads from some columns to zero."""
    layer.weight.data[:, list(columns)] = 0


def image(channels=2, dims=2):
    return torch.randn(3, channels, *[SIDE] * dims, dtype=torch.float64)


def widths(model):
    """The number of outputs of each linear layer and convolution, as the layers and as their weights have it."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    named = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in layers]
    assert named == [m.weight.shape[0] for m in layers]
    return named


def size(model):
    return sum(p.numel() for p in model.parameters())


def assert_same_outputs(small, model, x):
    with torch.no_grad():
        assert_close(small(x), model(x))


def assert_compresses(model, x, expected):
    """To these widths, with the same outputs."""
    small = compress(model)
    assert widths(small) == expected
    assert_same_outputs(small, model, x)
    assert (size(small) < size(model)) == (expected != widths(model))
    return small


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


# -- what is left alone -------------------------------------------------------------------------------------------


class Squared(nn.Module):
    def forward(self, x):
        return x.square()


class Normalized(nn.Module):
    def forward(self, x):
        return x / x.norm()


class Counted(nn.Module):
    def forward(self, x):
        return torch.cat([x[..., :2], x[..., 2:]], -1)  # which two these are depends on the units before


class Reversed(nn.ReLU):
    def forward(self, x):
        return super().forward(x.flip(-1))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    "between",
    [
        nn.Softmax(-1), nn.LayerNorm(6), Normalized(), Counted(), Residual(nn.Softmax(-1)), nn.MaxPool1d(1),
        nn.BatchNorm1d(6, track_running_stats=False), nn.AvgPool1d(1), nn.PReLU(6),
    ],
    ids=repr,
)  # fmt: skip
def test_anything_that_is_not_known_to_keep_units_apart_is_a_barrier(between):
    model = build(nn.Linear(4, 6), between, nn.Linear(6, 3))
    kill(model[0], [1])
    silence(model[2], [2])
    assert_bit_equal(weights_of(compress(model)), weights_of(model))


@pytest.mark.parametrize(
    "between",
    [
        nn.GroupNorm(3, 6), nn.InstanceNorm2d(6), nn.LocalResponseNorm(2), nn.ChannelShuffle(2), nn.Softmax2d(),
        nn.PixelShuffle(1), nn.LPPool2d(2, 2), nn.Conv2d(6, 6, 1, groups=2),
    ],
    ids=repr,
)  # fmt: skip
def test_barriers_for_channels(between):
    model = build(nn.Conv2d(2, 6, 3), between, nn.Conv2d(6, 3, 1))
    kill(model[0], [1])
    silence(model[2], [2])
    assert_bit_equal(weights_of(compress(model)), weights_of(model))


def test_a_linear_layer_on_the_width_of_a_map_does_not_read_channels():
    model = build(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Linear(7, 3))
    kill(model[0], [1])
    silence(model[2], [2])
    assert_bit_equal(weights_of(compress(model)), weights_of(model))


def test_a_convolution_over_the_outputs_of_a_linear_layer_does_not_read_units():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Conv1d(6, 3, 1))
    kill(model[0], [1])
    silence(model[2], [2])
    assert model(torch.randn(5, 6, 4).double()).shape == (5, 3, 6)
    assert_bit_equal(weights_of(compress(model)), weights_of(model))


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d(7), (7,)), (nn.BatchNorm1d(12), (12,)), (nn.BatchNorm2d(6), (6, 2))], ids=str
)
def test_normalization_over_places_is_a_barrier(norm, shape):
    model = build(nn.Linear(4, 6), norm, nn.Linear(6, 3))
    kill(model[0], [1])
    assert model(torch.randn(5, *shape, 4).double()).shape == (5, *shape, 3)
    assert_bit_equal(weights_of(compress(model)), weights_of(model))


def test_behind_a_barrier_compression_goes_on():
    model = build(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for layer in model[:3:2]:
        kill(layer, [1])
    assert_compresses(model, torch.randn(5, 4).double(), [6, 4, 3])


def tie_modules():
    layer = nn.Linear(6, 6)
    model = build(nn.Linear(4, 6), layer, nn.ReLU(), layer, nn.Linear(6, 3))
    kill(layer, [1])
    return model


def tie_blocks():
    block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False))
    model = build(nn.Linear(4, 6), block, nn.ReLU(), block, nn.Linear(6, 3))
    kill(block[0], [1])
    return model


def tie_statistics():
    norm = nn.BatchNorm1d(6, affine=False)
    model = build(nn.Linear(4, 6), norm, nn.Linear(6, 6), norm, nn.Linear(6, 3))
    kill(model[2], [1])
    return model


def tie_weights():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[4].weight = model[2].weight
    kill(model[2], [1])
    return model


def tie_with_a_stranger():
    model = tie_weights()
    model[4] = Squared()
    model[4].weight = model[2].weight
    return model


def mask_by_hook():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    kill(model[0], [1])
    prune.l1_unstructured(model[0], "weight", 3)
    with torch.no_grad():
        model(torch.zeros(1, 4).double())  # torch copies the masked weight only without its gradient's graph
    return model


def normalize_weights():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    silence(model[2], [1])
    parametrizations.weight_norm(model[2])
    return model


def listen():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    silence(model[2], [1])
    model[1].register_forward_hook(lambda module, args, output: output.flip(-1))
    return model


def listen_to_a_block():
    model = build(nn.Linear(4, 6), nn.Sequential(nn.ReLU()), nn.Linear(6, 3))
    silence(model[2], [1])
    model[1].register_forward_pre_hook(lambda module, args: args[0].flip(-1))
    return model


def patch():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    silence(model[2], [1])
    model[1].forward = lambda x: x.flip(-1)
    return model


def patch_a_block():
    model = build(nn.Linear(4, 6), nn.Sequential(nn.ReLU()), nn.Linear(6, 3))
    silence(model[2], [1])
    model[1].forward = lambda x: x.flip(-1)
    return model


@pytest.mark.parametrize(
    "make",
    [
        tie_modules, tie_blocks, tie_statistics, tie_weights, mask_by_hook, normalize_weights, listen,
        listen_to_a_block,
    ],
)  # fmt: skip
def test_tied_or_altered_modules_are_barriers(make):
    model = make()
    small = compress(model)
    assert_bit_equal(weights_of(small), weights_of(model))
    assert_same_outputs(small, model, torch.randn(5, 4).double())


def test_units_pruned_by_torch_go_once_the_masks_are_made_permanent():
    model = build(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    prune.ln_structured(model[0], "weight", amount=4, n=2, dim=0)
    prune.remove(model[0], "weight")
    assert_compresses(model, torch.randn(5, 4).double(), [2, 3])


def test_an_activation_used_twice_is_no_barrier():
    relu = nn.ReLU()
    model = build(nn.Linear(4, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 3))
    kill(model[0], [1])
    kill(model[2], [2, 3])
    assert_compresses(model, torch.randn(5, 4).double(), [5, 4, 3])


def test_layers_of_width_zero_are_left_alone():
    with pytest.warns(UserWarning, match="zero-element"):
        model = build(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 3))
    assert_compresses(model, torch.randn(5, 4).double(), [0, 3])


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Residual(nn.Linear(2, 2)), nn.ModuleList()], ids=repr)
def test_only_sequences_come_without_an_example(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Sequential or come with an example .* got \w+"):
        compress(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got NoneType"):
        compress(None)


@pytest.mark.parametrize("between", [nn.ModuleList(), nn.GLU(), nn.Flatten(4)], ids=repr)
def test_a_sequence_that_takes_no_input_is_refused(between):
    with pytest.raises(ValueError, match="found no input that the Sequential takes: give an example"):
        compress(build(nn.Linear(4, 6), between, nn.Linear(6, 3)))


@pytest.mark.parametrize("between", [Squared(), Reversed(), Residual(nn.ReLU())], ids=repr)
def test_the_calls_of_any_module_are_followed(between):
    model = build(nn.Linear(4, 6), between, nn.Linear(6, 3))
    kill(model[0], [1])
    silence(model[2], [2])
    assert_compresses(model, torch.randn(5, 4).double(), [4, 3])


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (nn.ZeroPad2d(1), [5, 3]), (nn.Upsample(scale_factor=2), [4, 3]), (nn.ReflectionPad2d(1), [4, 3]),
        (nn.Conv2d(6, 6, 3, groups=6), [4, 4, 3]),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), [5, 5, 3]), (nn.Conv2d(6, 12, 3, groups=6), [5, 10, 3]),
    ],
    ids=repr,
)  # fmt: skip
def test_channels_go_through_what_keeps_them_apart(between, expected):
    outputs = getattr(between, "out_channels", 6)
    model = build(nn.Conv2d(2, 6, 3), between, nn.Conv2d(outputs, 3, 1))
    kill(model[0], [1])  # a constant that is not 0, which zeros at the border do not go with
    silence(model[2], [2])  # of a filter for each channel, or of the first of two
    assert_compresses(model, image(), expected)


def test_transposed_convolutions_lose_channels_that_are_zero_or_not_read():
    model = build(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(5, 3, 1))
    kill(model[0], [1, 2])
    model[0].bias.data[1:3] = torch.tensor([-1.0, 1.0])
    silence(model[3], [4])
    small = compress(model)
    assert (small[0].out_channels, small[2].in_channels, small[2].out_channels) == (5, 5, 4)
    assert_same_outputs(small, model, image())


@pytest.mark.parametrize("make", [tie_with_a_stranger, patch, patch_a_block])
def test_tied_or_altered_modules_lose_units_where_that_is_right(make):
    model = make()
    small = compress(model)
    assert size(small) < size(model)
    assert_same_outputs(small, model, torch.randn(5, 4).double())


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
