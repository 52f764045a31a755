"""Models that are no chains of layers: what is coupled goes together, and what must stay is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, weights_of
from tests.unit.compressing import randomized
from torchreg import compress
from torchreg.diagnostics import compression, coupled_units


def size(model):
    return sum(p.numel() for p in model.parameters())


def assert_smaller(model, x, parameters):
    """With the same outputs, and so many parameters fewer; a second time finds nothing."""
    small = compress(model, x)
    with torch.no_grad():
        assert_close(small(x), model(x), tolerance=1e-11)
    assert size(model) - size(small) == parameters
    assert_bit_equal(weights_of(compress(small, x)), weights_of(small))
    return small


class Block(nn.Module):
    """A residual stream of 6 channels with a bottleneck of 4."""

    def __init__(self, groups=1):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.down, self.norm = nn.Conv2d(6, 4, 3, padding=1, groups=groups), nn.BatchNorm2d(4)
        self.up = nn.Conv2d(4, 6, 1, groups=groups)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.up(torch.relu(self.norm(self.down(x))))
        y += x
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64)


def empty(layer, unit):
    layer.weight.data[unit] = 0
    layer.bias.data[unit] = 0


def test_a_residual_stream_loses_a_channel_only_if_all_its_layers_do():
    model = randomized(Block())
    empty(model.stem, 2)
    assert_smaller(model, IMAGES, 0)
    empty(model.up, 2)
    small = assert_smaller(model, IMAGES, (3 * 9 + 1) + (4 + 1) + 4 * 9 + 2)
    assert type(small) is Block
    assert (small.stem.out_channels, small.down.in_channels, small.head.in_features) == (5, 5, 5)


def test_a_stream_channel_that_nobody_reads_goes_whatever_is_written():
    model = randomized(Block())
    model.down.weight.data[:, 4] = 0
    assert_smaller(model, IMAGES, 0)
    model.head.weight.data[:, 4] = 0
    assert_smaller(model, IMAGES, (3 * 9 + 1) + (4 + 1) + 4 * 9 + 2)


def test_normalization_with_weight_zero_makes_a_constant():
    model = randomized(Block())
    model.norm.weight.data[1] = 0
    model.norm.bias.data[1] = 0.7
    small = assert_smaller(model, IMAGES, 6 * 9 + 1 + 2 + 6)
    assert_close(small.up.bias, model.up.bias + 0.7 * model.up.weight[:, 1, 0, 0])


def test_a_constant_that_is_part_of_a_sum_is_none():
    model = randomized(Block())
    model.stem.weight.data[2] = 0  # the stem's channel is constant, the stream's is not
    assert_smaller(model, IMAGES, 0)


def test_grouped_convolutions_lose_the_same_channel_in_all_groups():
    model = randomized(Block(groups=2))
    model.norm.weight.data[1] = 0
    model.norm.bias.data[1] = 0
    assert_smaller(model, IMAGES, 0)
    model.norm.weight.data[3] = 0
    model.norm.bias.data[3] = 0
    small = assert_smaller(model, IMAGES, 2 * (3 * 9 + 1 + 2 + 3))
    assert (small.down.groups, small.up.groups, small.up.in_channels) == (2, 2, 2)


class Joined(nn.Module):
    """Two branches side by side, and the first of them again on another way."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.out, self.other = nn.Conv2d(9, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        return self.out(torch.cat([one, two], 1).sigmoid()) + self.other(one)


def test_concatenated_branches_lose_their_own_channels():
    model = randomized(Joined())
    model.two.weight.data[3] = 0
    model.out.weight.data[:, 1] = 0  # of the first branch, which is read elsewhere too
    assert_smaller(model, IMAGES, 4 + 2)
    model.other.weight.data[:, 1] = 0
    assert_smaller(model, IMAGES, 2 * 4 + 4 + 2)


class Gated(nn.Module):
    """Squeeze and excitation, then a gated linear unit."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.wide, self.out = nn.Linear(6, 8), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        x = (x * gate[:, :, None, None]).mean((-2, -1))
        a, b = self.wide(x).chunk(2, -1)
        return self.out(a * b.sigmoid())


def test_a_gate_goes_with_its_channel_and_halves_go_together():
    model = randomized(Gated())
    model.norm.weight.data[2] = model.norm.bias.data[2] = 0
    small = assert_smaller(model, IMAGES, (27 + 1) + 2 + 3 + (3 + 1) + 8)
    assert small.excite.out_features == 5
    model.wide.weight.data[[1, 5]] = 0
    model.wide.bias.data[[1, 5]] = 0
    small = assert_smaller(model, IMAGES, 45 + 2 * (5 + 1) + 2)
    assert small.wide.out_features == 6


class OfItsOwn(nn.Module):
    """Layer scale, a position of each place, a product with a weight, and units that are added to the input."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.scale, self.place = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(5, 1))

    def forward(self, x):
        return self.out(x + self.two(self.one(x) * self.scale + self.place))


def test_parameters_that_a_module_holds_itself_go_with_the_units():
    model = randomized(OfItsOwn())
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    model.two.weight.data[:, 3] = 0
    small = assert_smaller(model, x, 4 + 1 + 1 + 4)
    assert (small.scale.shape, small.place.shape) == ((5,), (5, 1))
    model.out.weight.data[:, 0] = 0  # it is added to an input, which stays
    assert_smaller(model, x, 10)
    (stream,) = [units for units in coupled_units(model, x) if "two.weight" in units.layers]
    assert set(stream.reasons.values()) == {"it is added to what is no unit"}


class InPlace(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.whole = whole

    def forward(self, x):
        x = self.one(x)
        part = x.view(-1, 6) if self.whole else x[:, :3]
        part.add_(1)
        return self.two(x)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_changed_through_another_tensor_stays(whole):
    model = randomized(InPlace(whole))
    empty(model.one, 1)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_smaller(model, x, 0)


class Assembled(InPlace):
    def forward(self, x):
        y = torch.zeros(len(x), 6, dtype=x.dtype)
        y[:, : x.shape[1] + 2] = self.one(x)
        return {"out": [self.two(y)]}


def test_what_is_written_into_another_tensor_stays():
    model, x = randomized(Assembled(True)), torch.randn(3, 4, dtype=torch.float64)
    empty(model.one, 1)
    assert_bit_equal(weights_of(compress(model, x)), weights_of(model))
    assert "setitem needs all of it" in str(coupled_units(model, x)[0])


def test_complex_layers_lose_units_too():
    model = nn.Sequential(nn.Linear(4, 6, dtype=torch.complex128), nn.Linear(6, 2, dtype=torch.complex128))
    empty(model[0], 1)
    x = torch.randn(3, 4, dtype=torch.complex128)
    assert_close(compress(model, x)(x), model(x))
    assert compress(model)[0].out_features == 5


class Held:
    def __init__(self, x):
        self.x = x


class Boxed(InPlace):
    def forward(self, x):
        return Held(self.two(self.one(x)))


def test_outputs_that_are_not_seen_are_refused():
    with pytest.raises(ValueError, match="its output holds a Held, whose tensors are not seen"):
        compress(Boxed(True), torch.randn(3, 4))


# -- what cannot be -----------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.one(x)
        return self.two(x if x.sum() > 0 else -x)


class Fixed(Branching):
    def forward(self, x):
        return self.two(self.one(x).reshape(-1, 6))


def test_a_model_that_decides_by_values_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^compress: Branching could not be followed .* depends on the values") as e:
        compress(Branching(), torch.randn(2, 4))
    assert "\n" not in str(e.value)
    assert "give a suitable example, or the part of the model" in str(e.value)


def test_a_model_with_sizes_of_its_own_is_refused_in_one_line():
    model = Fixed()
    empty(model.one, 1)
    with pytest.raises(ValueError, match=r"^compress: the smaller Fixed .*: its forward has sizes .* write -1") as e:
        compress(model, torch.randn(2, 4))
    assert "\n" not in str(e.value)


def test_an_unsuitable_example_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^compress: Block could not be followed with this example: .* input to conv2d"
    ) as e:
        compress(Block(), torch.randn(2, 5))
    assert "\n" not in str(e.value)


def test_a_compiled_model_is_refused():
    with pytest.raises(ValueError, match="cannot be followed: give the model that it was compiled from"):
        compress(torch.compile(nn.Linear(2, 2)), torch.randn(2, 2))


def test_what_must_stay_is_named():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.norm(self.one(x)))

    first, last = coupled_units(Normed(), torch.randn(2, 4))
    assert str(first) == "one.weight: 6 units, 0 dead, 6 must stay (norm: layer_norm needs all of it)"
    assert str(last) == "two.weight: 2 units, 0 dead, 2 must stay (it is an output of the model)"


def test_streams_say_what_belongs_to_a_unit():
    stream = coupled_units(Block(), IMAGES.float())[0]
    assert stream.layers == ("stem.weight", "up.weight")
    assert {key: index.tolist() for key, index in stream.written.items()} == {
        (name, 0): list(range(6)) for name in ("stem.weight", "stem.bias", "up.weight", "up.bias")
    }
    assert stream.read.keys() == {("down.weight", 1), ("head.weight", 1)}


def test_compression_counts_any_model_with_an_example():
    model = randomized(Block())
    assert compression(model).units is None
    empty(model.stem, 2)
    empty(model.up, 2)
    weights = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (model, compress(model, IMAGES))]
    assert compression(model, IMAGES).units == weights[0] / weights[1]


# -- heads --------------------------------------------------------------------------------------------------------


def silence_heads(attention, width):
    """The first head is read by no output, the third has no values."""
    attention.out_proj.weight.data[:, :width] = 0
    attention.in_proj_weight.data[2 * 4 * width :][2 * width : 3 * width] = 0
    attention.in_proj_bias.data[2 * 4 * width :][2 * width : 3 * width] = 0


@pytest.mark.parametrize("batch_first", [True, False])
def test_dead_heads_of_an_encoder_go_with_any_mask(batch_first):
    model = randomized(nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first))
    silence_heads(model.self_attn, 2)
    model.linear2.weight.data[:, 3:7] = 0
    x = torch.randn(5, 5, 8, dtype=torch.float64)
    small = assert_smaller(model, x, 2 * (3 * (8 * 2 + 2) + 2 * 8) + 4 * (8 + 1 + 8))
    assert small.self_attn.num_heads == 2
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(5, 5, dtype=torch.bool)
    padding[:, 3:] = True
    each = torch.randn(20, 5, 5, dtype=torch.float64)  # for each head of each example
    for masks in ({"src_mask": causal}, {"src_key_padding_mask": padding}, {"src_mask": each}):
        assert_close(small(x, **masks), model(x, **masks), tolerance=1e-11)
    both = {"src_mask": each, "src_key_padding_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(padding, -9.0)}
    assert_close(small(x, **both), model(x, **both), tolerance=1e-11)


def test_attention_keeps_one_head_and_takes_inputs_without_batch():
    attention = randomized(nn.MultiheadAttention(8, 4, bias=False))
    attention.out_proj.weight.data.zero_()
    x = torch.randn(5, 8, dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)[0]

    small = assert_smaller(Model(), x, 3 * (3 * 8 * 2 + 2 * 8))
    assert small.attention.num_heads == 1
