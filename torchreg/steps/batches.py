"""The parameters that a step changes, in batches with the same penalty and the same scale."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Group
from torchreg.penalties import Penalty

Penalties = Mapping[nn.Parameter, Penalty]
Scales = Mapping[nn.Parameter, float | Tensor]


class ParamBatch(NamedTuple):
    """Consecutive parameters of one group that a step changes, with the same penalty and the same scale."""

    group: Group
    penalty: Penalty
    scale: float | Tensor
    params: list[Tensor]
    grads: list[Tensor]


def param_batches(optimizer: Optimizer, penalties: Penalties, scales: Scales) -> list[ParamBatch]:
    """The penalized parameters that the coming (or last) step changes, in as few batches as their order allows."""
    found: list[ParamBatch] = []
    last: tuple[object, ...] = ()
    for param, grad, penalty, group in stepped(optimizer, penalties):
        scale = scales[param]
        if not last or last[0] is not penalty or last[1] is not scale or last[2] is not group:
            found.append(ParamBatch(group, penalty, scale, [], []))
            last = (penalty, scale, group)
        found[-1].params.append(param)
        found[-1].grads.append(grad)
    return found


def stepped(optimizer: Optimizer, penalties: Penalties) -> Iterator[tuple[nn.Parameter, Tensor, Penalty, Group]]:
    """The penalized parameters that the coming (or last) step changes."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            penalty = penalties.get(param)
            if penalty is not None and param.grad is not None and param.requires_grad:
                yield param, param.grad, penalty, group
