"""Endless held-out batches, the loss on them, and the evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from torchreg.tuning.online.arguments import checked_count, checked_seed


class Batches(Iterator[tuple[Any, Any]]):
    """Endless held-out batches, from two tensors or from an iterable that is repeated.

    A batch that is a mapping, as transformers have it, is the inputs and the targets at once.
    """

    def __init__(self, owner: str, source: Any, size: int, seed: int) -> None:
        self.owner, self.source = owner, source
        self.size, self.seed = checked_count(owner, "batch_size", size), checked_seed(owner, seed)
        self.is_tensors = isinstance(source, Sequence) and len(source) == 2 and isinstance(source[0], Tensor)
        if (what := _unlike_batches(source)) is not None:
            raise TypeError(f"{owner}: examples must be inputs and targets, or batches of both, got {what}")
        self.count = 0
        self._order = -1, torch.empty(0)  # a pass over the tensors, and its order
        self._open: Iterator[tuple[Any, Any]] | None = None
        self._skipped = 0  # batches of the iterable, before the next one
        if self.is_tensors and (not len(source[0]) or len(source[0]) != len(source[1])):
            raise ValueError(
                f"{owner}: examples must hold as many targets as inputs and at least one, got "
                f"{len(source[0])} inputs and {len(source[1])} targets"
            )

    def __next__(self) -> tuple[Any, Any]:
        self.count += 1
        return self._from_tensors(self.count - 1) if self.is_tensors else self._from_iterable()

    def go_to(self, count: int) -> None:
        """As after so many batches. An iterable without a length goes on from where it is."""
        if count == self.count:
            return
        self.count = count
        try:
            self._skipped = 0 if self.is_tensors else count % len(self.source)
        except (TypeError, ZeroDivisionError):
            return
        self._open = None

    def _from_tensors(self, number: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.source
        a_pass, place = divmod(number, max(len(inputs) // self.size, 1))
        if self._order[0] != a_pass:
            draw = torch.Generator().manual_seed(self.seed + a_pass)
            order = torch.randperm(len(inputs), generator=draw, device="cpu")
            self._order = a_pass, order.to(inputs.device)
        chosen = self._order[1][place * self.size : (place + 1) * self.size]
        return inputs.index_select(0, chosen), targets.index_select(0, chosen)

    def _from_iterable(self) -> tuple[Any, Any]:
        with torch.random.fork_rng():  # a loader that shuffles must not draw the training's random numbers
            for _ in range(2):
                if self._open is None:
                    self._open = islice(self.source, self._skipped, None)
                    self._skipped = 0
                for batch in self._open:
                    inputs, targets = (batch, batch) if isinstance(batch, Mapping) else batch
                    return inputs, targets
                self._open = None
        raise ValueError(f"{self.owner}: validation must have at least one batch in each pass, got none")


def _unlike_batches(source: Any) -> str | None:
    """What the examples are, if they are neither two tensors nor batches, as far as can be seen without a pass."""
    if isinstance(source, Tensor):
        return "one tensor"
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        return f"a {type(source).__name__}, which holds single examples: put it into a DataLoader"
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        return f"{source!r:.80}"
    if isinstance(source, Sequence) and len(source) and not isinstance(source[0], tuple | list | Mapping):
        kinds = ", ".join(type(part).__name__ for part in source[:4])
        is_pair = len(source) == 2 and all(isinstance(part, Tensor) for part in source)
        return None if is_pair else f"a {type(source).__name__} of {len(source)}: {kinds}"
    return None


def check_criterion(owner: str, criterion: object) -> None:
    """Raises ``TypeError`` unless it can be called for a loss."""
    if isinstance(criterion, type) or not callable(criterion):
        advice = f": write {criterion.__name__}()" if isinstance(criterion, type) else ""
        raise TypeError(f"{owner}: criterion must be a function of outputs and targets, got {criterion!r:.80}{advice}")


def loss_of(model: nn.Module, criterion: Callable[[Any, Any], Tensor], batch: tuple[Any, Any]) -> Tensor:
    """The loss of a batch, which is moved to the model's device; a mapping is passed as keywords."""
    param = next(model.parameters(), None)
    inputs, targets = batch if param is None else (_moved(part, param.device) for part in batch)
    return criterion(model(**inputs) if isinstance(inputs, Mapping) else model(inputs), targets)


def _moved(part: Any, device: torch.device) -> Any:
    """The tensors in it on the device. Trainers move the batches of training, and these are none."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, Mapping):
        return {key: _moved(value, device) for key, value in part.items()}
    if type(part) in (tuple, list):
        return type(part)(_moved(value, device) for value in part)
    return part


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each module has its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
