"""A layer with a generator takes what it takes without one, with the same warnings, and drops in the same way."""

import warnings

import pytest
import torch
from torch import nn

import torchreg.nn as t
from tests.helpers import assert_bit_equal, assert_close, seeded

LAYERS = {
    **{
        f"{kind}({p})": lambda g, kind=kind, p=p, **options: getattr(t, kind)(p, generator=g, **options)
        for kind in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
        for p in (0.0, 0.5, 1.0)
    },
    "GaussianDropout": lambda g, **options: t.GaussianDropout(0.5, generator=g, **options),
    "Dropout, shaped": lambda g, **options: t.Dropout(0.5, generator=g, noise_shape=(1, None), **options),
    "DropBlock1d": lambda g, **options: t.DropBlock1d(0.5, 2, generator=g, **options),
    "DropBlock2d": lambda g, **options: t.DropBlock2d(0.5, 2, generator=g, **options),
    "DropBlock3d": lambda g, **options: t.DropBlock3d(0.5, 2, generator=g, **options),
    "LockedDropout": lambda g, **options: t.LockedDropout(0.5, generator=g, **options),
    "StochasticDepth": lambda g: t.StochasticDepth(nn.Identity(), 0.5, generator=g),
    "StochasticDepth, batch": lambda g: t.StochasticDepth(nn.Identity(), 0.5, "batch", generator=g),
}
SHAPES = [(), (5,), (0,), (3, 4), (2, 0), (2, 3, 4), (0, 3, 4), (2, 3, 4, 5), (0, 3, 4, 4), (2, 3, 4, 5, 6), (1,) * 6]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int64, torch.bool]
INPUTS = {
    **{f"{shape} {dtype}": lambda s=shape, d=dtype: torch.ones(s).to(d) for shape in SHAPES for dtype in DTYPES},
    "meta": lambda: torch.ones(2, 3, 4, 4, device="meta"),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged),
    "large": lambda: torch.ones(300, 100),
    "transposed": lambda: torch.ones(4, 3, 5).transpose(0, 2),
    "expanded": lambda: torch.ones(4, 3, 1).expand(4, 3, 5),
    "channels last": lambda: torch.ones(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "parameter": lambda: nn.Parameter(torch.ones(3, 4, 5)),
}


def outcome(layer, x):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            y = layer(x)
        except Exception as error:
            return error, None
    return None, (y.ndim, y.dtype, y.device, y.layout, sorted({str(w.message)[:40] for w in said}))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("options", [{}, {"inplace": True}], ids=["", "in place"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.*prototype")
def test_each_input_is_taken_if_it_is_without_a_generator(make, options, training):
    options = {} if "Depth" in make(None).__class__.__name__ else options
    taken = 0
    for name, x in INPUTS.items():
        error, plain = outcome(make(None, **options).train(training), x())
        if error is None:
            refused, result = outcome(make(seeded(0), **options).train(training), x())
            assert refused is None, (name, refused)
            assert result == plain, name
            taken += 1
    assert taken > 10


@pytest.mark.parametrize(
    ("kind", "shape", "channels"),
    [
        ("Dropout1d", (40, 30), 1),
        ("Dropout1d", (40, 30, 5), 2),
        ("Dropout2d", (40, 30, 5), 2),
        ("Dropout2d", (40, 30, 2, 2, 2), 2),
        ("Dropout2d", (40, 30), 2),
        ("Dropout3d", (40, 3, 2, 2), 1),
        ("Dropout3d", (40, 30, 2, 2, 2), 2),
        ("Dropout3d", (40, 30, 5), 2),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout[23]d")
def test_whole_channels_are_dropped_where_torch_drops_them(kind, shape, channels):
    for layer in (getattr(nn, kind)(0.5), getattr(t, kind)(0.5, generator=seeded(1))):
        y = layer(torch.ones(shape)).reshape(*shape[:channels], -1)
        assert_bit_equal(y, y[..., :1].expand_as(y))
        assert set(y.unique().tolist()) == {0.0, 2.0}


def test_the_elements_of_jagged_tensors_are_dropped_and_their_gradients():
    values = torch.ones(400, 30, requires_grad=True)
    x = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 100, 400]))
    y = t.Dropout(0.3, generator=seeded(2))(x)
    assert y.shape == x.shape
    (x + y).values().sum().backward()
    kept = (values.grad - 1) * 0.7
    assert_close(kept.round(), kept, tolerance=1e-5)
    assert abs(kept.mean() - 0.7) < 0.02


def test_an_infinite_input_is_dropped_as_without_a_generator():
    x = torch.tensor([float("inf"), 1.0])
    assert_bit_equal(t.Dropout(1.0, generator=seeded(3))(x), nn.Dropout(1.0)(x))
