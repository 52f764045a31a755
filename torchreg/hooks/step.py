"""Hooks before and after the step of any optimizer, called once per step.

The hooks of ``torch.optim`` need care in these cases; each is tested:

- With a closure the gradients are computed *inside* the step; LBFGS computes them many times.
- A subclass that overrides ``step`` and calls ``super().step()`` calls the hooks twice.
- A step that raises an error does not call the hooks at its end.
- ``torch.distributed.checkpoint`` makes a step that is none, so that the optimizer creates its state.
- A fused optimizer under ``GradScaler`` gets *scaled* gradients. Its kernel skips a step with infinite gradients, but
  the hooks are called.
"""

import inspect
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
Closure = Callable[[], Any]


class StepHooks:
    """Calls ``on_gradients`` between the gradients and the update, and ``after`` when the update is done.

    Args:
        optimizer: the optimizer.
        on_gradients: gets the optimizer and the number of the evaluation within the step, from 0. Without a closure
            there is one evaluation; with a closure there is one for each call of the closure. The number is -1 in a
            step that is none, see :func:`is_no_step`; an optimizer with moments, which would keep the gradients of such
            a step, does not get the call.
        after: called with the optimizer when the outermost step is done.
        objective: its value is added to the loss that a closure returns, so that a line search uses the function that
            the gradients belong to.
        owner: the name with which a warning begins if the weights change and the optimizer's ``step`` is not called.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        on_gradients: Callable[[Optimizer, int], None],
        after: Callable[[Optimizer], None],
        objective: Callable[[Optimizer], Tensor] | None = None,
        owner: str | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._on_gradients = on_gradients
        self._after = after
        self._objective = objective
        self._depth = 0  # steps within steps
        self._is_none = False  # whether the present step is none
        self._handles = (
            optimizer.register_step_pre_hook(self._pre_step),
            optimizer.register_step_post_hook(self._post_step),
        )
        self.has_stepped = False
        self._watch = None if owner is None else _Watch(owner, self)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._end_watch()  # not by the watch itself: fully_shard loops over the hooks of a parameter

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if self._depth and self._depth >= _calls_in_a_step(self.optimizer):
            self._depth = 0  # an earlier step raised an error and did not come to its end
        self._depth += 1
        if self._depth > 1:
            return None
        self.has_stepped = True
        if self._watch is not None and not torch.compiler.is_compiling():
            self._end_watch()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):  # None, or another argument of an unusual optimizer
            self._is_none = is_no_step(self.optimizer)
            if not self._is_none:
                self._on_gradients(self.optimizer, 0)
            elif _keeps_no_moments(self.optimizer):
                self._on_gradients(self.optimizer, -1)
            return None
        self._is_none = False
        wrapped = self._wrap(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and not self._is_none:
            self._after(self.optimizer)
        self._depth = max(self._depth, 0)

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


class _Watch:
    """Warns if a weight changes between backward passes and the optimizer's ``step`` is not called.

    One change is allowed: methods such as SAM perturb the weights for a second backward pass before each step.
    """

    def __init__(self, owner: str, hooks: StepHooks) -> None:
        self._owner, self._name = owner, type(hooks.optimizer).__name__
        self._hooks = weakref.ref(hooks)
        self._version: int | None = None
        self._changes = 0
        params = (p for group in hooks.optimizer.param_groups for p in group["params"] if p.requires_grad and p.is_leaf)
        param = next(params, None)
        self._handle = None if param is None else param.register_post_accumulate_grad_hook(self._on_backward)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _on_backward(self, param: Tensor) -> None:
        if self._version is not None and param._version != self._version:
            self._changes += 1
        self._version = param._version
        hooks = self._hooks()
        if self._changes == 2 and hooks is not None and not hooks.has_stepped:
            self._changes += 1  # one warning
            warnings.warn(
                f"{self._owner}: the weights change, but {self._name}.step() is not called, so that it has no effect "
                f"until then: unless {self._name} trains later, attach to the optimizer whose step() makes the updates",
                stacklevel=2,
            )


def _calls_in_a_step(optimizer: Optimizer) -> int:
    """How often one step can call the hooks: once for each class whose own ``step`` calls them."""
    return sum(getattr(vars(cls).get("step"), "hooked", False) for cls in type(optimizer).__mro__)


def is_no_step(optimizer: Optimizer) -> bool:
    """Whether every learning rate and every gradient is 0: such a step only lets the optimizer create its state."""
    for group in optimizer.param_groups:
        lr = group.get("lr")
        if type(lr) is float and lr != 0:  # this is asked in each step
            return False
        if torch.compiler.is_compiling():
            return False
        if (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0:  # not to wait for a device
            return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(gradients) and all(_is_zero(gradient) for gradient in gradients)


def _keeps_no_moments(optimizer: Optimizer) -> bool:
    return type(optimizer) is torch.optim.SGD and not any(group["momentum"] for group in optimizer.param_groups)


def _is_zero(gradient: Tensor) -> bool:
    size = gradient.detach().abs().sum()
    whole = getattr(size, "full_tensor", None)  # of a gradient that is sharded over processes
    return float(size if whole is None else whole()) == 0


def step_size(optimizer: Optimizer, group: Group) -> float | Tensor:
    """The group's learning rate; 0 if the optimizer's kernel will skip the step because of infinite gradients."""
    lr: float | Tensor = scalar(group["lr"])
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)  # set by GradScaler around a fused step
    return lr if found_inf is None else lr * (1 - found_inf.reshape(()).clamp(max=1))


def step_share(optimizer: Optimizer) -> float | Tensor:
    """1 if the step is made; 0 if it is none, or if the optimizer's kernel will skip it."""
    return 0.0 if is_no_step(optimizer) else step_size(optimizer, {"lr": 1.0})


def is_skipped(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernel skips this step because of infinite gradients. It waits for the device."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def scalar(value: Any) -> Any:
    """The number itself, or a one-element tensor as a 0-d tensor: torch accepts a learning rate of shape (1,)."""
    return value.reshape(()) if isinstance(value, Tensor) and value.ndim else value


def numbers_on_cpu(values: Sequence[float | Tensor]) -> list[float] | None:
    """The values as numbers; None if to read one of them would be to wait for its device."""
    if torch.compiler.is_compiling() or any(isinstance(value, Tensor) and not value.is_cpu for value in values):
        return None
    return [float(value) for value in values]


def gradient_scale(optimizer: Optimizer) -> float | Tensor:
    """The factor that the gradients have now: GradScaler's scale if the optimizer's kernel unscales them."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def unhooked_step(cls: type[Optimizer]) -> Callable[..., Any]:
    """``cls.step`` without the wrapper that calls the hooks, for a subclass whose own ``step`` already calls them."""
    step: Callable[..., Any] = inspect.unwrap(cls.step, stop=lambda each: not getattr(each, "hooked", False))
    return step
