"""Half-precision weights in a step: what must not round or overflow on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg import functional as f
from torchreg.functional.sharding import as_plain, on_plain_
from torchreg.hooks import gradient_scale
from torchreg.steps.batches import ParamBatch


def in_single(act: Callable[..., object], *tensors: Tensor) -> None:
    """``act(*tensors)``, which changes the first tensor, in single precision and rounded once.

    Torch would first round a number that is a tensor to half precision, where a loss scale of 65,536 is infinite.
    """
    wide = [f.wide(tensor) for tensor in tensors]
    act(*wide)
    tensors[0].copy_(wide[0])


def make_room(optimizer: Optimizer, batches: Sequence[ParamBatch]) -> None:
    """Lowers the loss scale of this step so far that float16 gradients can hold the penalties' gradients too.

    GradScaler has looked for overflow before, so no one would notice it. The gradients and the scale are divided by the
    same power of two, which the optimizer's kernel multiplies again.
    """
    scale = gradient_scale(optimizer)
    if not isinstance(scale, Tensor) or not any(grad.dtype == torch.float16 for b in batches for grad in b.grads):
        return
    filled = scale.new_ones(())  # how much of the range is needed

    def look(batch: ParamBatch, grad: Tensor, param: Tensor) -> None:
        nonlocal filled
        change = batch.penalty._gradient_times(f.wide(param), batch.scale * scale)
        needed = (f.magnitude(grad) + f.magnitude(change)) / torch.finfo(torch.float16).max
        needed = f.largest(needed).to(filled.device)
        filled = torch.maximum(filled, needed.masked_fill(~needed.isfinite(), 1.0))

    for batch in batches:
        for grad, param in zip(batch.grads, batch.params, strict=True):
            if grad.dtype == torch.float16:
                on_plain_(partial(look, batch), batch.penalty.is_separable, grad, param)
    excess = filled.log2().ceil().exp2()
    if excess.device.type == "cpu" and excess == 1:  # reading it is free
        return
    optimizer.grad_scale = scale / excess  # type: ignore[attr-defined]  # GradScaler set it, and deletes it
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                as_plain(param.grad, local=True).div_(excess.to(param.grad.device))
