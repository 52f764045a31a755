"""What choosing a strength costs: many networks in each way, and one that tunes its strength."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchreg import L1, L2, Penalty, Regularizer, Stacked, weights
from torchreg.regularizer import Mode
from torchreg.tuning import AutoStrength
from torchreg.tuning.fit import fit
from torchreg.tuning.problem import Problem
from torchreg.tuning.ways import Way, fastest, train_all

_ADAM = partial(torch.optim.Adam, lr=1e-3)


def stack() -> str:
    """Sixteen small networks and four large ones at as many strengths: stacked, in processes, one after another."""
    small = _race("16 x 64-64-64-10, 400 steps of 100", 16, (64, 64, 64, 10), examples=1000, epochs=40, rounds=5)
    large = _race("4 x 784-1024-1024-10, 80 steps of 128", 4, (784, 1024, 1024, 10), examples=1024, epochs=10, rounds=3)
    return f"{small}\n\n{large}"


def auto_strength() -> str:
    """A training step with a strength that is tuned, against the same step with a fixed one."""
    lines = ["training step, 784-256-256-10, batch 100, Adam: tuned strength / fixed strength"]
    cases: list[tuple[Penalty, Mode]] = [(L2(1.0), "decoupled"), (L1(0.1), "prox"), (L2(1e-2), "grad")]
    for penalty, mode in cases:
        steps = [_step(penalty, mode, tuned) for tuned in (False, True)]
        times = [[_seconds(step) for step in steps] for _ in range(200)][20:]
        ratio = median(tuned / fixed for fixed, tuned in times)
        lines.append(f"  {f'{penalty!r}, mode {mode!r}':<28}{ratio:8.2f}")
    return "\n".join(lines)


def _race(title: str, members: int, widths: Sequence[int], examples: int, epochs: int, rounds: int) -> str:
    """Seconds to train all members in each way, by the median ratio to ordinary loops one after another."""
    torch.manual_seed(0)
    x, y = torch.rand(examples, widths[0]), torch.randint(widths[-1], (examples,))
    batch = 100 if members > 4 else 128
    problem = Problem(
        (x, y), (x, y), cross_entropy, L2(1.0), "decoupled", weights, _ADAM, epochs, batch, None, 0.0, seed=0
    )
    models = [_network(widths) for _ in range(members)]
    strengths = [10.0 ** (-k / 4) for k in range(members)]
    jobs = torch.get_num_threads()
    job = partial(_fit, problem)
    contenders: dict[str, Callable[[], object]] = {
        "ordinary loops": lambda: list(map(partial(_alone, problem), models, strengths))
    }
    for way in get_args(Way):
        contenders[way] = partial(train_all, models, strengths, job, way, jobs)
    taken = [[_seconds(contender) for contender in contenders.values()] for _ in range(rounds + 1)][1:]
    chosen, _ = fastest(models, strengths, lambda s, at: fit(s, at, problem, steps=1), jobs)
    lines = [title, f"  {'':<28}{'s':>8}{'speed-up':>10}"]
    for i, name in enumerate(contenders):
        speedup = median(times[0] / times[i] for times in taken)
        mark = "   <- strength_path takes it" if name == chosen else ""
        lines.append(f"  {name:<28}{median(times[i] for times in taken):8.3f}{speedup:10.2f}{mark}")
    return "\n".join(lines)


def _fit(problem: Problem, stacked: Stacked, strengths: Sequence[float]) -> None:
    fit(stacked, strengths, problem)


def _alone(problem: Problem, model: nn.Module, strength: float) -> None:
    """What anyone writes for one network."""
    x, y = problem.train
    optimizer = _ADAM(model.parameters())
    with Regularizer(model, L2(strength), mode="decoupled").attach(optimizer):
        for _ in range(problem.epochs):
            for batch in torch.randperm(len(y)).split(problem.batch_size or len(y)):
                _train(model, optimizer, x[batch], y[batch])


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def _step(penalty: Penalty, mode: Mode, tuned: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    x, y, model = torch.rand(1000, 784), torch.randint(10, (1000,)), _network((784, 256, 256, 10))
    optimizer = _ADAM(model.parameters())
    regularizer = Regularizer(model, penalty, mode=mode).attach(optimizer)
    if tuned:
        AutoStrength(regularizer, (x, y), cross_entropy, batch_size=100).attach(optimizer)
    return partial(_train, model, optimizer, x[:100], y[:100])


def _network(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
