"""Drop rates that change during training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from torchreg.hooks import Carried, StepHooks, check_steps, checked_steps
from torchreg.nn.model.rates import LAYERS, layers_in, others_numbers, torchs_numbers
from torchreg.schedules import Schedule, check_schedule
from torchreg.selection.modules import check_model, listed


class DropoutSchedule:
    r"""Multiplies the rates of a model's dropout layers by a schedule.

    .. math:: p_l(t) = p_l \cdot \text{schedule}(t)

    where :math:`p_l` is the rate of the layer when the schedule is created and :math:`t` counts the optimizer's steps.
    The layers may be torch's or torchreg's, and modules of torch that hold a rate as a number: recurrent layers and
    ``nn.MultiheadAttention``. The numbers of other modules do not change; a warning names them. A compiled model is
    compiled again when a rate first changes, and when it becomes 0.

    Args:
        model: a model with dropout layers.
        schedule: a function from the number of steps made to a factor: :class:`~torchreg.early`,
            :class:`~torchreg.late`, :class:`~torchreg.linear`, :class:`~torchreg.curriculum`, or your own.

    Attributes:
        rates: the layers' full rates :math:`p_l` by name.
        scale: the factor of the rates now.

    Raises:
        ValueError: the model has no dropout layers with a rate; a scheduled rate is outside [0, 1].
        TypeError: ``schedule`` cannot be called, ``model`` is no module.

    Warns:
        UserWarning: other modules hold what may be rates.

    Example:
        >>> import torch, torchreg
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> schedule = DropoutSchedule(model, torchreg.linear(steps=2)).attach(optimizer)
        >>> for _ in range(3):
        ...     print(model[1].p)
        ...     optimizer.step()
        0.5
        0.25
        0.0
        >>> schedule.remove()
        >>> model[1].p
        0.5
    """

    def __init__(self, model: nn.Module, schedule: Schedule | Callable[[int], float]) -> None:
        check_model("DropoutSchedule", model)
        check_schedule("DropoutSchedule", schedule)
        self.model = model
        self.schedule = schedule
        self._layers = {name: layer for name, layer in layers_in(model).items() if _has_rate(layer)}
        self._layers |= {number.name: number.module for number in torchs_numbers(model)}
        others = listed([str(number) for number in others_numbers(model)]) if others_numbers(model) else ""
        if not self._layers:
            raise ValueError(
                f"DropoutSchedule: model must have dropout layers with a rate p, {type(model).__name__} has none"
                + (f", only numbers: {others}" if others else "")
            )
        if others:
            warnings.warn(
                f"DropoutSchedule: numbers of other modules do not follow the schedule: {others}: let these modules "
                "call dropout layers, or set the numbers yourself",
                stacklevel=2,
            )
        self.rates = {name: float(getattr(layer, _attribute(layer))) for name, layer in self._layers.items()}
        self._steps = 0
        self._hooks: tuple[StepHooks | Carried, ...] = ()
        self._follow()

    def attach(self, optimizer: Optimizer) -> Self:
        """Follows the steps of the optimizer from now on, whose ``state_dict`` then contains that of the schedule.

        Returns:
            The schedule itself, which is also a context manager that detaches at the end.

        Raises:
            ValueError: the schedule is attached already.
            TypeError: ``optimizer`` is no ``torch.optim.Optimizer``.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"DropoutSchedule: attach() takes a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if self._hooks:
            raise ValueError("DropoutSchedule: already attached: call remove() first")
        check_steps("DropoutSchedule", optimizer, "loss")
        self._follow()
        self._hooks = (
            Carried(optimizer, self),
            StepHooks(optimizer, _nothing, self._after_step, owner="DropoutSchedule"),
        )
        return self

    def remove(self) -> None:
        """Detaches from the optimizer and restores the full rates."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = ()
        self._set(1.0)

    def step(self) -> None:
        """Advances the schedule by one step, if it is not attached.

        Raises:
            ValueError: the schedule is attached, so that it counts the steps of its optimizer itself.
        """
        if self._hooks:
            raise ValueError("DropoutSchedule: step() is for a schedule that is not attached: leave step() out")
        self._advance()

    def _advance(self) -> None:
        self._steps += 1
        self._follow()

    @property
    def _is_counting(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and the full rates."""
        return {"steps": self._steps, "rates": dict(self.rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved, for a model with the same layers."""
        if set(state) != {"steps", "rates"} or set(state["rates"]) != set(self.rates):
            raise ValueError(
                f"DropoutSchedule: state must be of a model with the dropout layers {', '.join(self.rates)}, "
                f"got {', '.join(state.get('rates', state))}"
            )
        before = self._steps, self.rates
        self._steps, self.rates = checked_steps("DropoutSchedule", state["steps"]), dict(state["rates"])
        try:
            self._follow()
        except Exception:
            self._steps, self.rates = before
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": ()}  # a copy is detached: two schedules would count each step twice

    def _after_step(self, optimizer: Optimizer) -> None:
        self._advance()

    def _follow(self) -> None:
        self._set(self.schedule(self._steps))

    def _set(self, factor: float) -> None:
        scaled = {name: float(rate * factor) for name, rate in self.rates.items()}
        for name, p in scaled.items():  # all, before any layer is changed
            if not 0 <= p <= 1:
                raise ValueError(
                    f"DropoutSchedule: schedule must keep rates in [0, 1], got {p!r} for {name} at step {self._steps}"
                )
        for name, p in scaled.items():
            layer = self._layers[name]
            setattr(layer, _attribute(layer), p)
        self.scale = float(factor)


def _nothing(optimizer: Optimizer, evaluation: int) -> None:
    pass


def _has_rate(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "p", None), (int, float))


def _attribute(layer: nn.Module) -> str:
    """Where a dropout layer, or another module of torch, holds its rate."""
    return "p" if isinstance(layer, LAYERS) else "dropout"
