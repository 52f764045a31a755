"""Half-precision weights in a step: what must not round or overflow on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.functional.sharding import as_plain, on_plain_
from torchreg.hooks import gradient_scale
from torchreg.penalties import Penalty
from torchreg.steps.plan import Gradients, Plan, ScaleOf


def in_single(act: Callable[..., object], *tensors_and_number: Any) -> None:
    """``act(*tensors, number)``, which changes the first tensor: half precision in single, and rounded once.

    Torch would first round a number that is a tensor to half precision, where a loss scale of 65,536 is infinite.
    """
    *tensors, number = tensors_and_number
    if not any(map(f.is_half, tensors)):
        act(*tensors, number)
        return
    wide = [f.wide(tensor) for tensor in tensors]
    act(*wide, number)
    tensors[0].copy_(wide[0])


@torch.no_grad()
def make_room(plan: Plan, gradients: Gradients, scale_of: ScaleOf) -> Tensor:
    """Lowers the loss scale of this step so far that float16 gradients can hold the penalties' gradients too.

    GradScaler has looked for overflow before, so no one would notice it. The gradients and the scale are divided by the
    same power of two, which the optimizer's kernel multiplies again. Returns the scale.
    """
    optimizer = plan.optimizer
    scale = gradient_scale(optimizer)
    assert isinstance(scale, Tensor)
    half = [(gradients[i], param, penalty) for i, _, param, penalty in plan.changed]
    half = [row for row in half if row[0].dtype == torch.float16]
    if not half:
        return scale
    filled = scale.new_ones(())  # how much of the range is needed

    def look(penalty: Penalty, own: float | Tensor, grad: Tensor, w: Tensor) -> None:
        nonlocal filled
        change = penalty._gradient_times(f.wide(w), own * scale)
        needed = (f.magnitude(grad) + f.magnitude(change)) / torch.finfo(torch.float16).max
        needed = f.largest(needed).to(filled.device)
        filled = torch.maximum(filled, needed.masked_fill(~needed.isfinite(), 1.0))

    for gradient, param, penalty in half:
        on_plain_(partial(look, penalty, scale_of(param)), penalty.is_separable, gradient, param)
    excess = filled.log2().ceil().exp2()
    if excess.device.type == "cpu" and excess == 1:  # reading it is free
        return scale
    optimizer.grad_scale = lowered = scale / excess  # type: ignore[attr-defined]  # GradScaler set it, and deletes it
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                as_plain(param.grad, local=True).div_(excess.to(param.grad.device))
    return lowered
