"""Blocks, branches, words: what is dropped together, and what is not."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.helpers import assert_bit_equal, assert_close, seeded
from torchreg.nn import (
    AlphaDropout,
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    Dropout,
    EmbeddingDropout,
    GaussianDropout,
    LockedDropout,
    StochasticDepth,
    WordDropout,
    insert_dropout,
    set_linear_depth,
)

BLOCKS = {1: DropBlock1d, 2: DropBlock2d, 3: DropBlock3d}
EMBEDDING = nn.Embedding.from_pretrained(torch.ones(30, 2))


# -- blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_coupled_channels_lose_the_same_blocks(spatial, batched):
    shape = (*[200] * batched, 4, *[7] * spatial)
    layer = BLOCKS[spatial](0.3, 3, couple_channels=True, generator=seeded(3))
    x = torch.ones(shape, requires_grad=True)
    y = layer(x)
    channels = y.movedim(-spatial - 1, 0)
    assert_bit_equal(channels, channels[:1].expand_as(channels))
    y.sum().backward()
    assert_bit_equal(x.grad, y.detach())
    if batched:
        assert abs((y == 0).float().mean() - 0.3) < 0.03
        assert not bool((y == y[:1]).all())
    assert "couple_channels=True" in repr(layer)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_rate_that_blocks_of_other_libraries_have_inside(library):
    """The formula of the docstring; at the borders theirs drop less, and here all positions are alike."""
    size, block, q = 14, 5, 0.1
    gamma = q / block**2 * size**2 / (size - block + 1) ** 2
    p = 1 - (1 - gamma) ** block**2
    torch.manual_seed(0)
    x = torch.ones(2000, 8, size, size)
    if library == "timm":
        theirs = pytest.importorskip("timm.layers.drop").DropBlock2d(q, block, couple_channels=False)
    else:
        theirs = pytest.importorskip("torchvision.ops").DropBlock2d(q, block)
    dropped, ours = (
        (layer(x) == 0).float().mean((0, 1)) for layer in (theirs, DropBlock2d(p, block, generator=seeded(4)))
    )
    inside = slice(block, size - block)
    error = 5 * (p * (1 - p) / 16_000) ** 0.5
    assert (dropped[inside, inside] - p).abs().max() < error
    assert (ours - p).abs().max() < error
    assert dropped[0, 0] < p - 4 * error  # a corner


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 7])
def test_what_is_dropped_is_a_union_of_blocks(spatial, block):
    """Each dropped position lies in a window of the block's size, cut off at the borders, that is dropped whole."""
    size = 9
    y = BLOCKS[spatial](0.2, block, generator=seeded(1))(torch.ones(2, 3, *[size] * spatial))
    for dropped in (y == 0).flatten(0, 1):
        covered = torch.zeros_like(dropped)
        for corner in itertools.product(range(1 - block, size), repeat=spatial):
            window = tuple(slice(max(start, 0), start + block) for start in corner)
            if dropped[window].all():
                covered[window] = True
        assert_bit_equal(covered, dropped)


@pytest.mark.parametrize("block", [20, (20, 1)])
def test_blocks_larger_than_the_map_drop_with_the_nominal_rate_too(block):
    y = DropBlock2d(0.3, block, generator=seeded(2))(torch.ones(200, 50, 6, 6))
    dropped = (y == 0).double().mean((2, 3))
    assert abs(dropped.mean().item() - 0.3) < 4.5 * dropped.std().item() / 100


def test_blocks_of_one_are_dropout():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    y = DropBlock2d(0.4, 1, generator=seeded(3))(x)
    assert_close(y, torch.where(y == 0, 0.0, x / 0.6), tolerance=1e-8)


def test_blocks_pass_the_gradient_of_what_they_keep():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y = DropBlock2d(0.3, 3, generator=seeded(4))(x)
    y.sum().backward()
    assert_close(x.grad, (y != 0).double() / 0.7, tolerance=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_blocks_keep_dtype_and_memory_format(dtype):
    x = torch.ones(2, 3, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    y = DropBlock2d(0.3, 3)(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert DropBlock2d(0.3, 3, inplace=True)(x) is x
    assert DropBlock2d(0.3, 3)(torch.ones(3, 8, 8)).shape == (3, 8, 8)
    assert DropBlock2d(0.3, 3)(torch.ones(0, 3, 8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_blocks_at_the_ends(p):
    x = torch.randn(2, 3, 8, 8)
    assert_close(DropBlock2d(p)(x), (1 - p) * x, tolerance=0)
    layer = DropBlock2d(0.5).eval()
    assert layer(x) is x


@pytest.mark.parametrize("p", [1 - 1e-12, 1e-12])
def test_blocks_close_to_the_ends_are_finite(p):
    y = DropBlock1d(p, 1)(torch.ones(2, 3, 4))
    assert_close(y, torch.full_like(y, float(p < 0.5)), tolerance=1e-6)


def test_word_dropout_does_not_follow_the_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        replaced = WordDropout(0.001, unknown=1, generator=seeded(16))(torch.zeros(1_000_000, dtype=torch.int64))
    finally:
        torch.set_default_dtype(torch.float32)
    assert abs(replaced.sum().item() - 1000) < 4.5 * math.sqrt(1000)


def test_what_blocks_refuse():
    for bad in (0, -3, 1.5, (3, 3, 3), (3, 0)):
        with pytest.raises(ValueError, match=r"DropBlock2d: block_size must be a whole number >= 1, or 2 of them, got"):
            DropBlock2d(0.1, bad)
    with pytest.raises(ValueError, match=r"DropBlock2d: p, the probability of dropping, must be in \[0, 1\], got 1.5"):
        DropBlock2d(1.5)
    with pytest.raises(ValueError, match=r"DropBlock2d: input must have 4 dimensions, or 3 without a batch, got"):
        DropBlock2d(0.1)(torch.ones(3, 3))


# -- branches -----------------------------------------------------------------------------------------------------


def test_a_row_is_dropped_whole_and_alone():
    y = StochasticDepth(nn.Identity(), 0.5, generator=seeded(5))(torch.ones(200, 3, 4))
    rows = y.flatten(1)
    assert (rows == rows[:, :1]).all()
    assert set(rows[:, 0].tolist()) == {0.0, 2.0}


def test_a_batch_is_dropped_whole():
    layer = StochasticDepth(nn.Identity(), 0.5, mode="batch", generator=seeded(6))
    outcomes = [layer(torch.ones(20, 3)) for _ in range(200)]
    assert all((y == y[0, 0]).all() for y in outcomes)
    assert {y[0, 0].item() for y in outcomes} == {0.0, 2.0}


def test_a_branch_is_itself_in_evaluation_and_without_a_rate():
    branch = nn.Linear(3, 3)
    x = torch.randn(4, 3)
    assert_bit_equal(StochasticDepth(branch, 0.7).eval()(x), branch(x))
    assert_bit_equal(StochasticDepth(branch, 0.0)(x), branch(x))


def test_rates_grow_linearly_with_depth():
    model = nn.Sequential(*(nn.Sequential(StochasticDepth(nn.Identity(), 0.9)) for _ in range(5)))
    assert_close(set_linear_depth(model, 0.5), [0.1, 0.2, 0.3, 0.4, 0.5])
    assert_close([block[0].p for block in model], [0.1, 0.2, 0.3, 0.4, 0.5])


def test_what_branches_refuse():
    with pytest.raises(ValueError, match="StochasticDepth: mode must be one of row, batch, got 'rows'"):
        StochasticDepth(nn.Identity(), mode="rows")
    with pytest.raises(TypeError, match=r"StochasticDepth: module must be a torch.nn.Module, got 0.5"):
        StochasticDepth(0.5)
    with pytest.raises(ValueError, match="set_linear_depth: model must have StochasticDepth layers, Linear has none"):
        set_linear_depth(nn.Linear(2, 2))


# -- noise shapes and sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Dropout, GaussianDropout, AlphaDropout])
@pytest.mark.parametrize("noise_shape", [(None, 1, None), (4, 1, 6), (1, 1, None), (None, None, 1), (1, 1, 1)])
def test_a_noise_shape_says_what_is_dropped_together(kind, noise_shape):
    y = kind(0.5, noise_shape=noise_shape, generator=seeded(7))(torch.ones(4, 5, 6))
    for dim, size in enumerate(noise_shape):
        together = (y == y.narrow(dim, 0, 1)).all()
        assert bool(together) == (size == 1)


@pytest.mark.parametrize("kind", [Dropout, GaussianDropout, AlphaDropout])
@pytest.mark.parametrize("noise_shape", [(4, 1), (4, 1, 6, 1), (2, 5, 6), (0, 5, 6), (-1, 5, 6), (4.0, 5, 6)])
def test_a_noise_shape_that_does_not_broadcast_is_refused(kind, noise_shape):
    with pytest.raises(ValueError, match=r"noise_shape must have 1, None or the input's own size .*\(4, 5, 6\), got"):
        kind(0.5, noise_shape=noise_shape)(torch.ones(4, 5, 6))


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_is_the_same_at_each_time_and_another_for_each_sequence(batch_first):
    y = LockedDropout(0.5, batch_first=batch_first, generator=seeded(8))(torch.ones(6, 7, 50))
    time = 1 if batch_first else 0
    assert (y == y.narrow(time, 0, 1)).all()
    assert not (y == y.narrow(1 - time, 0, 1)).all()
    with pytest.raises(ValueError, match="LockedDropout: input must have the dimensions time, batch and features"):
        LockedDropout(0.5)(torch.ones(3, 4))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("per_example", [False, True])
def test_all_occurrences_of_a_word_are_dropped_together(batch_first, per_example):
    tokens = torch.randint(30, (40, 12), generator=seeded(9))  # 40 sequences of 12
    layer = EmbeddingDropout(EMBEDDING, 0.5, batch_first=batch_first, per_example=per_example, generator=seeded(10))
    y = layer(tokens if batch_first else tokens.t())
    kept = (y if batch_first else y.transpose(0, 1))[..., 0]
    fates: dict[tuple[int, int], set[float]] = {}
    for n, t in itertools.product(range(40), range(12)):
        fates.setdefault((n if per_example else 0, tokens[n, t].item()), set()).add(kept[n, t].item())
    assert all(len(fate) == 1 for fate in fates.values())
    assert {value for fate in fates.values() for value in fate} == {0.0, 2.0}
    if per_example:
        assert any(len({f.pop() for k, f in fates.items() if k[1] == word and f}) == 2 for word in range(30))


def test_a_single_sequence_has_one_mask():
    y = EmbeddingDropout(EMBEDDING, 0.5, generator=seeded(11))(torch.tensor([1, 2, 1, 3, 1]))
    assert y.shape == (5, 2)
    assert (y[0] == y[2]).all()
    assert (y[0] == y[4]).all()


def test_words_become_unknown_but_not_those_that_are_kept():
    tokens = torch.randint(2, 30, (100, 100), generator=seeded(12))
    tokens[:, 0] = 0
    replaced = WordDropout(0.3, unknown=1, keep=[0, 5], generator=seeded(13))(tokens)
    changed = replaced != tokens
    assert (replaced[changed] == 1).all()
    assert not changed[(tokens == 0) | (tokens == 5)].any()
    others = changed[(tokens != 0) & (tokens != 5)].double()
    assert abs(others.mean().item() - 0.3) < 4.5 * math.sqrt(0.21 / len(others))
    assert WordDropout(0.3, unknown=1).eval()(tokens) is tokens


def test_what_words_refuse():
    with pytest.raises(TypeError, match=r"WordDropout: tokens must be whole numbers, got torch.float32"):
        WordDropout(0.5, unknown=0)(torch.ones(3))
    with pytest.raises(TypeError, match=r"EmbeddingDropout: embedding must be a torch.nn.Embedding, got"):
        EmbeddingDropout(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="EmbeddingDropout: tokens must have one or two dimensions"):
        EmbeddingDropout(EMBEDDING)(torch.zeros(2, 2, 2, dtype=torch.int64))


# -- what all have in common --------------------------------------------------------------------------------------

EACH = {
    "DropBlock2d": (lambda g: DropBlock2d(0.3, 3, generator=g), torch.ones(4, 3, 9, 9)),
    "StochasticDepth": (lambda g: StochasticDepth(nn.Identity(), 0.5, generator=g), torch.ones(40, 3)),
    "LockedDropout": (lambda g: LockedDropout(0.5, generator=g), torch.ones(3, 4, 20)),
    "EmbeddingDropout": (lambda g: EmbeddingDropout(EMBEDDING, 0.5, generator=g), torch.arange(30).unsqueeze(1)),
    "WordDropout": (lambda g: WordDropout(0.5, unknown=0, generator=g), torch.arange(30)),
}


@pytest.mark.parametrize(("make", "x"), EACH.values(), ids=EACH.keys())
def test_a_generator_decides_alone_and_is_saved(make, x):
    state = torch.get_rng_state()
    layer = make(seeded(14))
    layer(x)
    saved = {key: value.clone() for key, value in layer.state_dict().items()}
    expected = [layer(x) for _ in range(3)]
    assert_bit_equal(torch.get_rng_state(), state)
    again = make(seeded(15))
    again.load_state_dict(saved)
    assert_bit_equal([again(x) for _ in range(3)], expected)


@pytest.mark.parametrize(("make", "x"), EACH.values(), ids=EACH.keys())
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_rate_set_to_no_probability_is_refused(make, x, p):
    layer = make(None)
    layer.p = p
    with pytest.raises(ValueError, match=r"p, the probability of dropping, must be in \[0, 1\]"):
        layer(x)


@pytest.mark.parametrize(("make", "x"), EACH.values(), ids=EACH.keys())
def test_they_compile_without_graph_breaks(make, x):
    layer = make(None)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert compiled(x).shape == layer(x).shape


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("name", ["DropBlock2d", "StochasticDepth", "LockedDropout"])
def test_they_work_under_vmap(name, randomness):
    make, x = EACH[name]
    y = torch.func.vmap(make(None), randomness=randomness)(x.expand(8, *x.shape))
    assert bool((y == y[0]).all()) == (randomness == "same")


# -- packed sequences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[5, 3, 2], [2, 5, 3], [4, 4, 4]])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
@pytest.mark.parametrize("inplace", [True, False])
def test_packed_sequences_get_the_masks_of_the_padded_batch(lengths, batch_first, p, dtype, inplace):
    longest = max(lengths)
    x = torch.randn((3, longest, 7) if batch_first else (longest, 3, 7), generator=seeded(4)).to(dtype)
    options = {"batch_first": batch_first, "enforce_sorted": False}
    packed = pack_padded_sequence(x, torch.tensor(lengths), **options)
    layer = LockedDropout(p, batch_first=batch_first, generator=seeded(5))
    expected = pack_padded_sequence(layer(x), torch.tensor(lengths), **options)
    layer.generator.manual_seed(5)
    layer.inplace = inplace
    y = layer(packed)
    assert type(y) is type(packed)
    assert_bit_equal(y.data, expected.data)
    assert_bit_equal(y.batch_sizes, packed.batch_sizes)
    assert (y.data is packed.data) == (inplace or p == 0)
    assert layer.eval()(packed) is packed


def test_a_packed_sequence_of_numbers_has_no_features_to_drop():
    packed = pack_padded_sequence(torch.ones(5, 2), torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="LockedDropout: packed sequences must have features"):
        LockedDropout(0.5)(packed)


def test_an_inserted_locked_dropout_takes_packed_sequences():
    model, packed = nn.GRU(4, 200), pack_padded_sequence(torch.randn(6, 2, 4), torch.tensor([6, 4]))
    insert_dropout(model, LockedDropout(0.5), after="")
    dropped = torch.nn.utils.rnn.unpack_sequence(model(packed)[0])
    for sequence in dropped:
        assert_bit_equal(sequence == 0, (sequence == 0)[:1].expand_as(sequence))
        assert 0 < (sequence == 0).sum() < sequence.numel()
