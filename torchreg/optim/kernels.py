"""A compiled kernel for Adam's step and a proximal step in one pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchreg.hooks import Group, numbers_on_cpu
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


def adam_numbers(
    steps: Sequence[Tensor], group: Group, largest: Sequence[Tensor | None], device: torch.device
) -> Tensor:
    """The numbers that the kernel needs, in double precision: a row for each parameter.

    Args:
        steps: the number of steps of each parameter, including this one.
        group: the parameters' group, with the ``weight_decay`` for the kernel.
        largest: the largest second moment of each parameter before this step; None if no second moment is 0.
        device: that of the parameters.
    """
    sign = -1.0 if group["maximize"] else 1.0
    own = sign, *group["betas"], *(group[key] for key in ("lr", "eps", "weight_decay", "scale"))
    most = [0.0 if each is None else each for each in largest]
    known, counts, sizes = map(numbers_on_cpu, (own, steps, most))
    if known is not None and counts is not None and sizes is not None:
        rows = []
        for count, size in zip(counts, sizes, strict=True):
            row = _columns(count, *known)
            rows.append((*row, math.sqrt(size) * row[_ROOT] + row[_EPS] if size else math.inf))
        return torch.tensor(rows, dtype=torch.float64, device="cpu").to(device, non_blocking=True)
    made = torch.stack(list(steps)).double()
    columns = _columns(made, *(torch.as_tensor(number, dtype=made.dtype, device=made.device) for number in own))
    numbers = torch.stack([column.expand_as(made) for column in columns], dim=1).to(device, non_blocking=True)
    before = torch.stack([torch.as_tensor(each, dtype=torch.float64, device=device) for each in most])
    spare = torch.where(before > 0, before.sqrt() * numbers[:, _ROOT] + numbers[:, _EPS], math.inf)
    return torch.cat([numbers, spare[:, None]], dim=1)


_ROOT, _EPS = 5, 6  # of the columns, for weights without a second moment


def _columns(
    steps: Any, sign: Any, beta1: Any, beta2: Any, lr: Any, eps: Any, decay: Any, scale: Any
) -> tuple[Any, ...]:
    """The numbers of a row but the last, of numbers or of tensors with one for each parameter."""
    root, step = (1 - beta2**steps) ** -0.5, lr / (1 - beta1**steps)
    return sign, 1 - lr * decay, 1 - beta1, beta2, 1 - beta2, root, eps, step, lr * scale
