"""What a model is to predict: a class, or numbers. The task decides what an error is, and what targets a loss takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from torchreg import functional as f

Criterion = Callable[[Tensor, Tensor], Tensor]  # the mean loss of a batch, from outputs and targets
Form = Literal["classes", "one-hot", "signs", "one output"]


@dataclass(frozen=True, eq=False)
class Classes:
    """One class of several for each example. An error is the share of wrong classes.

    Args:
        classes: how many there are.
        loss: torch's own function or module, which a stack may have a fast form of.
        form: what targets the loss takes: the numbers of classes; 1 for the class and 0 for the others; the same with
            -1 for the others; or, of two classes and a model with one output, 1 for the second one and 0 for the first.
        among: in row ``y`` True for the classes that an example of class ``y`` is known to be among; None: for all.
    """

    classes: int
    loss: Criterion = cross_entropy
    form: Form = "classes"
    name: Literal["classes"] = "classes"
    among: Tensor | None = None

    @property
    def outputs(self) -> int:
        """The number of a model's outputs."""
        return 1 if self.form == "one output" else self.classes

    @property
    def mark(self) -> dict[str, str]:
        """What a record says of the task beside its figures."""
        return {}

    def limited(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The outputs with minus infinity for the classes that the examples are known not to be in."""
        return outputs if self.among is None else outputs.masked_fill(~self.among[y], -torch.inf)

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The classes as the loss takes them beside such outputs; of mixed examples, the shares of the classes."""
        if self.form == "classes":
            return y
        shares = y if y.is_floating_point() else torch.eye(self.classes, device=y.device)[y]
        shares = shares.to(outputs.dtype)
        if self.form == "one output":
            return shares[..., 1:]
        return 2 * shares - 1 if self.form == "signs" else shares

    def scores(self, outputs: Tensor) -> Tensor:
        """A number for each class, of which the largest one is the answer, and whose softmax are probabilities."""
        return torch.cat([torch.zeros_like(outputs), outputs], -1) if self.form == "one output" else outputs

    def weight(self, y: Tensor, count: int) -> Tensor | int:
        """What the loss divides by in its mean over so many examples: the weights of their classes, if it has some.

        Those of a class that the loss ignores count nothing.
        """
        if y.is_floating_point() or not isinstance(self.loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
            return count
        weights, ignored = self.loss.weight, self.loss.ignore_index
        if weights is None and not 0 <= ignored < self.classes:
            return count
        counted = y != ignored
        return counted.sum(-1, dtype=torch.double) if weights is None else (weights[y] * counted).sum(-1)

    def counting(self, y: Tensor, share: Tensor) -> Tensor:
        """The targets of a batch that counts for a share; where that is 0, others, whose mean loss is no 0 / 0.

        Args:
            y: ``(examples,)``, or ``(members, examples)``.
            share: 0-d, or ``(members,)``.
        """
        assert isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss)  # else all batches count
        weights = torch.ones(self.classes, device=y.device) if self.loss.weight is None else self.loss.weight.clone()
        if 0 <= self.loss.ignore_index < self.classes:
            weights[self.loss.ignore_index] = 0.0
        return torch.where(share.unsqueeze(-1) == 0, weights.argmax(), y)

    def totals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sums of what :meth:`figures` needs the means of: the losses, and the wrong classes.

        Args:
            outputs: ``(members, examples, outputs)``.
            y: ``(examples,)``.

        Returns:
            ``(members, 2)``.
        """
        outputs = self.limited(outputs, y)
        if self.loss is cross_entropy:
            flat = cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)), reduction="none")
            losses = flat.view(len(outputs), -1).double().sum(1)
        else:
            losses = _losses(self.loss, outputs, self.targets(y, outputs)) * self.weight(y, len(y))
        return torch.stack([losses, (self.scores(outputs).argmax(-1) != y).sum(1)], 1)

    def figures(self, totals: Tensor, y: Tensor) -> Tensor:
        """The losses and the errors of a split with these targets, from the totals over it, ``(members, 2)``."""
        return torch.stack([totals[:, 0] / self.weight(y, len(y)), totals[:, 1] / len(y)], 1)


@dataclass(frozen=True, eq=False)
class Regression:
    """Numbers for each example. An error is the root mean squared error in units of the target.

    Args:
        scale: what the targets were divided by, one number for each.
        middle: what was subtracted from them before.
        loss: torch's own function or module, which a stack may have a fast form of.
    """

    scale: Tensor
    middle: Tensor
    loss: Criterion = mse_loss
    name: Literal["regression"] = "regression"

    @property
    def outputs(self) -> int:
        """The number of targets."""
        return len(self.scale)

    @property
    def mark(self) -> dict[str, str]:
        """What a record says of the task beside its figures."""
        return {"task": self.name}

    def limited(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The outputs as they are."""
        return outputs

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The targets as the loss takes them."""
        return y

    def scores(self, outputs: Tensor) -> Tensor:
        """The numbers that the model answers."""
        return outputs

    def weight(self, y: Tensor, count: int) -> int:
        """What the loss divides by in its mean over so many examples."""
        return count

    def totals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sums of what :meth:`figures` needs the means of: the losses, and the squared errors in units.

        Args:
            outputs: ``(members, examples, targets)``.
            y: ``(examples, targets)``.

        Returns:
            ``(members, 2)``.
        """
        squares = (outputs.double() - y) ** 2
        losses = squares.mean(2).sum(1) if self.loss is mse_loss else _losses(self.loss, outputs, y) * len(y)
        return torch.stack([losses, (squares * self.scale**2).mean(2).sum(1)], 1)

    def figures(self, totals: Tensor, y: Tensor) -> Tensor:
        """The losses and the errors of a split with these targets, from the totals over it, ``(members, 2)``."""
        means = totals / len(y)
        return torch.stack([means[:, 0], means[:, 1].sqrt()], 1)


Task = Classes | Regression


def _losses(loss: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of each member's outputs, with targets that they share."""
    if (at_once := f.losses_at_once(loss)) is not None:
        return at_once(outputs, targets).double()
    return torch.stack([loss(own, targets) for own in outputs]).double()
