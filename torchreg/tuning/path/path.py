"""A path of strengths, trained together and validated on the same folds."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from torchreg.ensemble.stacked import Stacked
from torchreg.nn.model.replace import replace_dropout
from torchreg.nn.model.seeding import seed_dropout
from torchreg.nn.seeded import Seeded
from torchreg.penalties import Penalty
from torchreg.penalties.reference import Anchored
from torchreg.regularizer import Mode
from torchreg.selection.parameters import ParamInfo
from torchreg.selection.selectors import Selector, weights
from torchreg.tuning.path.executors import Executor, Job, State, can_fork, described, fastest, train_all
from torchreg.tuning.path.fit import fit
from torchreg.tuning.path.folds import splits
from torchreg.tuning.path.outcome import outcomes, point
from torchreg.tuning.path.problem import (
    Criterion,
    Examples,
    Problem,
    check_examples,
    check_given,
    check_makes_models,
    criterion_in_double,
    descending,
    in_double,
    usual_criterion,
)
from torchreg.tuning.path.selection import Point
from torchreg.tuning.path.strength_max import strength_max
from torchreg.tuning.path.table import StrengthPath

_ROUNDING = 1e-13


def strength_path(
    make_model: Callable[[], nn.Module],
    penalty: Penalty | Mapping[str, Penalty],
    train: Examples,
    valid: Examples | None = None,
    *,
    strengths: Sequence[float] | None = None,
    count: int = 30,
    ratio: float = 1e-3,
    folds: int | Sequence[tuple[Any, Any]] = 5,
    seeds: Sequence[int] = (0,),
    criterion: Criterion | None = None,
    mode: Mode = "prox",
    select: Selector | Callable[[ParamInfo], bool] = weights,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    patience: int | None = None,
    tolerance: float = 1e-6,
    warm: bool = False,
    executor: Executor | Literal["fastest"] = "fastest",
    jobs: int | None = None,
    seed: int = 0,
    keep: bool = False,
    verbose: bool = True,
) -> StrengthPath:
    r"""Trains a model at many strengths of a penalty and validates each strength on the same folds.

    .. math:: w(s) = \operatorname{argmin}_w L(w) + s R(w)

    All members of the path have the same initial weights and the same batches. The path contains the loss, the error,
    the share of zeros and the norms for each strength. Choose a strength with :func:`one_standard_error` or
    :func:`best`.

    Without an ``optimizer`` each member is trained to its minimum, in double precision, by accelerated proximal
    gradient steps over all examples; each point contains its distance from a stationary point. For linear models the
    minimum is unique, so with :class:`~torchreg.L1` this is the path of the lasso. With an ``optimizer`` the members
    are trained in batches for ``epochs`` epochs.

    Args:
        make_model: a function that returns a new model. It is called once for each of ``seeds``, with torch's seed set.
        penalty: as for a :class:`~torchreg.Regularizer`, usually with strength 1; the path multiplies it by :math:`s`.
        train: inputs and targets.
        valid: inputs and targets for validation instead of folds.
        strengths: positive numbers; by default ``count`` numbers in geometric progression from :func:`strength_max`
            to ``ratio`` times this.
        folds: the number of folds, with the classes spread evenly over them; or pairs of indices for training and
            validation.
        seeds: of the initial weights and of dropout. Torch's dropout layers are replaced by torchreg's. The results of
            a fold are means over the seeds.
        criterion: the loss of outputs and targets, one number; cross entropy for whole-number targets, else the mean
            square. It may ignore targets, weight classes, or add up the examples; errors are over the targets that
            count in it, and standard errors those of such a mean or sum.
        mode: the mode of the regularizer.
        select: which parameters are penalized.
        optimizer: a function from parameters to an optimizer, such as ``partial(torch.optim.Adam, lr=1e-3)``.
        epochs: passes over the training examples, by default 100; without an optimizer the maximal number of steps, by
            default 3,000.
        batch_size: examples in a batch; all examples if None.
        patience: ends a member's training after so many epochs without a lower validation loss, with the best weights.
        tolerance: without an optimizer the required distance from the minimum: the norm of the (sub)gradient, in units
            of the point's strength.
        warm: trains from the strongest to the weakest strength, each from the result of the one before.
        executor: ``"stacked"``, ``"processes"`` (Linux, on the CPU), ``"one after another"``, or ``"fastest"``, which
            times a few steps of each.
        jobs: the number of processes; the number of torch's threads if None.
        seed: of the folds and of the batches.
        keep: whether the path contains the trained models.
        verbose: whether to print the executor and its time.

    Returns:
        The path, from the strongest to the weakest strength.

    Raises:
        ValueError: no examples, a fold with only one class, a strength that is not positive, no ``strengths`` for a
            penalty that makes no zeros, or an executor that is not available.
        TypeError: a model instead of a function that makes it, no penalty, or examples that are no pair of tensors.

    Example:
        >>> from torchreg import L1
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1] * 2 + 0.1 * x[:, 1:2]
        >>> path = strength_path(lambda: nn.Linear(5, 1), L1(1.0), (x, y), (x, y), count=5, verbose=False)
        >>> [round(point.zeros, 1) for point in path]
        [1.0, 0.8, 0.6, 0.6, 0.6]

    References:
        Jerome Friedman, Trevor Hastie, Rob Tibshirani, "Regularization Paths for Generalized Linear Models via
        Coordinate Descent", Journal of Statistical Software, 2010.
    """
    started = time.perf_counter()
    _check(epochs, batch_size, patience, tolerance, executor, jobs, seeds, count, ratio)
    check_makes_models(make_model)
    check_given("strength_path", penalty, train=train, **({} if valid is None else {"valid": valid}))
    _check_penalty(penalty)
    if not (optimizer is None or callable(optimizer)):
        raise TypeError(
            "strength_path: optimizer must be a function that makes one, such as partial(torch.optim.Adam, lr=1e-3), "
            f"got {type(optimizer).__name__}"
        )
    if optimizer is None and (batch_size or patience):
        raise ValueError("strength_path: batch_size and patience need an optimizer, got none: give one, or drop them")
    found = splits(train, valid, folds, seed)
    if optimizer is None:
        train, found = in_double(train), [(in_double(ours), in_double(theirs)) for ours, theirs in found]
    criterion = criterion or usual_criterion(train[1])
    if optimizer is None:
        criterion = criterion_in_double(criterion)
    epochs = epochs or (100 if optimizer is not None else 3000)
    problem = Problem(
        train, train, criterion, penalty, mode, select, optimizer, epochs, batch_size, patience, tolerance, seed
    )
    made = [_made(make_model, each) for each in seeds]
    if optimizer is None:
        made = [model.double() for model in made]
    for part in (train, *(theirs for _, theirs in found)):
        check_examples(made[0], criterion, part)
    if optimizer is None and mode != "prox":
        raise ValueError(f"strength_path: mode must be 'prox' without an optimizer, got {mode!r}")
    if strengths is None:
        largest = strength_max(
            made[0],
            penalty,
            train,
            criterion=criterion,
            select=select,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        ).strength * (1 + tolerance)  # the accuracy to which the solver fits the unpenalized parameters
        strengths = [largest * ratio ** (k / max(count - 1, 1)) for k in range(count)]
    strengths = descending("strength_path", strengths)
    problem = replace(problem, floor=_ROUNDING * strengths[0])  # about the size of the gradient at 0
    models = [model for _ in strengths for model in made]
    each = [strength for strength in strengths for _ in made]
    jobs = jobs or torch.get_num_threads()
    executor, why = _executor(
        executor, models if not warm else made, each if not warm else each[: len(made)], problem, jobs
    )
    if verbose:
        print(f"strength_path: {why}")
    folds_found = []
    for ours, theirs in found:
        own = replace(problem, train=ours, valid=theirs)
        job = partial(_fit, own)
        states = _warm(made, strengths, job, executor, jobs) if warm else train_all(models, each, job, executor, jobs)
        trained = [_loaded(model, state) for model, state in zip(models, states, strict=True)]
        folds_found.append(outcomes(trained, each, own, keep))
    several = len(seeds)
    points = [
        point(strength, [fold[k * several : (k + 1) * several] for fold in folds_found])
        for k, strength in enumerate(strengths)
    ]
    if optimizer is None:
        _warn_of_unfinished(points, problem)
    return StrengthPath(tuple(points), executor, time.perf_counter() - started)


def _fit(problem: Problem, stack: Stacked, strengths: Sequence[float]) -> None:
    fit(stack, strengths, problem)


def _step(problem: Problem, stack: Stacked, strengths: Sequence[float]) -> None:
    fit(stack, strengths, problem, steps=1)


def _warn_of_unfinished(points: Sequence[Point], problem: Problem) -> None:
    far = [point for point in points if point.optimality > problem.limit(point.strength)]
    if far:
        worst = max(far, key=lambda point: point.optimality / problem.limit(point.strength))
        warnings.warn(
            f"strength_path: {len(far)} of {len(points)} points are farther from their minimum than the tolerance, as "
            f"{worst.optimality:.1e} instead of {problem.limit(worst.strength):.1e} at strength {worst.strength:.3g}: "
            "standardize the inputs, or raise epochs",
            stacklevel=3,
        )


def _warm(
    made: Sequence[nn.Module], strengths: Sequence[float], job: Job, executor: Executor, jobs: int
) -> list[State]:
    states: list[State] = []
    models = list(made)
    for strength in strengths:
        found = train_all(models, [strength] * len(models), job, executor, jobs)
        models = [_loaded(model, state) for model, state in zip(made, found, strict=True)]
        states += found
    return states


def _executor(
    executor: Executor | Literal["fastest"],
    models: Sequence[nn.Module],
    strengths: Sequence[float],
    problem: Problem,
    jobs: int,
) -> tuple[Executor, str]:
    if executor == "processes" and not can_fork(models):
        raise ValueError("strength_path: executor 'processes' needs Linux and models on the CPU: use another")
    if executor != "fastest":
        return executor, described(executor, len(models))
    return fastest(models, strengths, partial(_step, problem), jobs)


def _made(make_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"strength_path: make_model must make a torch.nn.Module, got {type(model).__name__}")
    with suppress(ValueError):  # if there is nothing to replace
        replace_dropout(model)  # by layers whose masks do not depend on the executor
    layers = [module for module in model.modules() if isinstance(module, Seeded)]
    first = next(model.parameters(), None)
    given = [layer.generator for layer in layers]
    if None in given:
        seed_dropout(model, seed, device="cpu" if first is None else first.device)
        for layer, generator in zip(layers, given, strict=True):
            layer.generator = generator or layer.generator
    return model


def _loaded(model: nn.Module, state: State) -> nn.Module:
    stack = Stacked([model])
    stack.load_member(0, state)
    return stack.members()[0]


def _check_penalty(penalty: Penalty | Mapping[str, Penalty]) -> None:
    for rule in penalty.values() if isinstance(penalty, Mapping) else (penalty,):
        for term in rule.terms:
            if isinstance(term, Anchored) and term.reference is None:
                raise ValueError(
                    f"strength_path: {type(term).__name__} must have a reference, got none: give a tensor or state_dict"
                )


def _check(
    epochs: int | None,
    batch_size: int | None,
    patience: int | None,
    tolerance: float,
    executor: str,
    jobs: int | None,
    seeds: Sequence[int],
    count: int,
    ratio: float,
) -> None:
    whole = {"epochs": epochs, "batch_size": batch_size, "patience": patience, "jobs": jobs, "count": count}
    for name, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"strength_path: {name} must be a whole number >= 1, got {value!r}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"strength_path: tolerance must be finite and >= 0, got {tolerance!r}")
    if not 0 < ratio < 1:
        raise ValueError(f"strength_path: ratio must be in (0, 1), got {ratio!r}")
    if executor not in ("fastest", *get_args(Executor)):
        raise ValueError(
            f"strength_path: executor must be one of fastest, {', '.join(get_args(Executor))}, got {executor!r}"
        )
    if not seeds:
        raise ValueError("strength_path: seeds must be at least one, got none")
