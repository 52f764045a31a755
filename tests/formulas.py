"""Penalties written out a second time, in torch's own operations."""

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from torchreg import (
    ExclusiveLasso,
    GroupMCP,
    GroupSCAD,
    Heads,
)
from torchreg.penalties.groups import Grouped
from torchreg.penalties.partition import Groups, Index


def positive_power(w: Tensor, p: float) -> Tensor:
    return w[w != 0].abs().pow(p).sum()


def mcp(w: Tensor, s: float, gamma: float) -> Tensor:
    u = w.abs()
    return torch.where(u <= gamma * s, s * u - u * u / (2 * gamma), gamma * s * s / 2).sum()


def scad(w: Tensor, s: float, a: float) -> Tensor:
    u = w.abs()
    middle = (2 * a * s * u - u * u - s * s) / (2 * (a - 1))
    return torch.where(u <= s, s * u, torch.where(u <= a * s, middle, s * s * (a + 1) / 2)).sum()


def quantiles(w: Tensor, q: float) -> Tensor:
    """The weight of each rank in the sorted L1 norm."""
    return (
        torch.from_numpy(norm.isf(torch.arange(1, w.numel() + 1).numpy() * q / (2 * w.numel())))
        if w.numel()
        else w.flatten()
    )


def slope(w: Tensor, q: float) -> Tensor:
    """The sorted L1 norm; equal magnitudes share their weights, as the gradient that has no order does it."""
    u, each = w.abs().flatten(), quantiles(w, q)
    with torch.no_grad():
        share = [each[(u > x).sum() : (u >= x).sum()].mean() for x in u]
    return (torch.stack(share) * u).sum() if share else u.sum()


def hoyer_square(w: Tensor) -> Tensor:
    w = w[w != 0]
    return w.abs().sum() ** 2 / (w * w).sum() if w.numel() else w.sum()


def rows(w: Tensor) -> Tensor:
    return w.flatten(1) if w.ndim > 1 else w.reshape(-1, 1)


INDEX = torch.tensor([[0, 1, 0], [2, 2, 0], [1, 0, 2], [5, 5, 5]])  # groups of sizes 4, 2, 3 and 3
UNEQUAL = torch.tensor([[7, 0, 0], [0, 1, 0], [2, 0, 3], [4, 4, 4]])  # sizes that share no table: 5, 1, 1, 1, 3 and 1


def vectors(groups: Groups, w: Tensor) -> list[Tensor]:
    """The groups of a weight."""
    if isinstance(groups, Heads):
        return [part.flatten() for part in w.chunk(groups.number)]
    if isinstance(groups, str):
        return {"output": list(rows(w)), "input": list(w.T) if w.ndim == 2 else [], "tensor": [w.flatten()]}[groups]
    assert isinstance(groups, Tensor | Index)
    numbers = groups.tensor if isinstance(groups, Index) else groups
    return [w[number == numbers] for number in numbers.unique()]


def grouped_value(penalty: Grouped, w: Tensor) -> Tensor:
    s, nothing, each = penalty.strength, 0 * w.abs().sum(), vectors(penalty.groups, w)
    if isinstance(penalty, GroupMCP):
        return sum((mcp(v.norm(), s * len(v) ** 0.5, penalty.gamma) for v in each), start=nothing)
    if isinstance(penalty, GroupSCAD):
        return sum((scad(v.norm(), s * len(v) ** 0.5, penalty.a) for v in each), start=nothing)
    if isinstance(penalty, ExclusiveLasso):
        return s / 2 * sum((v.abs().sum().square() for v in each), start=nothing)
    lasso = getattr(penalty, "l1_ratio", 0.0)
    return s * (lasso * w.abs().sum() + (1 - lasso) * sum((len(v) ** 0.5 * v.norm() for v in each), start=nothing))


def singular_values(w: Tensor) -> Tensor:
    return torch.linalg.svdvals(rows(w)) if w.numel() else w.flatten()


def above_rounding(s: Tensor) -> Tensor:
    return s[s > 1e-14 * s.detach().sum()]


def largest_squared(s: Tensor) -> Tensor:
    """Of equal ones the mean, whose gradient is the same for each of them."""
    return s[s >= (1 - 1e-13) * s.detach()[:1]].square().mean() if s.numel() else s.sum()


def off_identity(m: Tensor) -> Tensor:
    return m @ m.T - torch.eye(len(m), dtype=m.dtype)


def smaller_gram(w: Tensor) -> Tensor:
    m = rows(w)
    return m @ m.T if len(m) <= m.shape[1] else m.T @ m


def held_groups(groups: Groups, g: Tensor) -> Tensor:
    return max((v.norm() / max(len(v), 1) ** 0.5 for v in vectors(groups, g)), default=0 * g.sum())


def held_ranks(q: float, g: Tensor) -> Tensor:
    total = g.abs().flatten().sort(descending=True).values.cumsum(0)
    return max(total / quantiles(g, q).cumsum(0), default=0 * g.sum())


def held_groups_and_elements(groups: Groups, g: Tensor) -> Tensor:
    low, high = torch.zeros((), dtype=g.dtype), 10 * g.norm() + 1e-300
    for _ in range(80):
        s = (low + high) / 2
        held = all((v.abs() - 0.3 * s).relu().norm() <= 0.7 * s * len(v) ** 0.5 for v in vectors(groups, g))
        low, high = (low, s) if held else (s, high)
    return high * bool(g.any())


def largest(g: Tensor) -> Tensor:
    return g.abs().flatten().sort().values[-1:].sum()


def nothing(g: Tensor) -> Tensor:
    return torch.zeros((), dtype=g.dtype)


def lengths(w: Tensor) -> Tensor:
    return w.flatten(1).square().sum(1).sqrt()


def bisected(w: Tensor, total: float) -> Tensor:
    """``max(w - tau, 0)`` with the sum ``total``, for a vector: tau by bisection, in NumPy."""
    v = w.double().numpy()
    low, high = v.min() - total, v.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > total else (low, middle)
    return torch.from_numpy(np.maximum(v - low, 0))
