"""torchreg's layers do what torch's do, mask values aside: shapes, strides, dtypes, errors, gradients."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from scipy.stats import chi2_contingency
from torch import Generator, nn

import torchreg
from tests.helpers import assert_bit_equal, assert_close

KINDS = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
DIMENSIONS = {"Dropout1d": 3, "Dropout2d": 4, "Dropout3d": 5}
each_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str) -> tuple[type[nn.Module], type[nn.Module]]:
    return getattr(torchreg.nn, kind), getattr(nn, kind)


def suited(kind: str) -> torch.Tensor:
    """An input of the rank that the layer is for, large enough for the fast paths of elementwise layers."""
    sizes = {3: (40, 50, 30), 4: (40, 50, 6, 5), 5: (40, 50, 3, 2, 5)}
    return torch.ones(sizes[DIMENSIONS.get(kind, 4)])


def outcome(layer: nn.Module, x: torch.Tensor) -> tuple[object, ...]:
    """What happens: the result's shape, strides and dtype, or the error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y = layer(x)
            told: tuple[object, ...] = (y.shape, y.stride(), y.dtype)
        except Exception as error:
            told = (type(error), str(error))
    return (*told, *(str(one.message) for one in caught))


@each_kind
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rank", range(7))
def test_every_rank_is_taken_warned_of_or_refused_as_by_torch(kind, inplace, training, rank):
    ours, theirs = (cls(0.5, inplace).train(training) for cls in pair(kind))
    shape = (2, 3, 4, 2, 3, 2)[:rank]
    if not training and "Feature" in kind:
        shape = shape or (1,)
    assert outcome(ours, torch.ones(shape)) == outcome(theirs, torch.ones(shape))


@each_kind
@pytest.mark.parametrize("p", [0, 1e-10, 0.3, 1 - 1e-10, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_rates_and_every_dtype(kind, p, dtype):
    x = suited(kind).to(dtype)
    ours, theirs = (cls(p) for cls in pair(kind))
    assert outcome(ours, x) == outcome(theirs, x)
    if p not in (0.3, 1 - 1e-10):
        assert_close(ours(x), theirs(x), tolerance=1e-2 if dtype.itemsize == 2 else 1e-5)


@each_kind
@pytest.mark.parametrize("p", [1e-10, 0.3])
def test_strides_are_torchs_for_every_order_and_slice(kind, p):
    base = suited(kind)
    ours, theirs = (cls(p) for cls in pair(kind))
    for order in itertools.permutations(range(base.ndim)):
        x = base.permute(order).contiguous().permute([order.index(i) for i in range(base.ndim)])
        for view in (x, x[1:], x[:, 1:], x[..., ::2]):
            assert ours(view).stride() == theirs(view).stride()


@each_kind
def test_memory_formats_are_kept_by_outputs_and_gradients(kind):
    if suited(kind).ndim < 4:
        return
    layout = torch.channels_last if suited(kind).ndim == 4 else torch.channels_last_3d
    x = suited(kind).to(memory_format=layout).requires_grad_()
    y = pair(kind)[0](0.3)(x)
    y.backward(torch.ones_like(y))
    assert y.is_contiguous(memory_format=layout)
    assert x.grad.is_contiguous(memory_format=layout)


@each_kind
def test_the_gradient_is_that_of_the_map_from_input_to_output(kind):
    x = torch.randn(suited(kind).shape, dtype=torch.float64, requires_grad=True)
    outward = torch.randn(x.shape, dtype=torch.float64)
    torch.manual_seed(0)
    layer = pair(kind)[0](0.3)
    (gradient,) = torch.autograd.grad(layer(x), x, outward)
    step = 1e-3 * torch.randn_like(x)
    torch.manual_seed(0)
    before = layer(x.detach())
    torch.manual_seed(0)
    assert_close(((layer(x.detach() + step) - before) * outward).sum(), (gradient * step).sum(), tolerance=1e-9)


@each_kind
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_is_dropped_is_as_much_and_what_is_kept_as_large_as_torchs(kind, p):
    x = suited(kind)
    torch.manual_seed(1)
    values = [cls(p)(x.double()) for cls in pair(kind)]
    small, large = (values[1].min(), values[1].max())
    counts = [[(v - small < (large - small) / 2).flatten(2)[..., 0].sum().item(), 2000] for v in values]
    if kind in ("Dropout", "AlphaDropout"):
        counts = [[(v - small < (large - small) / 2).sum().item(), v.numel()] for v in values]
    assert chi2_contingency([[count, total - count] for count, total in counts]).pvalue > 1e-5
    assert_close([values[0].min(), values[0].max()], [small, large], tolerance=1e-3)


@pytest.mark.parametrize("kind", ["Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"])
def test_channels_are_dropped_whole(kind):
    y = pair(kind)[0](0.5)(suited(kind)).flatten(2)
    assert (y == y[..., :1]).all()
    assert 800 < (y[..., 0] != y.max()).sum() < 1200


@pytest.mark.parametrize("kind", ["Dropout1d", "Dropout3d"])
@pytest.mark.parametrize("inplace", [False, True])
def test_without_a_batch_it_is_a_batch_of_one(kind, inplace):
    x, layer = suited(kind)[0], pair(kind)[0](0.5, inplace)
    torch.manual_seed(2)
    alone = layer(x.clone())
    torch.manual_seed(2)
    assert_bit_equal(alone, layer(x.clone().unsqueeze(0)).squeeze(0))


@each_kind
def test_in_place_overwrites_with_what_out_of_place_returns(kind):
    x = torch.randn(suited(kind).shape)
    torch.manual_seed(3)
    expected = pair(kind)[0](0.5)(x)
    torch.manual_seed(3)
    y = pair(kind)[0](0.5, inplace=True)(x)
    assert y is x
    assert_close(y, expected, tolerance=1e-6)


@each_kind
def test_empty_inputs_stay_empty(kind):
    x = suited(kind)[:0]
    assert [cls(0.5)(x).shape for cls in pair(kind)] == [x.shape] * 2


@each_kind
def test_evaluation_is_the_identity(kind):
    x = suited(kind)
    assert pair(kind)[0](0.5).eval()(x) is x


@each_kind
@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_rates_outside_0_to_1_are_refused(kind, bad):
    with pytest.raises(ValueError, match=rf"{kind}: p, the probability of dropping, must be in \[0, 1\], got {bad}"):
        pair(kind)[0](bad)


@each_kind
def test_torchs_state_loads_both_ways_and_it_is_torchs_layer(kind):
    ours, theirs = (cls(0.5) for cls in pair(kind))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, pair(kind)[1])
    assert repr(ours) == repr(theirs)


@each_kind
def test_a_generator_decides_alone_and_goes_with_state_and_copies(kind):
    layer, x = pair(kind)[0](0.5, generator=Generator().manual_seed(4)), suited(kind)
    before = torch.get_rng_state()
    layer(x)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), pair(kind)[0](0.5, generator=Generator())]
    twins[2].load_state_dict(layer.state_dict())
    expected = [layer(x) for _ in range(2)]
    for twin in twins:
        assert_bit_equal([twin(x) for _ in range(2)], expected)
    assert_bit_equal(torch.get_rng_state(), before)


@each_kind
def test_they_compile_whole(kind):
    compiled = torch.compile(pair(kind)[0](0.5), fullgraph=True, backend="aot_eager")
    x = suited(kind).requires_grad_()
    y = compiled(x)
    y.sum().backward()
    assert len(y.unique()) == 2
    assert len(x.grad.unique()) == 2


@each_kind
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_they_work_under_vmap(kind, randomness):
    y = torch.func.vmap(pair(kind)[0](0.5), randomness=randomness)(suited(kind).expand(4, *suited(kind).shape))
    assert bool((y == y[0]).all()) == (randomness == "same")


@each_kind
def test_autocast_leaves_the_dtype_alone(kind):
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (cls(0.5)(suited(kind)).dtype for cls in pair(kind))
    assert ours == theirs
