"""Penalties that skglm has as well: their values and proximal operators, to the last digits."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tests.helpers import assert_close
from torchreg import L1, MCP, SCAD, SLOPE, GroupLasso, GroupMCP, GroupSCAD, Penalty

pytest.importorskip("skglm")
from skglm import penalties
from skglm.utils.prox_funcs import prox_SLOPE

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what it warns of is its own

EXACT = 1e-10


def weights(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (L1(0.7), lambda: penalties.L1(0.7)),
        (MCP(0.7, gamma=3.0), lambda: penalties.MCPenalty(0.7, 3.0)),
        (SCAD(0.7, a=3.7), lambda: penalties.SCAD(0.7, 3.7)),
    ],
    ids=lambda value: repr(value) if isinstance(value, Penalty) else "skglm",
)
@pytest.mark.parametrize("step", [0.1, 1.0])
def test_penalties_of_single_weights(ours, theirs, step):
    w, theirs = weights(50), theirs()
    assert_close(ours.value(w).item(), theirs.value(w.numpy()), tolerance=EXACT)
    expected = [theirs.prox_1d(x, step, 0) for x in w.numpy()]
    assert_close(ours.prox(w, step), torch.tensor(expected, dtype=torch.float64), tolerance=EXACT)


@pytest.mark.parametrize("step", [0.1, 1.0])
@pytest.mark.parametrize(
    ("make", "theirs", "options"),
    [
        (GroupLasso, penalties.L2_1, ()),
        (GroupMCP, penalties.BlockMCPenalty, (3.0,)),
        (GroupSCAD, penalties.BlockSCAD, (3.7,)),
    ],
    ids=["GroupLasso", "GroupMCP", "GroupSCAD"],
)
def test_penalties_of_groups(make, theirs, options, step):
    w = weights(40, 4) * torch.linspace(0.01, 2, 40, dtype=torch.float64)[:, None]  # at 0 theirs are NaN
    ours = make(0.35, *options)
    other = theirs(0.35 * 2.0, *options)  # which does not take the root of the size, here 2, by itself
    assert_close(ours.value(w).item(), other.value(w.numpy()), tolerance=EXACT)
    expected = np.stack([other.prox_1feat(row, step, 0) for row in w.numpy()])
    assert_close(ours.prox(w, step), torch.from_numpy(expected), tolerance=EXACT)


@pytest.mark.parametrize(("strength", "q"), [(0.1, 0.1), (0.5, 0.5), (1.0, 0.9), (3.0, 0.1)])
def test_the_sorted_l1_norm(strength, q):
    w = weights(300)
    each = strength * norm.isf(np.arange(1, 301) * q / 600)
    ours, theirs = SLOPE(strength, q=q), penalties.SLOPE(each)
    assert_close(ours.value(w).item(), theirs.value(w.numpy()), tolerance=EXACT)
    for step in (0.1, 1.0):
        expected = prox_SLOPE(w.abs().sort(descending=True).values.numpy(), each * step)
        found = ours.prox(w, step)
        assert_close(found.abs().sort(descending=True).values, torch.from_numpy(expected), tolerance=EXACT)
        assert_close(found, torch.from_numpy(theirs.prox_vec(w.numpy(), step)), tolerance=EXACT)
