"""Dropout on every kind of tensor: scale, limits, layouts, gradients. Its randomness is in test_masks.py."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import assert_bit_equal, assert_close, assert_differs, seeded
from torchreg.functional import dropout
from torchreg.nn import Dropout

RATES = [0.05, 0.1, 0.3, 0.5, 0.9]
SIGMAS = 4.5  # of the binomial distribution: one false alarm in 150 000, and the seed is fixed
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

LAYOUTS = {
    "contiguous": lambda: torch.randn(4, 6, 5, 3),
    "channels last": lambda: torch.randn(4, 6, 5, 3).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(6, 4).T,
    "expanded": lambda: torch.randn(6, 1).expand(6, 4),
    "sliced": lambda: torch.randn(6, 8)[1:5, ::2],
    "offset": lambda: torch.randn(25)[1:],
    "empty": lambda: torch.randn(0, 3),
    "0-d": lambda: torch.randn(()),
    "odd": lambda: torch.randn(7),  # not a multiple of the four elements that one random number decides
}
each_layout = pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())


# -- scale and limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_what_is_kept_is_scaled_exactly(p, dtype):
    x = torch.randn(1000, dtype=dtype)
    y = dropout(x, p, generator=seeded(13))
    kept = y != 0
    assert y.dtype == dtype
    assert kept.any()
    assert_bit_equal(y[kept], (x * (1 / (1 - p)))[kept])


@pytest.mark.parametrize("p", [*RATES, 2**-16, 1 - 2**-16, 0.123456789])
def test_the_scale_belongs_to_the_rate_that_16_bits_can_keep(p):
    kept = dropout(torch.ones(1_000_000, dtype=torch.float64), p).max()
    assert_close(kept.item(), 1 / (1 - round(p * 2**16) / 2**16))


@each_layout
@pytest.mark.parametrize("inplace", [False, True])
def test_p_0_is_the_identity_and_p_1_drops_all(make, inplace):
    x = make()
    assert_bit_equal(dropout(x, 0.0, inplace=inplace), x)
    x = make().clone()
    assert_close(dropout(x, 1.0, inplace=inplace), torch.zeros_like(x), tolerance=0)


@each_layout
def test_evaluation_returns_the_input_itself(make):
    x = make()
    assert dropout(x, 0.5, training=False) is x
    assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_p_outside_of_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match=rf"Dropout: p, the probability of dropping, must be in \[0, 1\], got {p!r}"):
        Dropout(p)
    with pytest.raises(ValueError, match="dropout: p, the probability"):
        dropout(torch.ones(3), p)
    layer = Dropout(0.5)
    layer.p = p  # as code that anneals the rate does
    with pytest.raises(ValueError, match="dropout: p, the probability"):
        layer(torch.ones(3))


# -- layouts ------------------------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_keeps_its_shape_and_scales_or_drops_each_element(make, dtype):
    x = make().to(dtype)
    y = dropout(x, 0.5)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.stride() == torch.empty_like(x).stride()
    assert ((y == 0) | (y == 2 * x)).all()


@pytest.mark.parametrize("name", ["channels last", "transposed", "expanded", "sliced"])
def test_elements_of_any_layout_are_dropped_each_on_its_own(name):
    x = torch.ones_like(LAYOUTS[name]()) if name != "expanded" else torch.ones(6, 1).expand(6, 4)
    x = x.expand(1000, *x.shape) if name == "expanded" else x.repeat(1000, *[1] * (x.ndim - 1))
    dropped = (dropout(x, 0.5) == 0).double().flatten()
    assert abs(dropped.mean().item() - 0.5) < SIGMAS * 0.5 / math.sqrt(len(dropped))
    assert len(dropped) > 10_000


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"expanded"}))
def test_inplace_overwrites_the_input_and_draws_the_same_mask(name):
    x = LAYOUTS[name]()
    expected = dropout(x, 0.3, generator=seeded(3))
    y = dropout(x, 0.3, inplace=True, generator=seeded(3))
    assert y is x
    assert_close(x, expected, tolerance=1e-6)


# -- randomness ---------------------------------------------------------------------------------------------------


def test_manual_seed_reproduces_the_masks():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append([dropout(torch.ones(100), 0.5) for _ in range(2)])
    assert_bit_equal(draws[0], draws[1])
    assert_differs(draws[0], draws[2])
    assert_differs(draws[0][0], draws[0][1])


def test_masks_do_not_depend_on_the_dtype():
    masks = [dropout(torch.ones(1001, dtype=dtype), 0.3, generator=seeded(7)) == 0 for dtype in DTYPES]
    assert_bit_equal(masks, [masks[0]] * len(DTYPES))


def test_a_generator_on_another_device_is_refused():
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match=r"generator must be on the input's device cpu, got one on cuda"):
        dropout(torch.ones(3), 0.5, generator=elsewhere)


# -- gradients ----------------------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_the_gradient_has_the_mask_and_the_scale_of_the_output(make, p):
    x = make().double().requires_grad_()
    grad = torch.randn(x.shape, dtype=torch.float64)
    y = dropout(x, p, generator=seeded(10))
    y.backward(grad)
    ones = dropout(torch.ones_like(x), p, generator=seeded(10))
    assert_close(x.grad, grad * ones)


@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck_of_first_and_second_order(inplace):
    def function(x):
        return dropout(x * 1, 0.3, inplace=inplace, generator=seeded(11)).square()

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_inplace_on_a_leaf_that_requires_grad_is_refused_as_everywhere():
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        dropout(torch.ones(3, requires_grad=True), 0.5, inplace=True)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [3 << 13, 1 << 18, (1 << 18) + 1, 1_000_016])
def test_the_mask_is_saved_in_one_byte_an_element_of_a_large_tensor(count, p, dtype):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(torch.ones(count, dtype=dtype, requires_grad=True), p)
    size = 1 if count > 1 << 18 else dtype.itemsize
    assert sum(tensor.untyped_storage().nbytes() for tensor in saved) == count * size


# -- the layer ----------------------------------------------------------------------------------------------------


def test_the_layer_is_the_function():
    layer, x = Dropout(0.3, generator=seeded(12)), torch.randn(4, 5)
    assert_bit_equal(layer(x), dropout(x, 0.3, generator=seeded(12)))
    assert Dropout(0.3).state_dict() == {}
    assert repr(layer) == "Dropout(p=0.3, inplace=False)"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_large_nested_tensors_are_dropped_part_by_part():
    x = torch.nested.nested_tensor([torch.ones(200, 200), torch.ones(100, 200)])
    y = dropout(x, 0.5)
    assert [part.shape for part in y.unbind()] == [(200, 200), (100, 200)]
    assert all(set(part.unique().tolist()) == {0.0, 2.0} for part in y.unbind())
