"""The one table of cases: tests that run over penalties, modes or optimizers draw them from here.

A new penalty is one row in ``PENALTIES``.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor

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
from torchreg.optim import SGDW, AdagradW, AdamaxW, AdamW, NAdamW, RAdamW, RMSpropW, decoupled
from torchreg.penalties import Term
from torchreg.penalties.groups import Grouped
from torchreg.penalties.partition import Groups, Index


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
GROUPED = [case for groups in ("input", "tensor", Heads(2), INDEX, UNEQUAL) for case in grouped(groups, shape=(4, 3))]
GROUPED += WEIGHTED


def lengths(w: Tensor) -> Tensor:
    return w.flatten(1).square().sum(1).sqrt()


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

OPTIMIZERS = {
    "SGD-momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "SGD-nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW-single": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, foreach=False),
    "AdamW-foreach": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, foreach=True),
    "AdamW-fused": partial(torch.optim.AdamW, lr=0.01, weight_decay=0, fused=True),
}
FUSED = {
    "SGD-fused": partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "AdamW-fused": OPTIMIZERS["AdamW-fused"],
}

STEP_MODES = ("grad", "decoupled", "prox")  # those that act in the optimizer's step
MODES = ("loss", *STEP_MODES)

IMPLEMENTATIONS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
DECOUPLED = {
    "SGDW": (SGDW, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "SGDW-nesterov": (SGDW, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": 0.01}),
    "AdamW-amsgrad": (AdamW, torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "RMSpropW": (RMSpropW, torch.optim.RMSprop, {"lr": 0.01}),
    "RMSpropW-centered": (RMSpropW, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "AdagradW": (AdagradW, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "NAdamW": (NAdamW, torch.optim.NAdam, {"lr": 0.01}),
    "RAdamW": (RAdamW, torch.optim.RAdam, {"lr": 0.01}),
    "AdamaxW": (AdamaxW, torch.optim.Adamax, {"lr": 0.01}),
}
MADE = {  # by decoupled(), of the classes that take any parameters, without a closure
    f"decoupled({base.__name__})": (decoupled(base), base, options)
    for base, options in (
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.Adadelta, {"lr": 1.0}),
        (torch.optim.Adafactor, {"lr": 0.01}),
        (torch.optim.ASGD, {"lr": 0.05, "lambd": 0.0}),  # which is a decay of its own
        (torch.optim.Rprop, {"lr": 0.01}),
    )
}
KERNELS = {
    f"{name}-{kind}": (ours, base, options | implementation)
    for name, (ours, base, options) in (DECOUPLED | MADE).items()
    for kind, implementation in IMPLEMENTATIONS.items()
    if inspect.signature(base).parameters.keys() >= implementation.keys()
}
COUPLINGS = ("lr", "independent", "constant", "corrected")
FORMS = {
    "L2": {},
    "L1": {"decay": "L1"},
    "L2-start": {"towards": "start"},
    "L1-start": {"decay": "L1", "towards": "start"},
    "L2-cautious": {"cautious": True},
    "L1-cautious": {"decay": "L1", "cautious": True},
    "L2-start-cautious": {"towards": "start", "cautious": True},
    "L1-start-cautious": {"decay": "L1", "towards": "start", "cautious": True},
}


def undecayed(base: type[torch.optim.Optimizer], params: Any, **options: Any) -> torch.optim.Optimizer:
    """An optimizer of a class of torch's, some of which decay by default."""
    takes_decay = "weight_decay" in inspect.signature(base).parameters
    return base(params, **options, **({"weight_decay": 0} if takes_decay else {}))


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
each_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_fused = pytest.mark.parametrize("make_optimizer", FUSED.values(), ids=FUSED.keys())
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
each_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
each_decoupled, each_decoupled_or_made, each_kernel = (
    pytest.mark.parametrize(("ours", "base", "options"), table.values(), ids=table.keys())
    for table in (DECOUPLED, DECOUPLED | MADE, KERNELS)
)
