"""A compiled kernel for Adam's step and a proximal step in one pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from torchreg.hooks import Group
from torchreg.penalties import ProximalPenalty
from torchreg.steps.kernels import compiled

AdamKernel = Callable[..., None]


@cache
def adam_kernel(penalty: ProximalPenalty) -> AdamKernel | None:
    """The step of :class:`~torchreg.optim.ProxAdam` for a penalty that is a sum over single weights.

    The kernel takes a row of :func:`adam_numbers`, the weights, their gradients, both moments and, with amsgrad, the
    largest second moment. The result is None, with a warning, if nothing can be compiled.
    """

    def kernel(numbers: Tensor, w: Tensor, grad: Tensor, m: Tensor, v: Tensor, largest: Tensor | None = None) -> None:
        sign, kept, pace1, beta2, pace2, root, eps, step, reach, spare = numbers.to(w.dtype).unbind()
        m_new = m + pace1 * (grad * sign - m)
        v_new = v * beta2 + pace2 * grad * grad
        second = v_new if largest is None else torch.maximum(largest, v_new)
        metric = second.sqrt() * root + eps
        own = torch.where(second == 0, spare, metric)
        w.copy_(penalty.prox(w * kept - step * m_new / metric, reach / own))
        m.copy_(m_new)
        v.copy_(v_new)
        if largest is not None:
            largest.copy_(second)

    return compiled("ProxAdam", kernel, torch.ones(10, device="cpu"), 4, repr(penalty))


def adam_numbers(steps: Tensor, group: Group, largest: Tensor) -> Tensor:
    """The numbers that the kernel needs, in double precision: a row for each parameter.

    Args:
        steps: the number of steps of each parameter, including this one.
        group: the parameters' group, with the ``weight_decay`` for the kernel.
        largest: the largest second moment of each parameter before this step, on the parameters' device.
    """
    beta1, beta2 = (_number(beta, steps) for beta in group["betas"])
    lr, eps = _number(group["lr"], steps), _number(group["eps"], steps)
    sign = _number(-1.0 if group["maximize"] else 1.0, steps)
    kept, reach = 1 - lr * _number(group["weight_decay"], steps), lr * _number(group["scale"], steps)
    root, step = (1 - beta2**steps).rsqrt(), lr / (1 - beta1**steps)
    columns = (sign, kept, 1 - beta1, beta2, 1 - beta2, root, eps, step, reach)
    numbers = torch.stack([column.expand_as(steps) for column in columns], dim=1).to(largest.device, non_blocking=True)
    root, eps = numbers[:, 5], numbers[:, 6]
    spare = torch.where(largest > 0, largest.sqrt() * root + eps, math.inf)  # for weights without a second moment
    return torch.cat([numbers, spare[:, None]], dim=1)


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
