"""An epoch of MNIST with the studies' loop, against its matrix products alone and against other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import torchreg
from torchreg import L1, L2, Penalty, Regularizer
from torchreg.regularizer import Mode

from ..config import Data
from ..training import data
from ..training.loop import train_epoch
from . import others
from .dropout import with_dropout
from .steps import BATCH, L1_STRENGTH, L2_STRENGTH, l1_l2, mlp
from .timing import Clock, Table, Work, tabulate

WIDTHS = (784, 512, 512, 10)
_WHOLE = "the loop, dropout + L1 + L2 'prox'"
_PENALTY = L1(L1_STRENGTH) + L2(L2_STRENGTH)


def tables(clock: Clock) -> Iterator[Table]:
    """All contenders one after another in each round, each with its own network; then their losses."""
    split = data.load(Data(name="mnist", valid_size=5000), torch.device("cpu")).train
    if clock.is_quick:
        split = replace(split, x=split.x[:5500], y=split.y[:5500])
    plain = partial(mlp, WIDTHS)
    ours, theirs = partial(with_dropout, plain, torchreg.nn.Dropout), partial(with_dropout, plain, nn.Dropout)
    contenders: dict[str, Work] = {
        "the loop, bare": Loop(plain, split),
        "its matrix products alone": partial(_products, len(split)),
        "the loop, dropout": Loop(ours, split),
        "the loop, L1 + L2 'prox'": Loop(plain, split, mode="prox"),
        _WHOLE: Loop(ours, split, mode="prox"),
        "the loop, dropout + L1 + L2 'decoupled'": Loop(ours, split, mode="decoupled"),
        "the loop, dropout + L1 'prox', L2 in AdamW": Loop(
            ours, split, mode="prox", penalty=L1(L1_STRENGTH), decay=L2_STRENGTH
        ),
        "by hand: nn.Dropout, L1 + L2 in the loss": Loop(theirs, split, naive=True),
    }
    if not clock.is_quick:
        contenders["DataLoader and transforms, bare"] = others.DataLoaderLoop(plain())
    if find_spec("lightning") and not clock.is_quick:
        contenders["Lightning, nn.Dropout, L1 + L2 in the loss"] = others.LightningLoop(theirs(), split)
    if find_spec("keras") and find_spec("jax") and not clock.is_quick:
        contenders["Keras on JAX, Dropout, L1L2"] = others.KerasLoop(WIDTHS, split)
    title = f"an epoch of {len(split):,} MNIST images, 784-512-512-10, batch 128, fused AdamW"
    names = list(contenders)
    yield Table(title, width=max(map(len, names)))
    for taken, stopped in clock.laps(title, contenders, rounds=9, warmup=1):
        losses = [f"{work.loss:.3f}" for work in contenders.values() if hasattr(work, "loss")]
        note = f"mean training loss of the last epoch, in this order, products aside: {', '.join(losses)}"
        yield tabulate(title, names, taken, f"{note}; {stopped}" if stopped else note)
        to_whole = "the same, to the epoch with dropout and both penalties"
        yield tabulate(to_whole, names, taken, stopped, to=names.index(_WHOLE))


@dataclass
class Loop:
    """The studies' loop, or the same loop with penalties added to the loss by hand."""

    make_net: Callable[[], nn.Sequential]
    split: data.Split
    mode: Mode | None = None
    penalty: Penalty = _PENALTY
    decay: float = 0.0
    naive: bool = False
    loss: float = float("nan")

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), *self.make_net())
        self.optimizer = torch.optim.AdamW(self.net.parameters(), weight_decay=self.decay, fused=True)
        if self.mode is not None:
            Regularizer(self.net, self.penalty, mode=self.mode).attach(self.optimizer)
        self.in_loss: list[Any] = [_Naive(self.net)] if self.naive else []
        self.shuffle = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        batches = torch.randperm(len(self.split), generator=self.shuffle).split(BATCH)
        self.loss = train_epoch(self.net, self.optimizer, self.split, batches, self.in_loss).mean().item()


class _Naive:
    """L1 + L2 as written by hand."""

    def __init__(self, net: nn.Module) -> None:
        self.weights = [p for p in net.parameters() if p.ndim > 1]

    def value(self) -> Tensor:
        return sum(map(l1_l2, self.weights))  # type: ignore[return-value]


def _products(images: int) -> None:
    """The necessary products: one for each layer forward, and two backward, without the gradient of the images."""
    inputs = [torch.ones(BATCH, width) for width in WIDTHS]
    weights = [torch.ones(after, before) for before, after in pairwise(WIDTHS)]
    for _ in range(-(-images // BATCH)):
        for x, w in zip(inputs, weights, strict=False):
            x @ w.t()
        for i in reversed(range(len(weights))):
            inputs[i + 1].t() @ inputs[i]
            if i:
                inputs[i + 1] @ weights[i]
