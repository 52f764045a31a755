"""The one table of cases: tests that run over penalties, constraints or modes draw them from here.

A new penalty is one row in ``PENALTIES``.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import (
    INDEX,
    UNEQUAL,
    above_rounding,
    grouped_value,
    held_groups,
    held_groups_and_elements,
    held_ranks,
    hoyer_square,
    largest,
    largest_squared,
    lengths,
    mcp,
    nothing,
    off_identity,
    positive_power,
    rows,
    scad,
    singular_values,
    slope,
    smaller_gram,
)
from tests.helpers import by_pickle
from torchreg import (
    L1,
    L1SP,
    L2,
    L2SP,
    MCP,
    SCAD,
    SLOPE,
    SRIP,
    Box,
    Constraint,
    DoubleSoftOrthogonality,
    ElasticNet,
    ExclusiveLasso,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    Heads,
    HoyerSquare,
    Huber,
    L1Ball,
    L2Ball,
    LinfBall,
    LogSum,
    Lp,
    MaxNorm,
    NonNegative,
    Nuclear,
    Penalty,
    ProximalPenalty,
    Rank,
    Simplex,
    SoftOrthogonality,
    SparseGroupLasso,
    Sparsest,
    SpectralNorm,
    UnitNorm,
)
from torchreg.penalties import Term
from torchreg.penalties.partition import Groups


@dataclass(frozen=True)
class PenaltyCase:
    """A penalty with its value written out a second time, in torch's own operations."""

    penalty: Penalty
    formula: Callable[[Tensor], Tensor]
    convex: bool = True
    exact_zeros: bool = False  # whether the proximal operator takes what is near 0 (or the reference) there exactly
    strength_max: Callable[[Tensor], Tensor] | None = None  # of a gradient, written out; None: it is infinite
    is_steep: bool = False  # whether its slope at 0 is infinite, so that gradient steps overshoot for ever
    rest: float = 0.0  # what it pulls towards
    shrinks: bool = True  # whether it does so element by element
    least: float = 0.0  # its slopes are too large for a comparison at weights smaller than that, which are set to 0
    shape: tuple[int, ...] | None = None  # the only one that it takes

    def sane(self, w: Tensor) -> Tensor:
        return torch.where(w.abs() < self.least, 0.0, w)

    def fit(self, w: Tensor) -> Tensor:
        """As many of the numbers as it takes, or zeros, in its shape."""
        if self.shape is None:
            return w
        size = torch.Size(self.shape).numel()
        return torch.cat([w.flatten(), w.new_zeros(size)])[:size].view(self.shape)

    @property
    def name(self) -> str:
        return repr(self.penalty)

    @property
    def is_proximal(self) -> bool:
        return isinstance(self.penalty, ProximalPenalty)


ANCHOR, DOUBLE = torch.tensor(0.2, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
WEIGHTS = torch.arange(12, dtype=torch.float64).view(4, 3) / 4  # one of them is 0


def grouped(groups: Groups, **options: Any) -> list[PenaltyCase]:
    """The penalties on groups, for one choice of the groups."""
    lasso, sparse, exclusive, minimax, clipped = (
        kind(strength, groups=groups, **more)
        for kind, strength, more in (
            (GroupLasso, 0.3, {}),
            (SparseGroupLasso, 0.4, {"l1_ratio": 0.3}),
            (ExclusiveLasso, 0.5, {}),
            (GroupMCP, 0.3, {"gamma": 2.5}),
            (GroupSCAD, 0.2, {"a": 3.7}),
        )
    )
    held = {lasso: held_groups, sparse: held_groups_and_elements, minimax: held_groups, clipped: held_groups}
    return [
        PenaltyCase(
            penalty,
            partial(grouped_value, penalty),
            convex=penalty not in (minimax, clipped),
            exact_zeros=penalty in held,
            strength_max=partial(held[penalty], groups) if penalty in held else None,
            least=1e-100,
            **options,
        )
        for penalty in (lasso, sparse, exclusive, minimax, clipped)
    ]


PENALTIES = [
    PenaltyCase(L1(0.3), lambda w: 0.3 * w.abs().sum(), exact_zeros=True, strength_max=largest),
    PenaltyCase(L2(0.7), lambda w: 0.35 * (w * w).sum()),
    PenaltyCase(
        ElasticNet(0.5, l1_ratio=0.4),
        lambda w: 0.5 * (0.4 * w.abs().sum() + 0.3 * (w * w).sum()),
        exact_zeros=True,
        strength_max=lambda g: largest(g) / 0.4,
    ),
    PenaltyCase(Huber(0.6, delta=0.5), lambda w: 0.6 * F.huber_loss(w, 0 * w, reduction="sum", delta=0.5)),
    PenaltyCase(
        Lp(0.3, p=0.5),
        lambda w: 0.3 * positive_power(w, 0.5),
        convex=False,
        is_steep=True,
        exact_zeros=True,
        strength_max=nothing,
    ),
    PenaltyCase(Lp(0.3, p=1.5), lambda w: 0.3 * positive_power(w, 1.5)),
    PenaltyCase(Lp(0.2, p=3.0), lambda w: 0.2 * positive_power(w, 3)),
    PenaltyCase(
        LogSum(0.2, epsilon=0.5),
        lambda w: 0.2 * (1 + w.abs() / 0.5).log().sum(),
        convex=False,
        exact_zeros=True,
        strength_max=lambda g: largest(g) * 0.5,
    ),
    PenaltyCase(MCP(0.3, gamma=3.0), lambda w: mcp(w, 0.3, 3.0), convex=False, exact_zeros=True, strength_max=largest),
    PenaltyCase(SCAD(0.3, a=3.7), lambda w: scad(w, 0.3, 3.7), convex=False, exact_zeros=True, strength_max=largest),
    PenaltyCase(HoyerSquare(0.1), lambda w: 0.1 * hoyer_square(w), convex=False, strength_max=nothing, least=1e-2),
    PenaltyCase(
        SLOPE(0.3, q=0.4),
        lambda w: 0.3 * slope(w, 0.4),
        exact_zeros=True,
        strength_max=partial(held_ranks, 0.4),
    ),
    PenaltyCase(L2SP(0.7, reference=ANCHOR), lambda w: 0.35 * (w - 0.2).square().sum(), rest=0.2, shrinks=False),
    PenaltyCase(
        L1SP(0.3, reference=ANCHOR),
        lambda w: 0.3 * (w - 0.2).abs().sum(),
        exact_zeros=True,
        strength_max=largest,
        rest=0.2,
        shrinks=False,
    ),
    PenaltyCase(
        L1(0.3, weights=DOUBLE), lambda w: 0.6 * w.abs().sum(), exact_zeros=True, strength_max=lambda g: largest(g) / 2
    ),
    PenaltyCase(L2SP(0.4, ANCHOR, weights=DOUBLE), lambda w: 0.4 * (w - 0.2).square().sum(), rest=0.2, shrinks=False),
    *grouped("output"),
    PenaltyCase(
        Nuclear(0.3),
        lambda w: 0.3 * above_rounding(singular_values(w)).sum(),
        strength_max=lambda g: singular_values(g)[:1].sum(),
        shrinks=False,
    ),
    PenaltyCase(SpectralNorm(0.5), lambda w: 0.25 * largest_squared(singular_values(w)), shrinks=False),
    PenaltyCase(
        SRIP(0.4),
        lambda w: 0.4 * (torch.linalg.eigvalsh(smaller_gram(w)) - 1).abs().max() if w.numel() else w.sum(),
        convex=False,
        shrinks=False,
    ),
    PenaltyCase(
        SoftOrthogonality(0.2), lambda w: 0.2 * off_identity(rows(w)).square().sum(), convex=False, shrinks=False
    ),
    PenaltyCase(
        DoubleSoftOrthogonality(0.2),
        lambda w: 0.2 * (off_identity(rows(w)).square().sum() + off_identity(rows(w).T).square().sum()),
        convex=False,
        shrinks=False,
    ),
    PenaltyCase(L1(0.2) + L2(0.5), lambda w: 0.2 * w.abs().sum() + 0.25 * (w * w).sum(), exact_zeros=True),
    PenaltyCase(
        2.0 * MCP(0.3, gamma=3.0) + L2(0.5),
        lambda w: 2 * mcp(w, 0.3, 3.0) + 0.25 * (w * w).sum(),
        convex=False,
        exact_zeros=True,
    ),
]
WEIGHTED = [
    PenaltyCase(
        L1(0.3, weights=WEIGHTS),
        lambda w: 0.3 * (WEIGHTS * w.abs()).sum(),
        exact_zeros=True,
        strength_max=lambda g: torch.where(g == 0, 0.0, g.abs() / WEIGHTS).max(),
        shape=(4, 3),
    ),
    PenaltyCase(L2(0.7, weights=WEIGHTS), lambda w: 0.35 * (WEIGHTS * w * w).sum(), shape=(4, 3)),
    PenaltyCase(
        L1SP(0.3, reference=ANCHOR, weights=WEIGHTS),
        lambda w: 0.3 * (WEIGHTS * (w - 0.2).abs()).sum(),
        exact_zeros=True,
        strength_max=lambda g: torch.where(g == 0, 0.0, g.abs() / WEIGHTS).max(),
        rest=0.2,
        shrinks=False,
        shape=(4, 3),
    ),
    PenaltyCase(
        L2SP(0.7, reference=ANCHOR, weights=WEIGHTS),
        lambda w: 0.35 * (WEIGHTS * (w - 0.2).square()).sum(),
        rest=0.2,
        shrinks=False,
        shape=(4, 3),
    ),
]
SHAPED = [  # those that take one shape, of weights or of groups
    *(case for groups in ("input", "tensor", Heads(2), INDEX, UNEQUAL) for case in grouped(groups, shape=(4, 3))),
    *WEIGHTED,
]


@dataclass(frozen=True)
class ConstraintCase:
    """A constraint, with its set written out a second time."""

    constraint: Constraint
    excess: Callable[[Tensor], Tensor]  # how far a matrix is outside, an element or a group; none is > 0 inside
    member: Callable[[Tensor], Tensor]  # a point of the set, made of any matrix; not the nearest
    convex: bool = True
    solid: bool = True  # whether the set has an interior

    @property
    def name(self) -> str:
        return repr(self.constraint)


def first_of(w: Tensor, number: int) -> Tensor:
    return torch.cat([w[:number], torch.zeros_like(w[number:])])


CONSTRAINTS = [
    ConstraintCase(MaxNorm(1.5), lambda w: lengths(w) - 1.5, lambda w: 1.5 * w / (1.1 + lengths(w)[:, None])),
    ConstraintCase(
        MaxNorm(1.5, groups="input"), lambda w: lengths(w.T) - 1.5, lambda w: 1.5 * w / (1.1 + lengths(w.T))
    ),
    ConstraintCase(NonNegative(), lambda w: -w, lambda w: w.abs()),
    ConstraintCase(
        UnitNorm(),
        lambda w: (lengths(w)[w.any(1)] - 1).abs(),
        lambda w: F.normalize(w + 1000, dim=1),
        convex=False,
        solid=False,
    ),
    ConstraintCase(L1Ball(1.2), lambda w: w.abs().sum() - 1.2, lambda w: 1.2 * w / (1.1 + w.abs().sum())),
    ConstraintCase(
        L1Ball(1.2, groups="output"),
        lambda w: w.abs().sum(1) - 1.2,
        lambda w: 1.2 * w / (1.1 + w.abs().sum(1, keepdim=True)),
    ),
    ConstraintCase(L2Ball(0.8), lambda w: w.norm() - 0.8, lambda w: 0.8 * w / (1.1 + w.norm())),
    ConstraintCase(LinfBall(0.5), lambda w: w.abs() - 0.5, lambda w: 0.5 * w.tanh()),
    ConstraintCase(
        Box(-0.5, 1.0),
        lambda w: torch.maximum(w - 1, -0.5 - w),
        lambda w: 0.25 + 0.75 * w.tanh(),
    ),
    ConstraintCase(
        Sparsest(0.25),
        lambda w: w.count_nonzero() - max(1.0, round(0.25 * w.numel())),
        lambda w: first_of(w.flatten(), max(1, round(0.25 * w.numel()))).view(w.shape),
        convex=False,
        solid=False,
    ),
    ConstraintCase(
        Sparsest(0.5, groups="output"),
        lambda w: w.any(1).sum() - max(1.0, round(0.5 * len(w))),
        lambda w: first_of(w, max(1, round(0.5 * len(w)))),
        convex=False,
        solid=False,
    ),
    ConstraintCase(
        Rank(1),
        lambda w: torch.linalg.svdvals(w)[1:] - 1e-14 * w.norm(),
        lambda w: torch.outer(w[:, 0].round(), w[0].round()),
        convex=False,
        solid=False,
    ),
    ConstraintCase(
        Simplex(2.0),
        lambda w: torch.cat([-w.flatten(), (w.sum(1) - 2).abs()]),
        lambda w: 2 * w.softmax(1),
        solid=False,
    ),
]


class NoProx(Penalty):
    """A user's own penalty, without a proximal operator."""

    def value(self, w: Tensor) -> Tensor:
        return w.pow(4).sum()

    def gradient(self, w: Tensor) -> Tensor:
        return 4 * w**3

    def __repr__(self) -> str:
        return "NoProx()"


SILENT = [L1(0.0), L2(0.0), L1(0.0) + L2(0.0)]  # of strength 0: they must leave every bit alone

STEP_MODES = ("grad", "decoupled", "prox")  # those that act in the optimizer's step
MODES = ("loss", *STEP_MODES)


def each_case(holds: Callable[[PenaltyCase], bool], cases: Sequence[PenaltyCase] = PENALTIES) -> pytest.MarkDecorator:
    """Runs a test over the cases of which something holds."""
    return pytest.mark.parametrize("case", list(filter(holds, cases)), ids=lambda case: repr(case.penalty))


each_constraint = pytest.mark.parametrize("case", CONSTRAINTS, ids=lambda case: case.name)
each_penalty = each_case(lambda case: True)
each_convex = each_case(lambda case: case.convex)
each_proximal = each_case(lambda case: case.is_proximal)
each_convex_proximal = each_case(lambda case: case.is_proximal and case.convex)
each_term = each_case(lambda case: isinstance(case.penalty, Term))
each_shrinking = each_case(lambda case: case.shrinks and case.is_proximal)
each_proximal_separable = each_case(lambda case: case.is_proximal and case.penalty.is_separable)
each_duplicate = pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["copy", "pickle"])
each_silent = pytest.mark.parametrize("penalty", SILENT, ids=repr)
each_mode = pytest.mark.parametrize("mode", MODES)
each_case_and_mode, each_case_and_step_mode = (
    pytest.mark.parametrize(
        ("case", "mode"),
        [
            (case, mode)
            for case in PENALTIES
            for mode in modes
            if (case.is_proximal if mode == "prox" else not case.is_steep)
        ],
        ids=lambda value: repr(value.penalty) if isinstance(value, PenaltyCase) else value,
    )
    for modes in (MODES, STEP_MODES)
)
each_step_mode = pytest.mark.parametrize("mode", STEP_MODES)
