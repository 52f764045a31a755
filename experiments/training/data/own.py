"""A class or function of the user's that gives the examples."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ... import config
from ...errors import UserError, did_you_mean, oneline
from ..imports import constructed, found_at, is_users_function
from .examples import Source, Target, inputs_of
from .files import pair
from .stream import Stream, is_streamed

_WANTED = "tensors (x, y), a Dataset, or a pair (train, test) of these"
_INPUTS = ("image", "img", "x", "inputs", "features", "pixel_values")  # as columns are called most often
_TARGETS = ("label", "labels", "y", "target", "targets", "fine_label")


def read(settings: config.Data) -> Source:
    """What the class or function of the study gives: one set, or a training and a test set."""
    assert settings.class_ is not None
    make = found_at("data.class", settings.class_)
    is_dataset = inspect.isclass(make) and issubclass(make, Dataset)
    if not is_dataset and not is_users_function(make):
        got = " ".join(repr(make).split())
        raise UserError(
            f"data.class: must name a Dataset, or a function of yours that returns {_WANTED}, "
            f"got {settings.class_!r}, {got:.80}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # so that what draws at random gives the same examples in every process
        given = constructed("data.args", make, settings.class_, settings.args)
    where = repr(settings.class_)
    try:
        if isinstance(given, Mapping) and {"train", "test"} <= given.keys():
            given = (given["train"], given["test"])
        if isinstance(given, (tuple, list)) and len(given) == 2 and not _is_array(given[0]):
            train, test = (_part(part, where, settings) for part in given)
            return Source(*train, test, place=f"{where}, example {{}}".format)
        return Source(*_part(given, where, settings), place=f"{where}, example {{}}".format)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own data set raises
        raise UserError(f"data.class: {where} gives examples that cannot be read: {oneline(error)}") from error


def _part(given: Any, where: str, settings: config.Data) -> tuple[Tensor | Stream, Target]:
    if isinstance(given, TensorDataset):
        given = given.tensors
    if isinstance(given, (tuple, list)) and len(given) == 2 and _is_array(given[0]):
        return pair(given[0], given[1], where, settings)
    keep = not settings.standardize
    if hasattr(given, "column_names") and hasattr(given, "__len__"):  # of Hugging Face's datasets
        items = _Items(given, where, keep, *_columns(given, where, settings))
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and _is_dataset(given):
        items = _Items(given, where, keep)
    else:
        raise UserError(f"data.class: {where} must return {_WANTED}, got {_described(given)}")
    if is_streamed(items, settings.stream):
        return Stream.of(items), pair(np.zeros((len(items), 1)), _stacked(items.targets(), where), where, settings)[1]
    pairs = [items.pair(position) for position in range(len(items))]
    x, y = ([one[number] for one in pairs] for number in (0, 1))
    return pair(_stacked(x, where), _stacked(y, where), where, settings)


@dataclass(frozen=True)
class _Items:
    """The inputs of a Dataset, or the columns of a Hugging Face split; several are put beside each other."""

    given: Any
    where: str
    keep_whole: bool
    columns: Sequence[str] = ()
    target: str = ""

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, position: int) -> Tensor:
        values = _stacked([self.pair(position)[0]], self.where)
        return inputs_of(torch.as_tensor(values), keep_whole=self.keep_whole)[0]

    def pair(self, position: int) -> tuple[Any, Any]:
        """An input and its target, as they are given."""
        item = self.given[position]
        if self.columns:
            first, *others = self.columns
            return [item[name] for name in self.columns] if others else item[first], item[self.target]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(
                f"data.class: {self.where} must have items (input, target), got {_described(item)} at {position}"
            )
        return item[0], item[1]

    def targets(self) -> list[Any]:
        """All targets; torchvision's data sets know theirs without reading the inputs."""
        known = getattr(self.given, "targets", None)
        if known is not None and len(known) == len(self) and getattr(self.given, "target_transform", None) is None:
            return list(known)
        return list(self.given[self.target]) if self.columns else [self.pair(i)[1] for i in range(len(self))]

    @property
    def identity(self) -> str:
        return f"{self.where}, {len(self)} examples"


def _is_dataset(given: Any) -> bool:
    return isinstance(given, Dataset) and not isinstance(given, IterableDataset)


def _columns(given: Any, where: str, settings: config.Data) -> tuple[Sequence[str], str]:
    """The columns of the inputs and of the target of a Hugging Face split."""
    names = list(given.column_names)
    target = settings.target or next((name for name in _TARGETS if name in names), None)
    inputs = settings.inputs or tuple(name for name in _INPUTS if name in names)[:1]
    inputs = inputs or tuple(name for name in names if name != target)
    if target is None or not inputs:
        raise UserError(f"data.target: must name the column to predict in {where}, which has {', '.join(names)}")
    for key, wanted in (("target", (target,)), ("inputs", inputs)):
        for name in wanted:
            if name not in names:
                raise UserError(f"data.{key}: {where} has no column {name!r}, {did_you_mean(name, names)}")
    return inputs, target


def _stacked(values: list[Any], where: str) -> Any:
    """Tensors, arrays, images or numbers as one array; images come with their channels first."""
    if all(isinstance(value, str) for value in values):
        return np.array(values)
    is_image = bool(values) and hasattr(values[0], "convert") and hasattr(values[0], "mode")
    if is_image:
        mode = "L" if all(value.mode in ("1", "L") for value in values) else "RGB"
        values = [value.convert(mode) for value in values]
    arrays = [value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value) for value in values]
    for i, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            shapes = f"{arrays[0].shape} and, at {i}, {array.shape}"
            raise UserError(f"data.class: {where} must have items of one shape, got {shapes}")
    stacked = np.stack(arrays) if arrays else np.zeros(0)
    if is_image:
        stacked = stacked[:, None] if stacked.ndim == 3 else np.moveaxis(stacked, 3, 1)
        return stacked.astype(np.float32) / 255
    return stacked


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}: {', '.join(type(one).__name__ for one in value):.80}"
    return f"{type(value).__name__}"
