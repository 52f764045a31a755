"""The examples of the tasks of a continual study: each part of them lies task by task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ...config import Tasks
from ...errors import UserError
from .examples import Examples, Source, Split
from .tasks import Classes, Task

_Chosen = tuple[Source, Task, Tensor, Tensor, tuple[str, ...]]


def chosen(source: Source, tasks: Tasks, task: Task, y: Tensor, y_test: Tensor, labels: tuple[str, ...]) -> _Chosen:
    """The examples whose classes are in a task. Their targets are places in the list of all tasks' classes.

    Raises:
        UserError: the data has no such class, or no classes.
    """
    if not isinstance(task, Classes):
        raise UserError("data.tasks: are parts of the classes, the data is a regression: remove the key")
    listed = tasks.listed
    if max(listed) >= len(labels):
        raise UserError(
            f"data.tasks.classes: must be from 0 to {len(labels) - 1}, the classes of {', '.join(labels[:12])}, "
            f"got {max(listed)}"
        )
    places = torch.full((len(labels),), -1)
    places[torch.tensor(listed)] = torch.arange(len(listed))
    y, y_test = places[y], places[y_test]
    kept, kept_test = ((part >= 0).nonzero().flatten() for part in (y, y_test))
    test = None if source.test is None else (source.test[0][kept_test], y_test[kept_test])
    found = replace(source, x=source.x[kept], y=y[kept], test=test)
    names = tuple(labels[number] for number in listed)
    return found, replace(task, classes=len(listed)), y[kept], y_test[kept_test], names


def order(tasks: Tasks, places: Tensor) -> Tensor:
    """The order in which examples with these targets lie task by task."""
    return _numbers(tasks)[places].argsort(stable=True)


def grouped(examples: Examples, tasks: Tasks) -> Examples:
    """The examples with those of each task, and the targets of the scenario.

    Raises:
        UserError: a task has no examples in a part.
    """
    numbers, count = _numbers(tasks), len(tasks.classes)
    parts = {"train": examples.train, "valid": examples.valid, "test": examples.test}
    sizes = {name: numbers[split.y.cpu()].bincount(minlength=count).tolist() for name, split in parts.items()}
    for name, own in sizes.items():
        if 0 in own:
            raise UserError(
                f"data.tasks: each must have {name} examples, got none of task {own.index(0) + 1}: "
                "take more examples, or set data.stratified = true"
            )
    of_all = examples.task
    assert isinstance(of_all, Classes)
    if tasks.scenario == "task":
        of = numbers.to(examples.train.y.device)
        examples = replace(examples, task=replace(of_all, among=of.unsqueeze(1) == of))
    elif tasks.scenario == "domain":
        outputs = len(tasks.classes[0])
        parts = {name: Split(split.x, split.y % outputs) for name, split in parts.items()}
        names = zip(*(examples.labels[i : i + outputs] for i in range(0, len(examples.labels), outputs)), strict=True)
        labels = tuple("/".join(own) for own in names)
        task = replace(of_all, classes=outputs)
        examples = replace(examples, **cast(Any, parts), labels=labels, task=task)
    each = {name: _stretches(split, sizes[name]) for name, split in parts.items()}
    groups = [replace(examples, **cast(Any, {name: own[i] for name, own in each.items()})) for i in range(count)]
    return replace(examples, groups=tuple(groups))


def _numbers(tasks: Tasks) -> Tensor:
    """The number of the task, from 0, for each place in the list of all classes."""
    return torch.tensor([number for number, own in enumerate(tasks.classes) for _ in own])


def _stretches(split: Split, sizes: list[int]) -> list[Split]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [Split(split.x[end - size : end], split.y[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
