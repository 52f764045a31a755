"""Paths as other libraries drop them, and whole layers."""

import copy

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, drawn_from, seeded
from torchreg import DropoutSchedule, linear
from torchreg import functional as f
from torchreg.nn import LayerDrop, StochasticDepth, mc_dropout, seed_dropout


@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_paths_are_dropped_as_by_timm(scale_by_keep):
    drop = pytest.importorskip("timm.layers.drop")
    ours = StochasticDepth(nn.Identity(), 0.25, scale_by_keep=scale_by_keep, generator=seeded(1))
    theirs = drop.DropPath(0.25, scale_by_keep)
    x = torch.full((20_000, 2), 3.0)
    found, expected = ours(x), drawn_from(1, theirs, x)
    assert_bit_equal(found.unique(), expected.unique())  # the same two numbers
    assert abs((found == 0).float().mean() - 0.25) < 0.01
    assert abs((expected == 0).float().mean() - 0.25) < 0.01
    assert_bit_equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_paths_are_dropped_as_by_torchvision(mode):
    ops = pytest.importorskip("torchvision.ops")
    ours, theirs = StochasticDepth(nn.Identity(), 0.25, mode, generator=seeded(1)), ops.StochasticDepth(0.25, mode)
    torch.manual_seed(1)
    draws = [torch.stack([layer(torch.full((4, 2), 3.0)) for _ in range(4000)]) for layer in (ours, theirs)]
    assert_bit_equal(draws[0].unique(), draws[1].unique())
    for y in draws:
        assert abs((y == 0).float().mean() - 0.25) < 0.03
        assert bool((y == y[:, :1]).all()) == (mode == "batch")


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("inplace", [True, False])
def test_kept_paths_that_are_not_scaled_are_the_input(p, inplace):
    x = torch.randn(500, 3)
    y = f.drop_paths(x.clone(), p, True, inplace, seeded(2), scale_by_keep=False)
    dropped = (y == 0).all(1)
    assert abs(dropped.float().mean() - p) < 0.07
    assert_bit_equal(y[~dropped], x[~dropped])
    assert repr(StochasticDepth(nn.Identity(), 0.5, scale_by_keep=False)).count("scale_by_keep=False") == 1


class Numbered(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.weight


def numbers(layers):
    return [layer.number for layer in layers]


def test_layers_are_left_out_with_probability_p_and_in_order():
    layers = LayerDrop([Numbered(i) for i in range(8)], 0.25, generator=seeded(1))
    passes = [numbers(layers) for _ in range(4000)]
    assert all(each == sorted(each) for each in passes)
    shares = torch.tensor([[i in each for i in range(8)] for each in passes]).double()
    assert (shares.mean(0) - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert (torch.corrcoef(shares.T) - torch.eye(8)).abs().max() < 0.08
    assert numbers(layers.eval()) == list(range(8))
    layers.train().p = 1.0
    assert numbers(layers) == []
    layers.p = 0.0
    assert numbers(layers) == list(range(8))


def test_layers_that_are_left_out_are_not_called_and_get_no_gradient():
    layers = LayerDrop([Numbered(i) for i in range(8)], 0.5, generator=seeded(2))
    x, called = torch.ones(3), []
    for layer in layers:
        called.append(layer.number)
        x = layer(x)
    x.sum().backward()
    assert 0 < len(called) < 8
    assert [i for i in range(8) if layers[i].weight.grad is not None] == called


def test_a_list_with_layer_drop_is_the_list_that_it_replaces():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 6)
    names, x = list(encoder.state_dict()), torch.randn(2, 3, 8)
    expected = encoder.eval()(x)
    encoder.layers = LayerDrop(encoder.layers, 0.5)
    assert list(encoder.state_dict()) == names
    assert_bit_equal(encoder.eval()(x), expected)
    encoder.train()
    assert seed_dropout(encoder, 3)[0] == "layers"
    outputs = [encoder(x) for _ in range(8)]
    assert len({tuple(y.flatten().tolist()) for y in outputs}) > 2
    seed_dropout(encoder, 3)
    assert_bit_equal([encoder(x) for _ in range(8)], outputs)


def test_a_list_with_layer_drop_is_handled_as_a_list():
    layers = LayerDrop([Numbered(i) for i in range(6)], 0.4, generator=seeded(1))
    assert len(layers) == 6
    assert layers[2] in layers
    assert Numbered(2) not in layers
    for part, expected in ((layers[1:4], [1, 2, 3]), (layers + nn.ModuleList([Numbered(9)]), [0, 1, 2, 3, 4, 5, 9])):
        assert (type(part), part.p, part.training) == (LayerDrop, 0.4, True)
        assert part.generator is layers.generator
        assert numbers(part.eval()) == expected
        part.train()
    layers.append(Numbered(6))
    twin = copy.deepcopy(layers)
    assert numbers(twin) == numbers(layers)
    state = layers.generator.get_state()
    assert repr(layers) == "LayerDrop(\n  p=0.4\n  (0-6): 7 x Numbered()\n)"
    assert_bit_equal(layers.generator.get_state(), state)
    assert len(LayerDrop()) == 0
    model = nn.ModuleDict({"layers": layers})
    schedule = DropoutSchedule(model, linear(steps=4))
    schedule.step()
    assert abs(layers.p - 0.3) < 1e-12


def test_monte_carlo_passes_leave_out_layers_of_their_own():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = LayerDrop([Numbered(i) for i in range(6)], 0.5)

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    model = Model().eval()
    with mc_dropout(model) as mc:
        samples = mc(torch.ones(5, 1), passes=200, outputs="values").samples
    assert_bit_equal(samples, samples[:, :1].expand_as(samples))
    expected = torch.distributions.Binomial(6, torch.tensor(0.5)).sample((100_000,)).exp2()
    assert abs(samples.mean() - expected.mean()) < 5 * (expected.var() / 200).sqrt()
    assert len(samples.unique()) > 4


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, [0, 2, 4, 6]), (1 / 3, [0, 1, 3, 4, 6, 7]), (0.25, [0, 1, 2, 4, 5, 6])]
)
def test_every_other_layer_is_left_out_for_inference(share, expected):
    pruned = LayerDrop([Numbered(i) for i in range(8)], 0.2).eval().every_other(share)
    assert type(pruned) is nn.ModuleList
    assert numbers(pruned) == expected
    assert not pruned.training


def test_what_layer_drop_refuses():
    with pytest.raises(ValueError, match=r"LayerDrop: p, the probability of dropping, must be in \[0, 1\], got 1\.5"):
        LayerDrop([], 1.5)
    for share in (0.0, 0.6, -1):
        with pytest.raises(
            ValueError, match=r"LayerDrop: share, of the layers to leave out, must be in \(0, 0\.5\], got"
        ):
            LayerDrop([]).every_other(share)
    layers = LayerDrop([nn.Identity()])
    layers.p = 2.0
    with pytest.raises(ValueError, match="LayerDrop: p, the probability"):
        list(layers)
