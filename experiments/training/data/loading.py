"""From a source to the examples of a study: the task, the split, the label noise, and the scales."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from ... import config
from ...errors import UserError
from . import files, groups, images, own, toys, vision
from .examples import Examples, Source, Split, Target, noun_of
from .stream import Stream
from .tasks import Classes, Regression, Task

_MOST_CLASSES = 20  # that whole numbers are taken for without being told
_TEST_SHARE = 0.2


def load(settings: config.Data, device: torch.device, dtype: torch.dtype = torch.float32) -> Examples:
    """The data set that the settings describe: the same examples, split and label noise for the same settings.

    Validation examples are drawn first and training examples after them, so that a larger ``train_size`` adds some and
    keeps the rest. Inputs are shifted and scaled by the mean and standard deviation of the training examples: column by
    column for vectors, all pixels alike for images; or by those that are given. With "mean" each pixel or column is
    shifted by its own mean, and not scaled. Targets of a regression are shifted and scaled by theirs.

    If no examples are held out, the training examples stand for them.

    Raises:
        UserError: more training examples are asked for than there are, or files are missing or damaged.
    """
    return _load(settings.model_dump_json(by_alias=True), device, dtype)


@lru_cache(maxsize=2)
def _load(text: str, device: torch.device, dtype: torch.dtype) -> Examples:
    settings = config.Data.model_validate_json(text)
    source = _read(settings)
    task, y, y_test, labels = _targets(source, settings)
    x, noun = source.x, noun_of(source.x)
    if settings.tasks is not None:
        source, task, y, y_test, labels = groups.chosen(source, settings.tasks, task, y, y_test, labels)
        x = source.x
    if source.test is None:
        count = _count(settings.test_size or _TEST_SHARE, len(x))
        if count >= len(x):
            raise UserError(f"data.test_size: must be less than {len(x):,}, the {noun} that there are, got {count:,}")
        fixed = torch.Generator().manual_seed(0)  # which examples are tests never changes
        order = _order(y, settings.stratified, fixed)
        test, rest = order[:count], order[count:]
        x, y, x_test, y_test = x[rest], y[rest], x[test], y[test]
    else:
        x_test = source.test[0]
        if settings.test_size is not None:
            raise UserError(f"data.test_size: is for data without a test of its own: {settings.source} has one")
        if x_test.shape[1:] != x.shape[1:]:
            raise UserError(
                f"data: the test must hold inputs of shape {tuple(x.shape[1:])}, as those to train on, "
                f"got {tuple(x_test.shape[1:])}"
            )
    valid_size = _count(settings.valid_size, len(y))
    left = len(y) - valid_size
    if left < 1:
        raise UserError(
            f"data.valid_size: must be less than {len(y):,}, the {noun} {settings.source} has besides its test set; "
            f"got {valid_size:,}"
        )
    size = left if settings.train_size is None else settings.train_size
    if size > left:
        raise UserError(
            f"data.train_size: must be at most {left:,}: {settings.source} has {len(y):,} {noun} to train on, "
            f"less valid_size = {valid_size:,}; got {size:,}"
        )
    draw = torch.Generator().manual_seed(settings.seed)
    order = _order(y, settings.stratified, draw)
    valid, train = order[:valid_size], order[valid_size : valid_size + size]
    if settings.tasks is not None:
        valid, train = (part[groups.order(settings.tasks, y[part])] for part in (valid, train))
        by_task = groups.order(settings.tasks, y_test)
        x_test, y_test = x_test[by_task], y_test[by_task]
    y_train = y[train]
    if settings.label_noise:
        y_train = _corrupted(y_train, settings.label_noise, task.outputs, draw)
    moments = _scales(x[train]) if settings.standardize is True else None
    if isinstance(settings.standardize, tuple):
        means, scales = settings.standardize
        moments = torch.tensor(means), torch.tensor(scales)
    elif settings.standardize == "mean":
        moments = _mean_input(x[train])
    if isinstance(task, Regression):
        none = torch.zeros(y.shape[1]), torch.ones(y.shape[1])
        middle, scale = _scales(y_train) if settings.standardize else none
        task = Regression(scale.to(device, dtype), middle.to(device, dtype))
        y_train, y, y_test = ((part - middle) / scale for part in (y_train, y, y_test))

    def placed(values: Tensor) -> Tensor:
        return values.to(device, dtype if values.is_floating_point() else None)

    def split(inputs: Tensor | Stream, targets: Tensor) -> Split:
        if isinstance(inputs, Stream):
            return Split(replace(inputs, moments=moments, device=device, dtype=dtype), placed(targets))
        return Split(placed(inputs if moments is None else (inputs - moments[0]) / moments[1]), placed(targets))

    parts = split(x[train], y_train), split(x[valid], y[valid]), split(x_test, y_test)
    if not valid_size:
        parts = parts[0], parts[0], parts[2]
    made = Examples(*parts, task, labels, settings.source, dtype)
    return made if settings.tasks is None else groups.grouped(made, settings.tasks)


def _read(settings: config.Data) -> Source:
    if settings.class_ is not None:
        return own.read(settings)
    if settings.name in ("csv", "npz", "images"):
        return {"csv": files.csv_table, "npz": files.npz, "images": images.read}[settings.name](settings)
    if settings.name in toys.NAMES:
        return toys.read(settings)
    return vision.read(settings)


def _targets(source: Source, settings: config.Data) -> tuple[Task, Tensor, Tensor, tuple[str, ...]]:
    """The task, and the targets as it needs them: classes from 0, or a row of floats for each example."""
    y, y_test = source.y, source.test[1] if source.test is not None else torch.zeros(0, dtype=torch.long)
    if source.labels:
        assert isinstance(y, Tensor)
        assert isinstance(y_test, Tensor)
        return Classes(len(source.labels)), y, y_test, source.labels
    known = [*y, *(y_test if source.test is not None else [])] if _is_text(y) or _is_text(y_test) else None
    task = settings.task or source.task or _deduced(source, known)
    if task == "regression":
        for key in ("stratified", "label_noise"):
            if getattr(settings, key):
                raise UserError(f"data.{key}: is for classes, not for a regression: remove it, or set task = 'classes'")
        if known is not None:
            raise UserError(f"data.target: must be numbers for a regression, got {known[0]!r} in {source.place(0)}")
        numbers, numbers_test = (_rows(part) for part in (y, y_test))
        targets = numbers.shape[1]
        return Regression(torch.ones(targets), torch.zeros(targets)), numbers, numbers_test.reshape(-1, targets), ()
    if known is not None:
        names = sorted({str(label) for label in known})
        codes = torch.tensor([names.index(str(label)) for label in known])
    else:
        joined = torch.cat([_column(y, source), _column(y_test, source)])
        if joined.is_floating_point():
            broken = (joined != joined.round()).nonzero()
            if len(broken):
                first = int(broken[0])
                raise UserError(
                    f"data.target: must be whole numbers or text for task = 'classes', got {joined[first].item():g} "
                    f"in {source.place(first)}: set task = 'regression'"
                )
        values, codes = joined.long().unique(return_inverse=True)
        names = [str(value) for value in values.tolist()]
    if len(names) < 2:
        raise UserError(f"data.target: must have two classes or more, got {names[0]} everywhere")
    return Classes(len(names)), codes[: len(y)], codes[len(y) :], tuple(names)


def _deduced(source: Source, text: list[str] | None) -> str:
    """The task that the targets tell: text and few whole numbers are classes, fractions a regression."""
    if text is not None:
        return "classes"
    assert isinstance(source.y, Tensor)
    values = source.y.unique()
    is_whole = not source.y.is_floating_point()
    if not is_whole and (values != values.round()).any():
        return "regression"
    if is_whole and len(values) <= _MOST_CLASSES:
        return "classes"
    kind = "whole numbers" if is_whole else "floats without fractions"
    raise UserError(
        f"data.task: must be given, the target has {len(values):,} different {kind}: "
        "set task = 'classes' or task = 'regression'"
    )


def _is_text(y: Target) -> bool:
    return not isinstance(y, Tensor)


def _rows(y: Target) -> Tensor:
    assert isinstance(y, Tensor)
    numbers = y.double()
    if numbers.dim() > 2:
        raise UserError(f"data.target: must be a number or a row of numbers an example, got {tuple(y.shape[1:])}")
    return numbers.reshape(len(numbers), -1) if len(numbers) else numbers


def _column(y: Target, source: Source) -> Tensor:
    assert isinstance(y, Tensor)
    if y.dim() > 1 and y[0].numel() != 1:
        raise UserError(f"data.target: must be one class an example, got {tuple(y.shape[1:])} in {source.place(0)}")
    return y.flatten() if y.is_floating_point() else y.flatten().long()


def _count(amount: float, of: int) -> int:
    """The amount as a number: itself, or a share of so many."""
    return amount if isinstance(amount, int) else max(1, round(amount * of))


def _order(y: Tensor, stratified: bool, draw: torch.Generator) -> Tensor:
    """A random order of the examples. Stratified, whatever follows each other in it has each class by its share.

    The k-th of the n examples of a class comes at (k + u) / n of the order, u uniform in [0, 1): any stretch of it has
    as many of the class as its share, up to one or two.
    """
    order = torch.randperm(len(y), generator=draw)
    if not stratified:
        return order
    places = torch.empty(len(y), dtype=torch.double)
    for label in y.unique():
        ours = (y[order] == label).nonzero().flatten()
        start = torch.rand(1, generator=draw, dtype=torch.double)
        places[ours] = (torch.arange(len(ours)) + start) / len(ours)
    return order[places.argsort(stable=True)]


def _scales(values: Tensor | Stream) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation: of each column of vectors, of all pixels of images; 1 where it is 0."""
    if isinstance(values, Stream):
        mean, std = values.measured()
    else:
        values = values if values.is_floating_point() else values.double()
        mean, std = (values.mean(0), values.std(0)) if values.dim() == 2 else (values.mean(), values.std())
    return mean, torch.where(std > 0, std, torch.ones_like(std))  # also where it is unknown, of a single example


def _mean_input(values: Tensor | Stream) -> tuple[Tensor, Tensor]:
    """The mean input, and 1 to divide by."""
    if isinstance(values, Stream):
        raise UserError("data.standardize: 'mean' needs inputs in memory, got a stream: set data.stream = false")
    mean = (values if values.is_floating_point() else values.double()).mean(0)
    return mean, torch.ones((), dtype=mean.dtype)


def _corrupted(y: Tensor, fraction: float, classes: int, draw: torch.Generator) -> Tensor:
    """The labels with exactly ``round(fraction * n)`` of them replaced by another class, uniformly."""
    wrong = torch.randperm(len(y), generator=draw)[: round(fraction * len(y))]
    shift = torch.randint(1, classes, (len(wrong),), generator=draw)
    return y.index_copy(0, wrong, (y[wrong] + shift) % classes)
