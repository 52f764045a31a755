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
        """The sums of what :meth:`figures` needs the means of: the losses, and the wrong classes.

        Args:
            outputs: ``(members, examples, classes)``.
            y: ``(examples,)``.

        Returns:
            ``(members, 2)``.
        """
        flat = cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)), reduction="none")
        return torch.stack([flat.view(len(outputs), -1).double().sum(1), (outputs.argmax(-1) != y).sum(1)], 1)

    def figures(self, means: Tensor) -> Tensor:
        """The losses and the errors of a split, from the means over its examples, ``(members, 2)``."""
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
        """The sums of what :meth:`figures` needs the means of: the losses, and the squared errors in units.

        Args:
            outputs: ``(members, examples, targets)``.
            y: ``(examples, targets)``.

        Returns:
            ``(members, 2)``.
        """
        squares = (outputs.double() - y) ** 2
        return torch.stack([squares.mean(2).sum(1), (squares * self.scale**2).mean(2).sum(1)], 1)

    def figures(self, means: Tensor) -> Tensor:
        """The losses and the errors of a split, from the means over its examples, ``(members, 2)``."""
        return torch.stack([means[:, 0], means[:, 1].sqrt()], 1)


Task = Classes | Regression
