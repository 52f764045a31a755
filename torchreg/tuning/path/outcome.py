"""The results of the members of a path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from torch import nn

from torchreg.ensemble.stacked import Stacked
from torchreg.regularizer import Regularizer
from torchreg.tuning.path.problem import Problem, measure
from torchreg.tuning.path.selection import Mean, Point
from torchreg.tuning.path.solver import optimality


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of one trained member."""

    figures: dict[str, float]
    norms: dict[str, float]
    model: nn.Module | None


def outcomes(models: Sequence[nn.Module], strengths: Sequence[float], problem: Problem, keep: bool) -> list[Outcome]:
    """The results of each trained member; with the model if ``keep`` is set."""
    stack = Stacked(models)
    train, valid = (measure(stack, problem.criterion, part) for part in (problem.train, problem.valid))
    figures = {"train_loss": train[0], "train_error": train[1]}
    figures |= dict(zip(("valid_loss", "valid_error", "loss_se", "error_se"), valid, strict=True))
    if problem.optimizer is None:
        figures["optimality"] = optimality(stack, strengths, problem)
    found = []
    for member, model in enumerate(models):
        chosen = Regularizer(model, problem.penalty, mode=problem.mode, select=problem.select).entries
        params = {a.name: a.param.detach() for a in chosen if a.is_penalized}
        own = {name: values[member].item() for name, values in figures.items()}
        count = sum(param.numel() for param in params.values())
        own["zeros"] = sum(int((param == 0).sum()) for param in params.values()) / max(count, 1)
        found.append(
            Outcome(own, {name: param.norm().item() for name, param in params.items()}, model if keep else None)
        )
    return found


def point(strength: float, folds: Sequence[Sequence[Outcome]]) -> Point:
    """The point of one strength: means over the seeds of each fold, then over folds."""
    members = [outcome for fold in folds for outcome in fold]

    def mean(key: str, se_of_one_fold: str | None = None) -> Mean:
        values = [fmean(outcome.figures[key] for outcome in fold) for fold in folds]
        if not all(map(math.isfinite, values)):
            return Mean(math.nan, math.nan)
        if len(values) > 1:
            return Mean(fmean(values), stdev(values) / len(values) ** 0.5)
        return Mean(values[0], fmean(o.figures[se_of_one_fold] for o in members) if se_of_one_fold else 0.0)

    return Point(
        strength=strength,
        train_loss=mean("train_loss"),
        valid_loss=mean("valid_loss", "loss_se"),
        train_error=mean("train_error"),
        valid_error=mean("valid_error", "error_se"),
        zeros=mean("zeros").mean,
        norms={name: fmean(outcome.norms[name] for outcome in members) for name in members[0].norms},
        optimality=max(outcome.figures.get("optimality", math.nan) for outcome in members),
        models=tuple(outcome.model for outcome in members if outcome.model is not None),
    )
