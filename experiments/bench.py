"""What regularization costs: each contender timed in turn, round after round, and compared by the median ratio."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import torchreg
from experiments import bench_tuning
from torchreg import L1, L2, Regularizer
from torchreg.regularizer import Mode

Contenders = Mapping[str, Callable[[], object]]


def dropout() -> str:
    """Forward and backward of dropout alone, against torch.nn.Dropout, for few elements and for many."""
    torch.empty(31 << 18).fill_(0)  # from here on the C library keeps what is freed, as in a process that has trained
    lines = ["dropout, forward + backward: how many times faster than torch.nn.Dropout", f"  {'elements':<10}{_HEADS}"]
    for power in (8, 10, 12, 14, 16, 17, 18, 20, 22, 24):
        ratios = [_dropout_ratio(1 << power, p, dtype) for dtype in (torch.float32, torch.bfloat16) for p in _RATES]
        lines.append(f"  2^{power:<8}" + "".join(f"{ratio:>16.2f}" for ratio in ratios))
    return "\n".join(lines)


def dropout_step() -> str:
    """A training step of the same 4M-parameter network with dropout after each layer, against the bare step."""
    contenders = {
        "bare": _training_step(_mlp),
        "torch.nn.Dropout": _training_step(lambda: _with_dropout(nn.Dropout)),
        "torchreg.nn.Dropout": _training_step(lambda: _with_dropout(torchreg.nn.Dropout)),
    }
    title = (
        "training step, 784-1024-1024-2048-10, batch 128, fused AdamW, dropout .2 of the inputs and .5 of hidden units"
    )
    return _table(title, contenders, rounds=60)


def step() -> str:
    """One training step of a 4M-parameter network with L1 + L2 in each mode, against the bare step."""
    contenders = {"bare": _training_step(_mlp), "naive penalty in the loss": _training_step(_mlp, naive=True)}
    contenders.update(_each_mode(_mlp))
    return _table("training step, 784-1024-1024-2048-10, batch 128, fused AdamW, L1 + L2", contenders, rounds=60)


def tensors() -> str:
    """The same step with four million weights in 1, 20, 100 and 500 tensors, against the bare step of each."""
    blocks = []
    for count in (1, 20, 100, 500):
        net = partial(_deep, count)
        contenders = {"bare": _training_step(net), **_each_mode(net)}
        blocks.append(_table(f"training step, 4M weights in {count}, batch 128, fused AdamW, L1 + L2", contenders, 40))
    return "\n\n".join(blocks)


def optimizer() -> str:
    """An optimizer's step alone, on the same 4M-parameter network: decay and L1 against torch's fused AdamW."""
    l1, ours, momentum = L1(1e-4), torchreg.optim, 0.9
    adam = _optimizer_step(torch.optim.AdamW)
    sgd = _optimizer_step(torch.optim.SGD, momentum=momentum)
    pairs = {
        "AdamW": (adam, _optimizer_step(ours.AdamW)),
        "AdamW, independent": (adam, _optimizer_step(ours.AdamW, coupling="independent")),
        "AdamW, L1 decay": (adam, _optimizer_step(ours.AdamW, decay="L1")),
        "AdamW, cautious": (adam, _optimizer_step(ours.AdamW, cautious=True)),
        "AdamW + Regularizer(L1, prox)": (adam, _optimizer_step(ours.AdamW, regularized=True)),
        "ProxAdam, decay + L1": (adam, _optimizer_step(ours.ProxAdam, penalty=l1)),
        "the same, compile=True": (adam, _optimizer_step(ours.ProxAdam, penalty=l1, compile=True)),
        "SGDW": (sgd, _optimizer_step(ours.SGDW, momentum=momentum)),
        "ProxSGD, decay + L1": (sgd, _optimizer_step(ours.ProxSGD, penalty=l1, momentum=momentum)),
    }
    # In pairs: together they would take 600 MB, which no cache holds.
    lines = ["optimizer's step, 784-1024-1024-2048-10, fused, weight decay 0.01, to that of torch's fused AdamW or SGD"]
    for name, (base, work) in pairs.items():
        lines.append(_table("", {"base": base, name: work}, rounds=100).splitlines()[-1])
    return "\n".join(lines)


BENCHES: Mapping[str, Callable[[], str]] = {
    "dropout": dropout,
    "dropout-step": dropout_step,
    "step": step,
    "tensors": tensors,
    "optimizer": optimizer,
    "stack": bench_tuning.stack,
    "auto-strength": bench_tuning.auto_strength,
}


def run(names: list[str]) -> str:
    """The tables of the benches named, under a line about the machine."""
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, CPU"
    return "\n\n".join([machine, *(BENCHES[name]() for name in names)])


_RATES = (0.5, 0.2, 0.1)
_HEADS = "".join(f"{f'{kind}, p={p:g}':>16}" for kind in ("float32", "bfloat16") for p in _RATES)


def _dropout_ratio(count: int, p: float, dtype: torch.dtype) -> float:
    """The median over rounds of torch's time to ours."""
    x = torch.randn(count, dtype=dtype, requires_grad=True)
    works = [_forward_backward(layer, x) for layer in (nn.Dropout(p), torchreg.nn.Dropout(p))]
    taken = _times(works, rounds=max(15, min(2000, (1 << 25) // count)))
    return median(theirs / ours for theirs, ours in taken)


def _with_dropout(kind: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [kind(0.2)]
    for layer in _mlp():
        layers += [layer, kind(0.5)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers)


def _forward_backward(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(x)

    def work() -> None:
        x.grad = None
        layer(x).backward(gradient)

    return work


def _mlp() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()),
        *(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 10)),
    )


def _deep(count: int) -> nn.Sequential:
    """Four million weights in square layers, with residual connections so that gradients reach all of them."""
    width = math.isqrt(4_000_000 // count)
    return nn.Sequential(*(_Residual(width) for _ in range(count)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x.relu())
        return x + y


def _each_mode(make_net: Callable[[], nn.Sequential]) -> Contenders:
    modes: list[Mode] = ["loss", "grad", "decoupled", "prox"]
    return {f"mode {mode!r}": _training_step(make_net, mode) for mode in modes}


def _training_step(
    make_net: Callable[[], nn.Sequential], mode: Mode | None = None, naive: bool = False
) -> Callable[[], object]:
    torch.manual_seed(0)
    net = make_net()
    first = next(net.parameters())
    x = torch.randn(128, first.shape[1])
    y = torch.randint(net(x).shape[1], (128,))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0, fused=True)
    regularizer = Regularizer(net, L1(1e-6) + L2(1e-5), mode=mode or "loss")
    if mode not in (None, "loss"):
        regularizer.attach(optimizer)
    weights = [p for p in net.parameters() if p.ndim > 1]

    def work() -> None:
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        if mode == "loss":
            loss = loss + regularizer.value()
        if naive:
            loss = loss + sum(1e-6 * w.abs().sum() + 0.5e-5 * (w**2).sum() for w in weights)
        loss.backward()
        optimizer.step()

    return work


def _optimizer_step(
    kind: Callable[..., torch.optim.Optimizer], regularized: bool = False, **options: Any
) -> Callable[[], object]:
    torch.manual_seed(0)
    net = _mlp()
    for param in net.parameters():
        param.grad = 1e-2 * torch.randn_like(param)
    built = kind(net.parameters(), lr=1e-3, weight_decay=0.01, fused=True, **options)
    if regularized:
        Regularizer(net, L1(1e-4), mode="prox").attach(built)
    return built.step


def _table(title: str, contenders: Contenders, rounds: int) -> str:
    """Median milliseconds, and the median over rounds of the ratio to the first contender in the same round."""
    taken = _times(list(contenders.values()), rounds)
    lines = [title, f"  {'':<28}{'ms':>8}{'ratio':>8}"]
    for i, name in enumerate(contenders):
        ratio = median(times[i] / times[0] for times in taken)
        lines.append(f"  {name:<28}{1e3 * median(times[i] for times in taken):8.2f}{ratio:8.3f}")
    return "\n".join(lines)


def _times(works: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds that each work took, round after round."""
    taken: list[list[float]] = []
    for _ in range(rounds + 3):
        taken.append([])
        for work in works:
            start = time.perf_counter()
            work()
            taken[-1].append(time.perf_counter() - start)
    return taken[3:]
