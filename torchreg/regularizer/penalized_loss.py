"""A criterion plus a regularizer's value."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchreg.regularizer.copies import warn_of_copy


class Penalizer(Protocol):
    """A regularizer of parameters or of activities, whose value can be added to a loss."""

    @property
    def model(self) -> nn.Module: ...

    _is_used: bool  # whether it says nothing at the end of its life

    def value(self, *args: Any, **kwargs: Any) -> Tensor: ...  # of the loss, if it depends on that


class PenalizedLoss(nn.Module):
    """A criterion plus a regularizer's value while the regularized model is in training mode.

    :meth:`Regularizer.penalize` and :meth:`ActivityRegularizer.penalize` return it. The model is not a submodule of the
    loss, so moving or saving the loss does not affect the model. There is one warning if the loss is that of another
    model, such as a copy, and one if weights are trained in evaluation mode, where the penalty is left out.

    Args:
        regularizer: its value is added.
        criterion: any function that returns the mean loss.

    Raises:
        TypeError: ``criterion`` cannot be called.
    """

    def __init__(self, regularizer: Penalizer, criterion: Callable[..., Tensor]) -> None:
        super().__init__()
        if not callable(criterion):
            raise TypeError(
                f"{type(regularizer).__name__}: penalize() takes the loss function, such as nn.MSELoss(), got a "
                f"{type(criterion).__name__}: to a loss that is computed already add value()"
            )
        self.regularizer = regularizer
        self.criterion = criterion
        self._is_new = True
        self._backward_at: int | None = None  # the version of a weight in the last backward pass in evaluation mode
        self._has_warned = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.criterion(*args, **kwargs)
        is_training = self.regularizer.model.training
        if not torch.compiler.is_compiling():
            if self._is_new and is_training:
                self._is_new = False
                warn_of_copy(type(self.regularizer).__name__, self.regularizer.model, loss)
            if self._backward_at is not None or not (is_training or self._has_warned):
                self._notice_training(loss)
        if not is_training:
            return loss
        value = self._penalty(loss)
        return loss + (value.to(loss.device) if isinstance(loss, Tensor) else value)  # of a model on several devices

    def _penalty(self, loss: Tensor) -> Tensor:
        return self.regularizer.value()

    def _notice_training(self, loss: Tensor) -> None:
        """Warns once if a weight has changed after a backward pass of a loss without the penalty."""
        model = self.regularizer.model
        weight = next((param for param in model.parameters() if param.requires_grad), None)
        before, self._backward_at = self._backward_at, None
        if weight is not None and before not in (None, weight._version):
            self._has_warned = self.regularizer._is_used = True  # told here, so not again when the regularizer dies
            warnings.warn(
                f"{type(self.regularizer).__name__}: {type(model).__name__} is trained in evaluation mode, in which "
                "the loss of penalize() has no penalty: call model.train() before the training steps",
                stacklevel=4,
            )
        elif weight is not None and not model.training and isinstance(loss, Tensor) and loss.requires_grad:
            version = weight._version  # no step is made between forward and backward pass
            loss.register_hook(lambda _: setattr(self, "_backward_at", version))
