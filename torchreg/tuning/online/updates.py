"""Derivatives of an optimizer's update of one weight, computed after the update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Group, scalar, step_size

DIFFERENTIATED = (torch.optim.SGD, torch.optim.Adam)  # AdamW is an Adam


@dataclass(frozen=True, eq=False, kw_only=True)
class Update:
    """The update of one weight, with what is known before it is made."""

    optimizer: Optimizer
    group: Group
    param: nn.Parameter
    step: float | Tensor  # the learning rate
    is_first: bool  # whether the optimizer had no state yet

    @property
    def decays_apart(self) -> bool:
        """Whether the optimizer's own weight decay is decoupled from the gradient."""
        return bool(self.group.get("decoupled_weight_decay", isinstance(self.optimizer, torch.optim.AdamW)))

    def response(self, weight: Tensor, direction: Tensor) -> Tensor:
        """The derivative of the new weight when the gradient, computed at ``weight``, changes in a direction.

        It uses the optimizer's state after the update. Each element depends only on its own gradient.
        """
        if isinstance(self.optimizer, torch.optim.SGD):
            return -self.step * self._sgd_gain() * direction
        assert self.param.grad is not None
        gradient = -self.param.grad if self.group["maximize"] else self.param.grad
        if self.group["weight_decay"] and not self.decays_apart:
            gradient = gradient + self.group["weight_decay"] * weight
        return self._adam_response(gradient, direction)

    def through(self, weight: Tensor) -> float | Tensor:
        """The derivative of the new weight by the old one, element by element, for an update with decay."""
        decay = self.group["weight_decay"]
        if self.decays_apart:
            left: float | Tensor = 1 - self.step * decay
            return left
        return 1 + self.response(weight, torch.full_like(weight, decay))

    def _sgd_gain(self) -> float:
        """The share of a gradient in the step in which it is first used."""
        momentum, dampening = self.group["momentum"], self.group["dampening"]
        taken = 1.0 if not momentum or self.is_first else 1 - dampening
        return 1 + momentum * taken if self.group["nesterov"] else taken

    def _adam_response(self, gradient: Tensor, direction: Tensor) -> Tensor:
        """The derivative of ``-step * m / (sqrt(v) + eps)``."""
        state: dict[str, Any] = self.optimizer.state[self.param]
        beta1, beta2 = map(scalar, self.group["betas"])
        first, second = (1 - beta ** _in_double(state["step"]) for beta in (beta1, beta2))
        squares = state["exp_avg_sq"]
        largest = state.get("max_exp_avg_sq", squares)
        root = largest.sqrt()
        denominator = root + second**0.5 * self.group["eps"]
        info = torch.finfo(root.dtype)
        root.clamp_(min=math.sqrt(info.tiny * info.eps))  # where it is 0, the gradient is 0 too, but for rounding
        response = torch.div(gradient, root, out=root).mul_(state["exp_avg"]).div_(denominator)  # of the root, ...
        if largest is not squares:
            response.mul_(largest == squares)
        response.sub_((1 - beta1) / (1 - beta2)).div_(denominator)  # ... and of the mean
        return response.mul_(self.step * second**0.5 / first * (1 - beta2)).mul_(direction)


def _in_double(steps: Any) -> Any:
    """The count of steps, which torch keeps in single precision; a number unless that had to wait for a device."""
    if not isinstance(steps, Tensor):
        return steps
    return steps.item() if steps.device.type == "cpu" else steps.double()


def updates_of(optimizer: Optimizer) -> Iterator[Update]:
    """The updates that the optimizer will make."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.requires_grad:
                yield Update(**update_fields(optimizer, group, param))


def update_fields(optimizer: Optimizer, group: Group, param: nn.Parameter) -> dict[str, Any]:
    """The fields of an :class:`Update`."""
    return {
        "optimizer": optimizer,
        "group": group,
        "param": param,
        "step": step_size(optimizer, group),
        "is_first": not optimizer.state.get(param),
    }
