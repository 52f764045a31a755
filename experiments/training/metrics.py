"""Metrics of torchmetrics by name, on the validation and the test examples, for each member of a stack."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..config import Metric
from ..errors import UserError, oneline
from .data import Classes, Task
from .imports import component, found_in, imported

KEY = "train.metrics"


def named_by(settings: Sequence[Metric], task: Task, device: torch.device) -> Metrics | None:
    """The metrics that a study names, if it does."""
    if not settings:
        return None
    base, table = known()
    made: dict[str, Any] = {}
    for i, one in enumerate(settings):
        key = f"{KEY}.{i}"
        name = one.name or str(one.class_).rpartition(":")[2]
        make = imported(f"{key}.class", one.class_, base) if one.class_ else found_in(f"{key}.name", name, table)
        given = from_data(key, make, one.options, task)
        if [other.name for other in settings].count(one.name) > 1:
            name += "".join(f", {option} {value}" for option, value in one.options.items())
        if name in made:
            raise UserError(f"{key}: must be another metric, got {name} twice: remove one")
        with warnings.catch_warnings(action="ignore"):  # of what they keep in memory
            made[name] = component(key, base, one, table, **given).to(device)
        for module in made[name].modules():
            if isinstance(module, base):
                module.sync_on_compute = False  # each of several processes has all outputs
    return Metrics(made, task)


def known() -> tuple[Any, dict[str, Callable[..., Any]]]:
    """The base class of torchmetrics, and its metrics by name.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        modules = [import_module(f"torchmetrics{part}") for part in ("", ".classification", ".regression")]
    except Exception as error:  # one that is installed may still fail, for what it needs itself
        why = "which is not installed" if isinstance(error, ModuleNotFoundError) else oneline(error)
        raise UserError(f"{KEY}: needs the package torchmetrics, {why}: pip install torchmetrics") from None
    base = modules[0].Metric
    named = {name: getattr(module, name) for module in modules for name in module.__all__}
    return base, {
        name: cls for name, cls in named.items() if inspect.isclass(cls) and issubclass(cls, base) and cls is not base
    }


def from_data(key: str, make: Callable[..., Any], options: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The arguments of a metric that the data tells, where the study does not give them.

    Two classes are a binary task, unless an average over classes is asked for.

    Raises:
        UserError: the metric is for classes, and the data is a regression.
    """
    accepted = inspect.signature(make).parameters
    if not isinstance(task, Classes):
        if "task" in accepted:
            raise UserError(f"{key}: is for classes, the data is a regression: take one such as 'MeanAbsoluteError'")
        return {}
    is_binary = task.classes == 2 and not {"average", "num_classes", "top_k"} & options.keys()
    given: dict[str, Any] = {"task": "binary" if is_binary else "multiclass"}
    if options.get("task", given["task"]) == "multiclass":
        given["num_classes"] = task.classes
    return {name: value for name, value in given.items() if name in accepted and name not in options}


class Metrics:
    """Metrics of the outputs of one model, or of each member of a stack.

    Args:
        made: the metrics by their names in records, on the device of the outputs.
        task: says what outputs mean. Metrics get probabilities of the classes, of the second one if they are binary;
            of a regression numbers in units of the target.
    """

    def __init__(self, made: Mapping[str, Any], task: Task) -> None:
        self._made, self._task = made, task
        self._each: list[dict[str, Any] | None] = []  # None: of a member whose outputs are not finite

    @torch.no_grad()
    def update(self, outputs: Tensor, y: Tensor) -> None:
        """Takes the outputs ``(members, examples, outputs)`` for the targets of some examples."""
        if not self._each:
            self._each = [dict(deepcopy(self._made)) for _ in outputs]
        for number, own in enumerate(outputs):
            if not own.isfinite().all():
                self._each[number] = None
            for metric in (self._each[number] or {}).values():
                with warnings.catch_warnings(action="ignore"):
                    metric.update(*self._as_taken(metric, own, y))

    def take(self) -> list[dict[str, float | None]]:
        """The values for each member since the last call; None where a metric is not defined."""
        each, self._each = self._each, []
        return [{name: _value(own[name]) if own else None for name in self._made} for own in each]

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Tries all metrics on the outputs ``(examples, outputs)`` of a batch.

        Raises:
            UserError: one does not fit, or gives no number.
        """
        for number, (name, metric) in enumerate(deepcopy(self._made).items()):
            key = f"{KEY}.{number}"
            try:
                with warnings.catch_warnings(action="ignore"):
                    metric.update(*self._as_taken(metric, outputs.detach(), y))
                    found = metric.compute()
            except Exception as error:  # whatever a metric raises on what is not meant for it
                raise UserError(f"{key}: {name} does not fit the outputs: {oneline(error)}") from error
            if not isinstance(found, Tensor) or found.numel() != 1:
                got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise UserError(f"{key}: {name} must give one number, got {got}: choose an average, or another metric")

    def _as_taken(self, metric: Any, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        task = self._task
        if isinstance(task, Classes):
            shares = task.scores(task.limited(outputs, y)).float().softmax(-1)
            return (shares[:, 1] if type(metric).__name__.startswith("Binary") else shares), y
        predicted, true = (values * task.scale + task.middle for values in (outputs, y))
        return (predicted[:, 0], true[:, 0]) if task.outputs == 1 else (predicted, true)


def _value(metric: Any) -> float | None:
    with warnings.catch_warnings(action="ignore"):
        value = float(metric.compute())
    return value if math.isfinite(value) else None
