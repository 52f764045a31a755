"""The inputs and the output of a forward pass, for penalties on the derivatives between them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchreg.ensemble.stacked import Stacked
from torchreg.regularizer.penalized_loss import PenalizedLoss
from torchreg.schedules import check_scale
from torchreg.selection.modules import check_model


class OfInputs(ABC):
    """Records the inputs and the output of the model's last forward pass in training mode with gradients.

    Forward hooks give the model copies of its inputs that require gradients. An input that requires gradients already
    is used itself.
    """

    model: nn.Module
    strength: float
    batch_dim: int
    _handles: tuple[RemovableHandle, ...] = ()
    _is_used = True  # it does not warn at the end of its life

    def __init__(self, model: nn.Module, strength: float, batch_dim: int) -> None:
        name = type(self).__name__
        check_model(name, model)
        if any(isinstance(module, Stacked) for module in model.modules()):
            raise ValueError(f"{name}: model must not be a stack: make one for each of its members()")
        if isinstance(strength, bool) or not isinstance(strength, Real):
            raise TypeError(f"{name}: strength must be a number, got {strength!r}")
        if not 0 <= float(strength) < math.inf:
            raise ValueError(f"{name}: strength must be finite and >= 0, got {strength!r}")
        self.model = model
        self.strength = float(strength)
        self.batch_dim = batch_dim
        self.scale = 1.0
        self._listen()

    @property
    def scale(self) -> float | Tensor:
        """The factor of the penalty."""
        return self._scale

    @scale.setter
    def scale(self, scale: float | Tensor) -> None:
        self._scale = check_scale(type(self).__name__, scale)

    def remove(self) -> None:
        """Stops recording and discards the last pass. It may be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        self._record.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __del__(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _listen(self) -> None:
        # The hooks refer to the record only and not to this object, so that no reference cycle keeps it alive.
        self._record = record = _Pass(type(self).__name__)
        self._handles = (
            self.model.register_forward_pre_hook(record.begin, with_kwargs=True),
            self.model.register_forward_hook(record.end),
        )

    def _half_of_squares(self, outputs: Tensor) -> Tensor | None:
        """Half the sum of the squared derivatives of ``outputs.sum()`` by all inputs; None if it depends on none."""
        if not outputs.requires_grad:
            return None
        slopes = torch.autograd.grad(outputs.sum(), self._record.inputs, create_graph=True, allow_unused=True)
        found = [slope.to(torch.promote_types(slope.dtype, torch.float32)) for slope in slopes if slope is not None]
        squares = [slope.square().sum().to(outputs.device) for slope in found]
        return sum(squares[1:], start=squares[0]) / 2 if squares else None

    @property
    def _batch_size(self) -> int:
        return int(self._record.inputs[0].shape[self.batch_dim])

    # -- copying --------------------------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        """The copy has its own hooks, because handles of hooks cannot be shared."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        if self._handles:
            twin._listen()
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # with the copied hooks of a copied model
        self._record.has_reader = True

    @abstractmethod
    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion plus the penalty while the model is in training mode, in evaluation the criterion alone."""


@dataclass
class _Pass:
    """The inputs and the output of one forward pass.

    A copy is empty and records nothing until a copied regularizer reads it.
    """

    owner: str
    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None
    has_reader: bool = True

    def begin(self, model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self.clear()
        if not (model.training and self.has_reader and torch.is_grad_enabled()):
            return None
        args = tuple(map(self._watched, args))
        kwargs = {key: self._watched(value) for key, value in kwargs.items()}
        if not self.inputs:
            kinds = [str(getattr(value, "dtype", type(value).__name__)) for value in (*args, *kwargs.values())]
            raise TypeError(
                f"{self.owner}: {type(model).__name__} must be called with a floating-point tensor, got "
                f"{', '.join(kinds) or 'nothing'}: of a model that takes tokens give the part after the embedding"
            )
        return args, kwargs

    def _watched(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        watched = value if value.requires_grad else value.detach().requires_grad_()
        self.inputs.append(watched)
        return value if value.requires_grad else watched.clone()  # the model may change it in place, but no leaf

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.inputs:
            self.output = _first_output(output)
            if self.output is None:
                raise TypeError(
                    f"{self.owner}: the output of {type(model).__name__} must hold a floating-point tensor, got "
                    f"{type(output).__name__}"
                )

    def clear(self) -> None:
        self.inputs, self.output = [], None

    def __getstate__(self) -> dict[str, Any]:
        return vars(_Pass(self.owner, has_reader=False))


def _first_output(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, tuple | list):
        return None
    return next((found for found in map(_first_output, output) if found is not None), None)
