"""The inputs and the output of a forward pass, for penalties on the derivatives between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from torchreg.ensemble.stacked import Stacked
from torchreg.regularizer.recorded import OfPasses, first_in
from torchreg.selection.modules import check_model


class OfInputs(OfPasses):
    """Records the inputs and the output of the model's last forward pass in training mode with gradients.

    Forward hooks give the model copies of its inputs that require gradients. An input that requires gradients already
    is used itself.
    """

    strength: float
    batch_dim: int
    _record: _Pass

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
        self._listen()

    def _listen(self) -> None:
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
            self.output = first_in(output, _is_floating)
            if self.output is None:
                raise TypeError(
                    f"{self.owner}: the output of {type(model).__name__} must hold a floating-point tensor, got "
                    f"{type(output).__name__}"
                )

    def clear(self) -> None:
        self.inputs, self.output = [], None

    def __getstate__(self) -> dict[str, Any]:
        return vars(_Pass(self.owner, has_reader=False))


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
