"""What hooks record of the forward passes of a model, for penalties on other things than its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchreg.regularizer.penalized_loss import PenalizedLoss
from torchreg.schedules import check_scale


class Record(Protocol):
    """What is recorded of the last forward pass. A copy is empty and records nothing until it has a reader."""

    has_reader: bool

    def clear(self) -> None: ...


class OfPasses(ABC):
    """A penalty on what forward hooks record of the model's last pass in training mode with gradients.

    A subclass sets the model and calls :meth:`_listen`.
    """

    model: nn.Module
    _record: Record
    _handles: tuple[RemovableHandle, ...] = ()
    _is_used = True  # it does not warn at the end of its life
    _scale: float | Tensor = 1.0

    @property
    def scale(self) -> float | Tensor:
        """The factor of the penalty."""
        return self._scale

    @scale.setter
    def scale(self, scale: float | Tensor) -> None:
        self._scale = check_scale(type(self).__name__, scale)

    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion plus the penalty while the model is in training mode, in evaluation the criterion alone."""
        return PenalizedLoss(self, criterion)

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

    @abstractmethod
    def value(self, *args: Any) -> Tensor:
        """The penalty on the last forward pass."""

    @abstractmethod
    def _listen(self) -> None:
        """Makes an empty record, and hooks that fill it.

        The hooks refer to the record only and not to this object, so that no reference cycle keeps it alive.
        """

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


def first_in(output: Any, is_wanted: Callable[[Any], bool]) -> Any:
    """The first tensor of a kind in an output: a tensor, or a tuple, list or mapping that holds one; None if none."""
    if is_wanted(output):
        return output
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, tuple | list):
        return None
    return next((found for each in output if (found := first_in(each, is_wanted)) is not None), None)
