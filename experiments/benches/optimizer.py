"""An optimizer's step alone: decay, L1 and proximal steps against torch's fused optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import torchreg
from torchreg import L1, Regularizer

from .steps import mlp
from .timing import Table, growing, race


def tables() -> Iterator[Table]:
    """Each optimizer in a pair with torch's; all together would take 600 MB, more than any cache."""
    l1, ours, momentum = L1(1e-4), torchreg.optim, 0.9
    adam = _step(torch.optim.AdamW)
    sgd = _step(torch.optim.SGD, momentum=momentum)
    pairs = {
        "AdamW": (adam, _step(ours.AdamW)),
        "AdamW, constant": (adam, _step(ours.AdamW, coupling="constant")),
        "AdamW, L1 decay": (adam, _step(ours.AdamW, decay="L1")),
        "AdamW, cautious": (adam, _step(ours.AdamW, cautious=True)),
        "AdamW + Regularizer(L1, prox)": (adam, _step(ours.AdamW, regularized=True)),
        "ProxAdam, decay + L1": (adam, _step(ours.ProxAdam, penalty=l1)),
        "the same, compile=True": (adam, _step(ours.ProxAdam, penalty=l1, compile=True)),
        "SGDW / SGD": (sgd, _step(ours.SGDW, momentum=momentum)),
        "ProxSGD, decay + L1 / SGD": (sgd, _step(ours.ProxSGD, penalty=l1, momentum=momentum)),
    }
    title = "optimizer's step, 784-1024-1024-2048-10, weight decay 0.01, to that of torch's fused AdamW or SGD"
    rows = (race(name, {"base": base, name: work}, 100)[name] for name, (base, work) in pairs.items())
    yield from growing(title, rows)


def _step(
    kind: Callable[..., torch.optim.Optimizer], regularized: bool = False, **options: Any
) -> Callable[[], object]:
    torch.manual_seed(0)
    net = mlp()
    for param in net.parameters():
        param.grad = 1e-2 * torch.randn_like(param)
    built = kind(net.parameters(), lr=1e-3, weight_decay=0.01, fused=True, **options)
    if regularized:
        Regularizer(net, L1(1e-4), mode="prox").attach(built)
    return built.step
