"""An optimizer's step alone: decay, L1 and proximal steps against torch's fused optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import softshrink

import torchreg
from torchreg import L1, Regularizer

from .steps import mlp
from .timing import Clock, Table, Work, growing

_RATE, _STRENGTH = 1e-3, 1e-4


def tables(clock: Clock) -> Iterator[Table]:
    """Each optimizer in a pair with torch's; all together would take 600 MB, more than any cache."""
    l1, ours, momentum = L1(_STRENGTH), torchreg.optim, 0.9
    made = partial(_step, clock.device)
    adam = made(torch.optim.AdamW)
    sgd = made(torch.optim.SGD, momentum=momentum)
    pairs: dict[str, tuple[Work, Callable[[], Work]]] = {
        "AdamW": (adam, partial(made, ours.AdamW)),
        "AdamW, constant": (adam, partial(made, ours.AdamW, coupling="constant")),
        "AdamW, L1 decay": (adam, partial(made, ours.AdamW, decay="L1")),
        "AdamW, cautious": (adam, partial(made, ours.AdamW, cautious=True)),
        "AdamW, cautious, compile=True": (adam, partial(made, ours.AdamW, cautious=True, compile=True)),
        "torch's AdamW, then softshrink by hand": (adam, partial(_by_hand, clock.device)),
        "AdamW + Regularizer(L1, prox)": (adam, partial(made, ours.AdamW, regularized=True)),
        "ProxAdam, decay + L1": (adam, partial(made, ours.ProxAdam, penalty=l1)),
        "ProxAdam, decay + L1, compile=True": (adam, partial(made, ours.ProxAdam, penalty=l1, compile=True)),
        "SGDW / SGD": (sgd, partial(made, ours.SGDW, momentum=momentum)),
        "ProxSGD, decay + L1 / SGD": (sgd, partial(made, ours.ProxSGD, penalty=l1, momentum=momentum)),
    }
    if clock.is_quick:
        pairs = {name: pair for name, pair in pairs.items() if "compile" not in name}
    title = "optimizer's step, 784-1024-1024-2048-10, weight decay 0.01, to that of torch's fused AdamW or SGD"
    rows = (clock.duel(name, base, make(), 100) for name, (base, make) in pairs.items())
    yield from growing(title, chain.from_iterable(rows), pairs)


def _step(
    device: str, kind: Callable[..., torch.optim.Optimizer], regularized: bool = False, **options: Any
) -> Callable[[], object]:
    torch.manual_seed(0)
    net = mlp().to(device)
    for param in net.parameters():
        param.grad = 1e-2 * torch.randn_like(param)
    built = kind(net.parameters(), lr=_RATE, weight_decay=0.01, fused=True, **options)
    if regularized:
        Regularizer(net, L1(_STRENGTH), mode="prox").attach(built)
    return built.step


def _by_hand(device: str) -> Callable[[], object]:
    """The proximal step of L1 as one writes it after torch's own step."""
    step = _step(device, torch.optim.AdamW)
    weights = [p for p in step.__self__.param_groups[0]["params"] if p.ndim > 1]  # type: ignore[attr-defined]

    def work() -> None:
        step()
        with torch.no_grad():
            for w in weights:
                w.copy_(softshrink(w, _RATE * _STRENGTH))

    return work
