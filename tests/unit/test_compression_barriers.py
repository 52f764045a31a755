"""What compression leaves alone: modules that it does not understand, and what is tied or altered."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.helpers import assert_bit_equal, weights_of
from tests.unit.compressing import (
    assert_compresses,
    assert_same_outputs,
    build,
    image,
    kill,
    silence,
    size,
)
from torchreg.diagnostics.dead_units import compress


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
