"""The cost of choosing a strength: many networks with each executor, and one network that tunes its strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchreg import L1, L2, Penalty, Regularizer, Stacked, weights
from torchreg.regularizer import Mode
from torchreg.tuning import AutoStrength
from torchreg.tuning.path.executors import Executor, fastest, train_all
from torchreg.tuning.path.fit import fit
from torchreg.tuning.path.problem import Problem

from .timing import Clock, Table

_ADAM = partial(torch.optim.Adam, lr=1e-3)


def stack(clock: Clock) -> Iterator[Table]:
    """Sixteen small and four large networks, each at another strength: stacked, in processes, one after another."""
    yield from _race(
        clock, "16 x 64-64-64-10, 400 steps of 100", 16, (64, 64, 64, 10), examples=1000, epochs=40, rounds=5
    )
    yield from _race(
        clock, "4 x 784-1024-1024-10, 80 steps of 128", 4, (784, 1024, 1024, 10), examples=1024, epochs=10, rounds=3
    )


def auto_strength(clock: Clock) -> Iterator[Table]:
    """Training steps with a tuned strength, which moves at every fourth one, against steps with a fixed strength."""
    cases: list[tuple[Penalty, Mode]] = [(L2(1.0), "decoupled"), (L1(0.1), "prox"), (L2(1e-2), "grad")]
    for penalty, mode in cases:
        steps = {name: _four_steps(penalty, mode, name == "tuned") for name in ("fixed", "tuned")}
        title = f"four training steps, 784-256-256-10, batch 100, Adam, {penalty!r}, mode {mode!r}"
        yield from clock.race(title, steps, rounds=60, warmup=10)


def _race(
    clock: Clock, title: str, members: int, widths: Sequence[int], examples: int, epochs: int, rounds: int
) -> Iterator[Table]:
    """The seconds to train all members with each executor, and the ratio to ordinary loops one after another."""
    batch = 100 if members > 4 else 128
    problem, models, strengths = members_of(members, widths, examples, epochs, batch)
    jobs = torch.get_num_threads()
    job = partial(_fit, problem)
    contenders: dict[str, Callable[[], object]] = {
        "ordinary loops": lambda: list(map(partial(alone, problem), models, strengths))
    }
    for executor in get_args(Executor):
        contenders[executor] = partial(train_all, models, strengths, job, executor, jobs)
    chosen, _ = fastest(models, strengths, lambda s, at: fit(s, at, problem, steps=1), jobs)
    yield from clock.race(title, contenders, rounds, warmup=1, note=f"strength_path takes: {chosen}")


def members_of(
    members: int, widths: Sequence[int], examples: int, epochs: int, batch: int, device: str = "cpu"
) -> tuple[Problem, list[nn.Sequential], list[float]]:
    """So many networks at as many strengths, and what all of them are trained on."""
    torch.manual_seed(0)
    x, y = torch.rand(examples, widths[0]).to(device), torch.randint(widths[-1], (examples,)).to(device)
    problem = Problem(
        (x, y), (x, y), cross_entropy, L2(1.0), "decoupled", weights, _ADAM, epochs, batch, None, 0.0, seed=0
    )
    return problem, [_network(widths).to(device) for _ in range(members)], [10.0 ** (-k / 4) for k in range(members)]


def _fit(problem: Problem, stacked: Stacked, strengths: Sequence[float]) -> None:
    fit(stacked, strengths, problem)


def alone(problem: Problem, model: nn.Module, strength: float) -> None:
    """An ordinary loop for one network."""
    x, y = problem.train
    optimizer = _ADAM(model.parameters())
    with Regularizer(model, L2(strength), mode="decoupled").attach(optimizer):
        for _ in range(problem.epochs):
            for batch in torch.randperm(len(y)).to(y.device).split(problem.batch_size or len(y)):
                _train(model, optimizer, x[batch], y[batch])


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def _four_steps(penalty: Penalty, mode: Mode, tuned: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    x, y, model = torch.rand(1000, 784), torch.randint(10, (1000,)), _network((784, 256, 256, 10))
    optimizer = _ADAM(model.parameters())
    regularizer = Regularizer(model, penalty, mode=mode).attach(optimizer)
    if tuned:
        AutoStrength(regularizer, (x, y), cross_entropy, batch_size=100).attach(optimizer)
    step = partial(_train, model, optimizer, x[:100], y[:100])
    return lambda: [step() for _ in range(4)]


def _network(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
