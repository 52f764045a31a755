"""What a run trains on, and what a source of it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .stream import Stream
from .tasks import Classes, Regression, Task

Target = Tensor | Sequence[str]  # numbers, or the names of classes


@dataclass(frozen=True)
class Split:
    """Inputs (n, ...), normalized: vectors, images (n, channels, height, width) or others; and targets.

    Targets are classes (n,) from 0, or numbers (n, targets).
    """

    x: Tensor | Stream
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    def is_streamed(self) -> bool:
        """Whether the inputs do not lie in memory."""
        return isinstance(self.x, Stream)

    def batches(self, positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs and targets at those positions, batch after batch."""
        x = self.x
        inputs = x.read(positions) if isinstance(x, Stream) else (x[batch] for batch in positions)
        return zip(inputs, (self.y[batch] for batch in positions), strict=True)

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All inputs and targets, so many at once; a model that works in place may alter the inputs."""
        x = self.x
        inputs = x.in_order(size) if isinstance(x, Stream) else (part.clone() for part in x.split(size))
        return zip(inputs, self.y.split(size), strict=True)


@dataclass(frozen=True)
class Examples:
    """A data set on the training device.

    Args:
        train: to train on.
        valid: to choose by; the same as ``train`` if none are held out, and then nothing is chosen.
        test: to judge by.
        task: what to predict.
        labels: the classes' names, in order; none for a regression.
        source: the name of the data set, its path or its class.
        dtype: of inputs and targets that are no whole numbers.
        groups: those of each task of a continual study, which are stretches of these.
    """

    train: Split
    valid: Split
    test: Split
    task: Task
    labels: tuple[str, ...] = ()
    source: str = ""
    dtype: torch.dtype = torch.float32
    groups: tuple[Examples, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.x.shape[1:])

    @property
    def noun(self) -> str:
        """What the examples are called."""
        return noun_of(self.train.x)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of examples in each part; 0 for validation if the training examples stand for them."""
        valid = 0 if self.valid is self.train else len(self.valid)
        return {"train": len(self.train), "valid": valid, "test": len(self.test)}

    @property
    def digest(self) -> str:
        """The digest of all examples' bits; of inputs that do not lie in memory, of what tells them from others."""
        digest = hashlib.sha256()
        parts = [values for split in (self.train, self.valid, self.test) for values in (split.x, split.y)]
        for values in (*parts, *([self.task.scale] if isinstance(self.task, Regression) else [])):
            if isinstance(values, Stream):
                digest.update(f"{values.items.identity} {values.shape}".encode())
                continue
            digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def text(self) -> str:
        """A line about the examples and the task."""
        parts = ", ".join(f"{count:,} {name}" for name, count in self.sizes.items())
        if isinstance(self.task, Classes):
            some = ", ".join(self.labels[:6]) + (", ..." if len(self.labels) > 6 else "")
            return f"{self.source}: {self.task.classes} classes ({some}); {self.noun}: {parts}"
        targets = "one target" if self.task.outputs == 1 else f"{self.task.outputs} targets"
        return f"{self.source}: regression of {targets}; {self.noun}: {parts}"


def noun_of(x: Tensor | Stream) -> str:
    """What inputs are called: "images" if they have channels, height and width."""
    return "images" if x.dim() == 4 else "examples"


@dataclass(frozen=True)
class Source:
    """Examples as they were read.

    Args:
        x: the inputs.
        y: the targets.
        test: the same of a test set; None: it is yet to be taken out of the others.
        task: what the source itself says about its task, if it does.
        labels: the classes' names, if ``y`` are classes from 0.
        place: says where an example's target stands, for messages.
    """

    x: Tensor | Stream
    y: Target
    test: tuple[Tensor | Stream, Target] | None = None
    task: Literal["classes", "regression"] | None = None
    labels: tuple[str, ...] = ()
    place: Callable[[int], str] = "example {}".format


def inputs_of(values: Tensor, keep_whole: bool) -> Tensor:
    """The inputs as floats; whole numbers, such as those of words, stay as they are if they are not standardized."""
    if values.dim() == 1:
        values = values.unsqueeze(1)
    if values.is_floating_point():
        return values if values.dtype == torch.float64 else values.float()
    whole = values.dtype in (torch.int64, torch.int32, torch.int16)
    return values.long() if whole and keep_whole else values.float() if values.dtype == torch.uint8 else values.double()
