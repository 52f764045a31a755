"""A compiled kernel for Adam's step, decay and a proximal step in one pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.hooks import Group, numbers_on_cpu
from torchreg.optim.options import Decay
from torchreg.penalties import ProximalPenalty
from torchreg.steps.kernels import compiled

AdamKernel = Callable[..., None]


@dataclass(frozen=True)
class AdamForm:
    """What a kernel does to a parameter, in this order: Adam's step, decay, a proximal step.

    Attributes:
        decay: the form of a decay that comes after Adam's step; None if there is none.
        cautious: whether it is only where the step has moved the weight in its direction.
        has_start: whether it is towards the weights of the start.
        amsgrad: as in :class:`torch.optim.Adam`.
        penalty: a penalty that is a sum over single weights, for the proximal step in Adam's metric.
    """

    decay: Decay | None
    cautious: bool
    has_start: bool
    amsgrad: bool
    penalty: ProximalPenalty | None = None

    def after_adam(self, new: Tensor, w: Tensor, start: Tensor | None, amount: Tensor) -> Tensor:
        """The weights after the decay, of those after Adam's step and those before it."""
        away = w if start is None else w - start
        if self.decay == "L2":
            nearer = new - amount * away
        elif start is None:
            nearer = f.soft_threshold(new, amount)
        else:
            nearer = f.soft_threshold_towards(new, start, amount)
        if not self.cautious:
            return nearer
        agrees = ((w >= new) | (away <= 0)) & ((w <= new) | (away >= 0))  # a compiler makes more of it than of signs
        return torch.where(agrees, nearer, new)


@cache
def adam_kernel(form: AdamForm, device: str) -> AdamKernel | None:
    """A step of that form in one pass, on a kind of device.

    The kernel takes a row of :func:`adam_numbers`, the weights, their gradients, both moments, with amsgrad the largest
    second moment, and the weights of the start if the decay is towards them. The result is None, with a warning, if
    nothing can be compiled.
    """

    def kernel(numbers: Tensor, w: Tensor, grad: Tensor, m: Tensor, v: Tensor, *others: Tensor) -> None:
        sign, kept, pace1, beta2, pace2, root, eps, step, amount, reach, spare = numbers.to(w.dtype).unbind()
        m_new = m + pace1 * (grad * sign - m)
        v_new = v * beta2 + pace2 * grad * grad
        second = torch.maximum(others[0], v_new) if form.amsgrad else v_new
        metric = second.sqrt() * root + eps
        new = w * kept - step * m_new / metric
        if form.decay is not None:
            new = form.after_adam(new, w, others[-1] if form.has_start else None, amount)
        if form.penalty is not None:
            new = form.penalty.prox(new, reach / torch.where(second == 0, spare, metric))
        w.copy_(new)
        m.copy_(m_new)
        v.copy_(v_new)
        if form.amsgrad:
            others[0].copy_(second)

    owner = "AdamW" if form.penalty is None else "ProxAdam"
    count = 4 + form.amsgrad + form.has_start
    return compiled(owner, kernel, torch.ones(11, dtype=torch.float64, device=device), count, repr(form))


def adam_numbers(
    steps: Sequence[Tensor],
    group: Group,
    amount: float | Tensor,
    reach: float | Tensor,
    largest: Sequence[Tensor | None],
    device: torch.device,
) -> Tensor:
    """The numbers that the kernel needs, in double precision: a row for each parameter.

    Args:
        steps: the number of steps of each parameter, including this one.
        group: the parameters' group, with the ``weight_decay`` of Adam's own decay.
        amount: that of a decay after Adam's step.
        reach: the learning rate times the strength of the penalty.
        largest: the largest second moment of each parameter before this step; None if no second moment is 0.
        device: that of the parameters.
    """
    sign = -1.0 if group["maximize"] else 1.0
    own = sign, *group["betas"], *(group[key] for key in ("lr", "eps", "weight_decay")), amount, reach
    most = [0.0 if each is None else each for each in largest]
    known, counts, sizes = map(numbers_on_cpu, (own, steps, most))
    if known is not None and counts is not None and sizes is not None:
        rows, columns_of = [], {count: _columns(count, *known) for count in set(counts)}
        for count, size in zip(counts, sizes, strict=True):
            row = columns_of[count]
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
    steps: Any, sign: Any, beta1: Any, beta2: Any, lr: Any, eps: Any, decay: Any, amount: Any, reach: Any
) -> tuple[Any, ...]:
    """The numbers of a row but the last, of numbers or of tensors with one for each parameter."""
    root, step = (1 - beta2**steps) ** -0.5, lr / (1 - beta1**steps)
    return sign, 1 - lr * decay, 1 - beta1, beta2, 1 - beta2, root, eps, step, amount, reach
