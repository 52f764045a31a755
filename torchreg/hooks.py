"""Hooks before and after the step of any optimizer, called once per step.

The hooks of ``torch.optim`` need care in these cases; each is tested:

- With a closure the gradients are computed *inside* the step; LBFGS computes them many times.
- A subclass that overrides ``step`` and calls ``super().step()`` calls the hooks twice.
- A fused optimizer under ``GradScaler`` gets *scaled* gradients. Its kernel skips a step with infinite gradients, but
  the hooks are called.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
Closure = Callable[[], Any]

_STEP_CODE = Optimizer.profile_hook_step(lambda: None).__code__  # the wrapper that calls hooks, around every step


class StepHooks:
    """Calls ``on_gradients`` between the gradients and the update, and ``after`` when the update is done.

    Args:
        optimizer: the optimizer.
        on_gradients: gets the optimizer and the number of the evaluation within the step, from 0. Without a closure
            there is one evaluation; with a closure there is one for each call of the closure.
        after: called with the optimizer when the outermost step is done.
        objective: its value is added to the loss that a closure returns, so that a line search uses the function that
            the gradients belong to.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        on_gradients: Callable[[Optimizer, int], None],
        after: Callable[[Optimizer], None],
        objective: Callable[[Optimizer], Tensor] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._on_gradients = on_gradients
        self._after = after
        self._objective = objective
        self._depth = 0  # steps within steps
        self._handles = (
            optimizer.register_step_pre_hook(self._pre_step),
            optimizer.register_step_post_hook(self._post_step),
        )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if self._depth and self._is_outermost():
            self._depth = 0
        self._depth += 1
        if self._depth > 1:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):  # None, or another argument of an unusual optimizer
            self._on_gradients(self.optimizer, 0)
            return None
        wrapped = self._wrap(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._after(self.optimizer)

    def _wrap(self, closure: Closure) -> Closure:
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            try:
                loss = closure()
                self._on_gradients(self.optimizer, evaluations)
            except BaseException:
                self._depth = 0  # the step is over; a compiled step could not find that out later
                raise
            evaluations += 1
            if self._objective is None or loss is None:
                return loss
            with torch.no_grad():
                return loss + self._objective(self.optimizer)

        return evaluate

    def _is_outermost(self) -> bool:
        """Whether this is the only running step of the optimizer, so that an earlier one must have raised an error.

        The call stack distinguishes this from a ``super().step()`` inside a step. A compiler cannot read the stack.
        """
        if torch.compiler.is_compiling():
            return False
        frame, steps = sys._getframe(1), 0
        while frame is not None and steps < 2:
            if frame.f_code is _STEP_CODE and frame.f_locals["args"][0] is self.optimizer:
                steps += 1
            frame = frame.f_back  # type: ignore[assignment]
        return steps < 2


def step_size(optimizer: Optimizer, group: Group) -> float | Tensor:
    """The group's learning rate; 0 if the optimizer's kernel will skip the step because of infinite gradients."""
    lr: float | Tensor = scalar(group["lr"])
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)  # set by GradScaler around a fused step
    return lr if found_inf is None else lr * (1 - found_inf.reshape(()).clamp(max=1))


def scalar(value: Any) -> Any:
    """The number itself, or a one-element tensor as a 0-d tensor: torch accepts a learning rate of shape (1,)."""
    return value.reshape(()) if isinstance(value, Tensor) and value.ndim else value


def gradient_scale(optimizer: Optimizer) -> float | Tensor:
    """The factor that the gradients have now: GradScaler's scale if the optimizer's kernel unscales them."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def unhooked_step(cls: type[Optimizer]) -> Callable[..., Any]:
    """``cls.step`` without the wrapper that calls the hooks, for a subclass whose own ``step`` already calls them."""
    step: Callable[..., Any] = cls.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]
