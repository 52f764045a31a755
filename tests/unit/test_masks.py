"""Masks are as random as they should be, and the same however they are computed."""

import math

import pytest
import torch
from scipy.stats import chisquare
from torch.autograd import forward_ad

from tests.helpers import assert_bit_equal, assert_close, seeded
from torchreg import functional as f
from torchreg.functional import dropping, masks
from torchreg.nn import Dropout

SIGMAS = 4.5
COUNT = 1_000_000
RATES = [
    0.5,
    0.3,
    0.1,
    0.95,
]  # eight bits decide alone at the first, and share others at the rest; the last is inverted


def dropped(p: float, count: int = COUNT, seed: int = 0, is_rare: bool = False) -> torch.Tensor:
    keep = f.keep_mask(torch.empty(0), p, (count,), seeded(seed), is_rare)
    return 1 - keep.double()


def correlation(a: torch.Tensor, b: torch.Tensor, p: float) -> float:
    """In units of its standard deviation under independence."""
    return ((a - p) * (b - p)).sum().item() / (p * (1 - p) * math.sqrt(len(a)))


# -- independence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("distance", [1, 2, 3, 7, 8, 15, 16, 17, 64, 1 << 14, COUNT // 16])
def test_neighbors_are_dropped_independently(p, distance):
    mask = dropped(p)
    assert abs(correlation(mask[distance:], mask[:-distance], p)) < SIGMAS


@pytest.mark.parametrize("p", RATES)
def test_elements_that_share_bits_are_hardly_correlated(p):
    """The share's own correlation, at most 2**-18 / p / (1 - p), is far below what these ten million can show."""
    count = 1 << 18  # one piece, in which those a sixteenth apart share
    pairs = [dropped(p, count, seed).view(16, -1) for seed in range(40)]
    first, second = (torch.cat([pair[i] for pair in pairs]) for i in (0, 9))
    assert abs(correlation(first, second, p)) < SIGMAS
    p_max = masks._SHARING * 2**-18 / p / (1 - p)
    total = torch.stack([pair.sum(0) for pair in pairs]).flatten()
    variance = total.var().item() / (16 * p * (1 - p))
    assert abs(variance - 1) < p_max + SIGMAS * math.sqrt(2 / len(total))


@pytest.mark.parametrize(("p", "is_rare"), [(0.5, False), (0.3, False), (0.9, False), (0.05, True)])
def test_patterns_of_eight_are_as_frequent_as_chance_has_them(p, is_rare):
    """Over 10^7 draws, all 256 patterns."""
    mask = dropped(p, 10_000_000, is_rare=is_rare).view(-1, 8).long()
    codes = (mask << torch.arange(8)).sum(1).bincount(minlength=256)
    ones = torch.tensor([code.bit_count() for code in range(256)])
    expected = len(mask) * p**ones * (1 - p) ** (8 - ones)
    enough = expected >= 5
    observed = [*codes[enough].tolist(), codes[~enough].sum().item()]
    wanted = [*expected[enough].tolist(), expected[~enough].sum().item()]
    kept = slice(None) if wanted[-1] >= 5 else slice(-1)
    total = sum(wanted[kept])
    assert chisquare(observed[kept], [w * sum(observed[kept]) / total for w in wanted[kept]]).pvalue > 1e-5


@pytest.mark.parametrize("p", RATES)
def test_runs_are_as_many_as_chance_has_them(p):
    mask = dropped(p)
    changes = (mask[1:] != mask[:-1]).double().mean().item()
    q = 2 * p * (1 - p)
    deviation = math.sqrt(q * (1 - q) + 2 * (p * (1 - p) - q**2)) if p != 0.5 else 0.5
    assert abs(changes - q) < SIGMAS * max(deviation, 0.5) / math.sqrt(COUNT)


@pytest.mark.parametrize("p", RATES)
def test_samples_layers_and_steps_are_independent(p):
    torch.manual_seed(1)
    layers = [Dropout(p), Dropout(p)]
    drawn = [(layer(torch.ones(4, 250_000)) == 0).double() for _ in range(2) for layer in layers]
    for i, a in enumerate(drawn):
        assert abs(correlation(a[0], a[1], p)) < SIGMAS
        for b in drawn[i + 1 :]:
            assert abs(correlation(a.flatten(), b.flatten(), p)) < SIGMAS


@pytest.mark.parametrize("bit", range(64))
@pytest.mark.parametrize("seed", [0, 0x9E3779B97F4A7C15])
def test_each_bit_of_the_seed_counts(seed, bit):
    first, second = (dropped(0.5, 100_000, number) for number in (seed, seed ^ (1 << bit)))
    assert abs(correlation(first, second, 0.5)) < SIGMAS


@pytest.mark.parametrize("bit", [0, 31, 32, 63])
def test_each_bit_of_the_global_seed_counts(bit):
    drawn = []
    for seed in (7, 7 ^ (1 << bit)):
        torch.manual_seed(seed)
        drawn.append((f.dropout(torch.ones(100_000)) == 0).double())
    assert abs(correlation(*drawn, 0.5)) < SIGMAS


# -- rates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [2**-16, 3 * 2**-16, 0.003, 1 / 3, 127.5 / 256, 128.5 / 256, 1 - 0.003, 1 - 2**-16])
def test_rates_that_eight_bits_cannot_tell_are_met(p):
    count = 20_000_000
    rate = f.representable(p)
    assert abs(rate - p) <= 2**-17
    assert abs(dropped(p, count).sum().item() - rate * count) < SIGMAS * math.sqrt(count * rate * (1 - rate))


@pytest.mark.parametrize("p", [1e-6, 0.00727, 0.5])
def test_rare_zeros_are_met_to_32_bits(p):
    count = 20_000_000
    assert abs(f.representable(p, is_rare=True) - p) <= 2**-33
    assert abs(dropped(p, count, is_rare=True).sum().item() - p * count) < SIGMAS * math.sqrt(count * p * (1 - p))


# -- the same however they are computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("p", RATES)
def test_the_number_of_threads_does_not_matter(p):
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            drawn.append(f.dropout(torch.ones(COUNT), p, generator=seeded(2)))
    finally:
        torch.set_num_threads(before)
    assert_bit_equal(*drawn)


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("count", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 700_001])
def test_large_tensors_have_the_same_statistics_and_no_seams(p, count):
    mask = dropped(p, count)
    assert len(mask) == count
    for part in mask.tensor_split(7):
        assert abs(part.sum().item() - p * len(part)) < SIGMAS * math.sqrt(len(part) * p * (1 - p))


@pytest.mark.parametrize("piece", [100, 10_000])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_pieces_it_is_the_written_out_product(monkeypatch, layout, piece):
    monkeypatch.setattr(dropping, "CHUNK", 100)
    monkeypatch.setattr(dropping, "_PIECE", piece)
    x = torch.randn(5, 6, 7, 8, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    mask = f.keep_mask(x, 0.3, x.shape, seeded(3))
    outward = torch.randn(x.shape, dtype=torch.float64)
    y = dropping.keep(x, mask, 1.5)
    assert y.grad_fn.name().startswith("_Masked")
    assert y.stride() == x.stride()
    assert_bit_equal(y, x * mask * 1.5)
    (gradient,) = torch.autograd.grad(y, x, outward)
    assert_bit_equal(gradient, outward * mask * 1.5)
    (expanded,) = torch.autograd.grad(dropping.keep(x, mask, 1.5).sum(), x)
    assert_bit_equal(expanded, torch.ones_like(x) * mask * 1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [100, 10_000])
@pytest.mark.parametrize("scale", [1.5, 1 / 0.9])
def test_in_each_precision_it_is_the_written_out_product(monkeypatch, dtype, chunk, scale):
    """In half precision the scale itself is not rounded; signs of zeros, infinities and NaN stay as in the product."""
    monkeypatch.setattr(dropping, "CHUNK", chunk)
    x = torch.randn(3000).to(dtype) * torch.logspace(-6, 6, 3000).to(dtype)
    x[:6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max])
    for kept in (0, 1):  # also of the special values
        mask = f.keep_mask(x, 0.3, x.shape, seeded(3))
        mask[:6] = kept
        leaf = x.clone().requires_grad_()
        y = dropping.keep(leaf, mask, scale)
        assert_bit_equal(y, x * mask * scale)
        assert_bit_equal(torch.autograd.grad(y, leaf, x)[0], x * mask * scale)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, when it loads its derivatives
def test_in_pieces_it_has_all_derivatives(monkeypatch):
    monkeypatch.setattr(dropping, "CHUNK", 4)
    monkeypatch.setattr(dropping, "_PIECE", 4)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = f.keep_mask(x, 0.3, x.shape, seeded(4))
    assert torch.autograd.gradcheck(lambda x: dropping.keep(x, mask, 1.5).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: dropping.keep(x, mask, 1.5).square(), x)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        y = dropping.keep(forward_ad.make_dual(x, tangent), mask, 1.5)
        assert_close(forward_ad.unpack_dual(y).tangent, tangent * mask * 1.5)


def test_many_gradients_may_be_asked_for_at_once():
    x = torch.ones(600, 600, dtype=torch.float64, requires_grad=True)
    outward = torch.randn(3, 600, 600, dtype=torch.float64)
    y = f.dropout(x, 0.3, generator=seeded(5))
    together = torch.autograd.grad(y, x, outward, is_grads_batched=True, retain_graph=True)[0]
    assert_close(together, outward * y.detach())
