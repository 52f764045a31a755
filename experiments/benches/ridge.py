"""A ridge head in closed form: thirty strengths, each validated on every example, against a single fit by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from torchreg.tuning import evidence, generalized_cv, leave_one_out, ridge_path

from .timing import Clock, Table

_STRENGTH = 0.1


def tables(clock: Clock) -> Iterator[Table]:
    """The seconds from features to a strength, and the ratio to one solution of the normal equations."""
    for examples, features in ((1000, 10_000), (10_000, 1000)):
        x, y = examples_of(examples, features)
        contenders: dict[str, Callable[[], object]] = {
            "one strength, by hand": lambda x=x, y=y: by_hand(x, y, _STRENGTH),  # type: ignore[misc]
            "30 strengths, three choices": lambda x=x, y=y: chosen(x, y),  # type: ignore[misc]
        }
        yield from clock.race(f"{examples:,} x {features:,} features, 10 outputs", contenders, rounds=3, warmup=0)


def examples_of(examples: int, features: int) -> tuple[Tensor, Tensor]:
    """Features in single precision, and ten targets."""
    torch.manual_seed(0)
    x = torch.randn(examples, features)
    return x, x[:, :10] + torch.randn(examples, 10)


def by_hand(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """The weight for one strength: the smaller of the two normal equations, in double precision."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    wide, alpha = x.shape[1] > len(x), strength * y.numel() / 2
    gram = x @ x.T if wide else x.T @ x
    factor = torch.linalg.cholesky(gram + alpha * torch.eye(len(gram), dtype=gram.dtype))
    solution = x.T @ torch.cholesky_solve(y, factor) if wide else torch.cholesky_solve(x.T @ y, factor)
    return solution.T


def chosen(x: Tensor, y: Tensor) -> list[float]:
    """The strengths that leave-one-out, generalized cross-validation and the evidence choose."""
    path = ridge_path(nn.Linear(x.shape[1], y.shape[1]), (x, y))
    return [choose(path).strength for choose in (leave_one_out, generalized_cv, evidence)]
