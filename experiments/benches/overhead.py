"""The time that a penalty adds to a training step, in each mode and for growing networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from torchreg import (
    L1,
    L2,
    ElasticNet,
    GroupLasso,
    Huber,
    LogSum,
    MaxNorm,
    Nuclear,
    Penalty,
    Regularizer,
    SpectralNorm,
)
from torchreg.regularizer import Mode

from .steps import CHECKED, Step, deep, l1_l2, mlp, step
from .timing import Clock, Row, Table, Work, growing, spread

MODES: tuple[Mode, ...] = ("loss", "grad", "decoupled", "prox")
_Net = Callable[[], nn.Module]


def tables(clock: Clock) -> Iterator[Table]:
    """The tables of modes, small networks first; then of penalties, and of growing numbers of weights and tensors."""
    yield from small(clock)
    yield from thin(clock)
    yield from slope(clock)
    yield from modes(clock)
    yield from penalties(clock)
    yield from matrices(clock)
    if clock.is_quick:
        return
    yield from chain.from_iterable(size(10**power, clock) for power in range(4, 9))
    yield from chain.from_iterable(layers(count, clock) for count in (1, 20, 100, 500))


def small(clock: Clock) -> Iterator[Table]:
    """A network so small that what a step costs is Python's calls."""
    yield from _by_mode("64-64-10", partial(mlp, (64, 64, 10)), clock, 1200)


def thin(clock: Clock) -> Iterator[Table]:
    """Many small layers."""
    yield from _by_mode("20 layers of 32", partial(deep, 20, 20 * 32 * 32), clock, 400)


def modes(clock: Clock) -> Iterator[Table]:
    """L1 + L2 in each mode, with and without compile, against the bare step of a network with four million weights."""
    compiled = not clock.is_quick
    yield from _by_mode("784-1024-1024-2048-10", mlp, clock, 60, compiled, naive="naive penalty in the loss")


def penalties(clock: Clock) -> Iterator[Table]:
    """Single penalties by hand, and in modes "grad" and "prox"; those that are sums over weights also compiled."""
    each = 1e-6
    by_hand: Mapping[Penalty, Callable[[Tensor], Tensor] | None] = {
        L1(each): lambda w: each * w.abs().sum(),
        L2(each): lambda w: 0.5 * each * w.square().sum(),
        ElasticNet(each): None,
        Huber(each): None,
        LogSum(each): None,
        GroupLasso(each): lambda w: each * math.sqrt(w.shape[1]) * w.norm(dim=1).sum(),
    }
    if clock.is_quick:
        by_hand = {penalty: naive for penalty, naive in by_hand.items() if isinstance(penalty, GroupLasso)}
    made = partial(step, mlp, device=clock.device)
    contenders = {"bare": made()}
    for penalty, naive in by_hand.items():
        if naive is not None:
            contenders[f"{penalty!r}, by hand in the loss"] = made(by_hand=naive)
        for mode in ("grad", "prox"):
            name = f"{penalty!r}, {mode!r}"
            contenders[name] = made(mode, penalty=penalty)
            if penalty.is_uniform:
                contenders[f"{name}, compile=True"] = made(mode, penalty=penalty, compile=True)
    bound = MaxNorm(1.0)
    contenders[f"{bound!r}, 'prox'"] = made("prox", penalty=bound)
    yield from clock.race("the same step, by penalty", contenders, 25)


def matrices(clock: Clock) -> Iterator[Table]:
    """Penalties of singular values, for one large layer: by decompositions, then once vectors can be followed.

    The strength of the second ``Nuclear`` is such that its prox leaves a low rank.
    """
    each = 1e-4
    made = partial(step, partial(mlp, (1000, 1000)), device=clock.device)
    contenders: dict[str, Work] = {
        "bare": made(),
        "nuclear norm by hand in the loss": made(by_hand=lambda w: each * torch.linalg.matrix_norm(w, "nuc")),
        "Nuclear, 'prox'": made("prox", penalty=Nuclear(each)),
        "spectral norm by hand in the loss": made(by_hand=lambda w: 0.5 * each * torch.linalg.matrix_norm(w, 2) ** 2),
    }
    title = "training step, one layer of 1000 x 1000, batch 128, fused AdamW"
    yield from clock.race(title, contenders, 10, repeat=5)
    followed: dict[str, Step] = {
        "bare": made(),
        "Nuclear, 'prox', of a low rank": made("prox", penalty=Nuclear(300.0)),
        "the same, every=10": made("prox", penalty=Nuclear(300.0), every=10),
        "SpectralNorm, 'grad'": made("grad", penalty=SpectralNorm(each)),
    }
    works: dict[str, Work] = {name: partial(_often, one, 10) for name, one in followed.items()}
    yield from clock.race("ten such steps, after the first 30", works, 20, repeat=5)


def _often(step: Step, times: int) -> None:
    for _ in range(times):
        step()


def size(weights: int, clock: Clock) -> Iterator[Table]:
    """So many weights in one square layer, or in several layers of at most 16 million weights."""
    net = partial(deep, max(1, weights // 16_000_000), weights)
    yield from _by_mode(f"{weights:,} weights", net, clock, max(5, min(400, 400_000_000 // weights)))


def layers(count: int, clock: Clock) -> Iterator[Table]:
    """Four million weights in the given number of tensors; the losses of 500 layers grow too fast to be compared."""
    yield from _by_mode(f"4M weights in {count}", partial(deep, count), clock, 30, is_checked=False)


def _by_mode(
    name: str,
    net: _Net,
    clock: Clock,
    rounds: int,
    compiled: bool = False,
    naive: str = "naive",
    is_checked: bool = True,
) -> Iterator[Table]:
    made = partial(step, net, device=clock.device)
    contenders = {"bare": made(), naive: made(by_hand=l1_l2)}
    for compile in (False, True) if compiled else (False,):
        contenders |= {f"mode {mode!r}{', compile=True' * compile}": made(mode, compile=compile) for mode in MODES}
    title = f"training step, {name}, batch 128, fused AdamW, L1 + L2"
    note = partial(checked, contenders) if is_checked else ""
    yield from clock.race(title, contenders, rounds, note=note)


def slope(clock: Clock) -> Iterator[Table]:
    """The seconds that a regularizer takes for each further tensor of 64 weights, from 550 tensors against 50."""
    names: dict[Mode | None, str] = {None: "by hand in the loss", **{mode: f"mode {mode!r}" for mode in MODES}}

    def rows() -> Iterator[Row]:
        for mode, name in names.items():  # one after another, since each finds its own tensors in the caches
            works = {str(count): _act_alone(mode, count, clock.device) for count in (50, 550)}
            for taken, stopped in clock.laps(name, works, 280, 20, repeat=1):
                each = [1e6 * (many - few) / 500 for few, many in taken]
                yield Row(f"{name}, {stopped}" if stopped else name, *spread(each), 0.0)

    title = "what L1 + L2 alone take for each further tensor of 64 weights, in microseconds"
    yield from growing(title, rows(), names.values(), figure="us")


def _act_alone(mode: Mode | None, count: int, device: str) -> Work:
    """The work of a regularizer in a step: in mode "loss" the value and its gradients, else that of its hook."""
    params = nn.ParameterList([nn.Parameter(torch.randn(8, 8, device=device)) for _ in range(count)])
    for param in params:
        param.grad = torch.zeros_like(param)
    if mode is None:
        return lambda: torch.autograd.grad(sum(map(l1_l2, params)), list(params))  # type: ignore[arg-type]
    regularizer = Regularizer(params, L1(1e-4) + L2(1e-4), mode=mode)
    if mode == "loss":
        return lambda: torch.autograd.grad(regularizer.value(), list(params))
    optimizer = torch.optim.SGD(params, lr=1e-3)
    optimizer.step = optimizer.profile_hook_step(lambda self: None).__get__(optimizer)  # type: ignore[method-assign]
    regularizer.attach(optimizer)
    return optimizer.step


def checked(contenders: Mapping[str, Step]) -> str:
    """A note that contenders for the same problem have reached the same loss, so that they did the same work."""
    same = [name for name in contenders if name.startswith(("naive", "mode 'loss'", "mode 'grad'"))]
    losses = [contenders[name].losses[-1].item() for name in same]
    apart = max(losses) - min(losses)
    if apart > 1e-3 * min(losses):
        raise RuntimeError(f"bench: {', '.join(same)} must have the same loss, got {losses}")
    return f"after {CHECKED} steps the losses of {len(same)} equivalent steps, {losses[0]:.4f}, differ by {apart:.0e}"
