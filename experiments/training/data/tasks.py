"""What a model is to predict: a class, or numbers. The task decides the loss and what an error is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss


@dataclass(frozen=True, eq=False)
class Classes:
    """One class of several for each example. The loss is the cross-entropy, an error the share of wrong classes."""

    outputs: int
    name: Literal["classes"] = "classes"

    @property
    def mark(self) -> dict[str, str]:
        """What a record says of the task beside its figures."""
        return {}

    loss = staticmethod(cross_entropy)  # the mean loss of a batch: torch's own, which a stack has a fast form of

    def totals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sums of what :meth:`figures` needs the means of: the losses, and the wrong classes."""
        return torch.stack([cross_entropy(outputs, y, reduction="sum"), (outputs.argmax(1) != y).sum()])

    def figures(self, means: Tensor) -> Tensor:
        """The loss and the error of a split, from the means over its examples."""
        return means


@dataclass(frozen=True, eq=False)
class Regression:
    """Numbers for each example. The loss is the mean squared error, an error its root in units of the target.

    Args:
        scale: what the targets were divided by, one number for each.
    """

    scale: Tensor
    name: Literal["regression"] = "regression"

    @property
    def outputs(self) -> int:
        """The number of targets."""
        return len(self.scale)

    @property
    def mark(self) -> dict[str, str]:
        """What a record says of the task beside its figures."""
        return {"task": self.name}

    loss = staticmethod(mse_loss)  # the mean loss of a batch

    def totals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sums of what :meth:`figures` needs the means of: the losses, and the squared errors in units."""
        squares = (outputs.double() - y) ** 2
        return torch.stack([squares.mean(1).sum(), (squares * self.scale**2).mean(1).sum()])

    def figures(self, means: Tensor) -> Tensor:
        """The loss and the error of a split, from the means over its examples."""
        return torch.stack([means[0], means[1].sqrt()])


Task = Classes | Regression
