"""What a controller of the share of zeros steers: something whose steps make zeros, with scales of its strength."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from torchreg.selection.parameters import ParamInfo


class Steered:
    """A mixin for what ends the steps of an optimizer with a penalty's proximal operator."""

    @abstractmethod
    def _steered_in(self, owner: str) -> Optimizer:
        """The optimizer in whose steps it acts; ``owner`` is the name of the controller.

        Raises:
            ValueError: the scales cannot be steered, because something else sets them, or nothing depends on them.
        """

    @abstractmethod
    def _steered_places(self) -> Sequence[ParamInfo]:
        """The penalized parameters that are trained."""

    @abstractmethod
    def _steered_scales(self) -> list[float | Tensor]:
        """The numbers that multiply the penalty."""

    @abstractmethod
    def _steer(self, scales: Sequence[float | Tensor]) -> None:
        """Sets the numbers that multiply the penalty."""

    @abstractmethod
    def _end_penalty(self) -> bool:
        """Ends the penalty; whether what is zero then stays zero by itself."""
