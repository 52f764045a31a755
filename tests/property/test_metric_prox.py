"""The proximal operator with a step for each element, as Adam's metric asks for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import PENALTIES, each_case
from tests.helpers import assert_close
from torchreg import ProximalPenalty
from torchreg.functional import exclusive_threshold, group_soft_threshold

each_metric = each_case(lambda case: isinstance(case.penalty, ProximalPenalty) and case.penalty._takes_steps)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and steps over some orders of magnitude."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    return w, (spread * torch.randn(3, 4, generator=draw, dtype=torch.float64)).exp()


def test_the_table_has_elementwise_and_group_penalties():
    taking = [c for c in PENALTIES if isinstance(c.penalty, ProximalPenalty) and c.penalty._takes_steps]
    assert len(taking) > 12
    assert any(not c.penalty.is_separable for c in taking)


@each_metric
@given(seed=seeds, spread=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_it_minimizes_its_objective(case, seed, spread):
    w, steps = drawn(seed, spread)
    u = case.penalty.prox(w, steps)

    def objective(u):
        return ((u - w) ** 2 / (2 * steps)).sum() + case.penalty.value(u)

    draw = torch.Generator().manual_seed(seed)
    least = objective(u)
    for size in (1e-4, 1e-2, 1.0):
        other = u + size * torch.randn(3, 4, generator=draw, dtype=torch.float64) * steps.sqrt()
        assert least <= objective(other) + 1e-9 * (1 + least.abs())
    assert least <= objective(torch.zeros_like(w)) + 1e-9 * (1 + least.abs())


@each_metric
@given(seed=seeds, spread=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_of_a_convex_one_the_subdifferential_certifies_it(case, seed, spread):
    if not case.convex:
        pytest.skip("a stationary point proves little")
    w, steps = drawn(seed, spread)
    u = case.penalty.prox(w, steps)
    assert case.penalty.optimality(u, (u - w) / steps) <= 1e-9 * (1 + (w / steps).abs().max())


@each_metric
@given(seed=seeds, step=st.floats(1e-3, 10))
@settings(max_examples=20, deadline=None)
def test_equal_steps_are_one_step(case, seed, step):
    w, _ = drawn(seed, 0)
    assert_close(case.penalty.prox(w, torch.full_like(w, step)), case.penalty.prox(w, step), tolerance=1e-10)


@given(seed=seeds, spread=st.floats(0, 8), zeros=st.booleans())
@settings(max_examples=100, deadline=None)
def test_group_thresholds_of_any_spread_are_certified(seed, spread, zeros):
    w, t = drawn(seed, spread)
    if zeros:
        w[0, 1], t[1, 2], w[2] = 0.0, 0.0, 0.0
    u = group_soft_threshold(w, t)
    assert u.isfinite().all()
    norms = u.norm(dim=1, keepdim=True)
    gap = torch.where(norms > 0, (u - w) + t * u / norms.masked_fill(norms == 0, 1), 0)
    assert gap.abs().max() <= 1e-9 * w.abs().max().clamp(min=1)
    for weight, threshold in zip(w[norms[:, 0] == 0], t[norms[:, 0] == 0], strict=True):
        assert (weight / threshold)[weight != 0].norm() <= 1 + 1e-9


@given(seed=seeds, spread=st.floats(0, 5))
@settings(max_examples=100, deadline=None)
def test_exclusive_thresholds_of_any_spread_are_certified(seed, spread):
    w, c = drawn(seed, spread)
    u = exclusive_threshold(w, c)
    pull = c * u.abs().sum(1, keepdim=True)
    assert_close(u, torch.sign(w) * (w.abs() - pull).relu(), tolerance=1e-9)
