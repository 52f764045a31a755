"""Mode "grad" for weights that a layer computes from other tensors."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.hooks import gradient_scale
from torchreg.penalties import Penalty
from torchreg.selection.computed import ComputedWeight


def add_gradients_through(
    optimizer: Optimizer, penalty: Penalty, computed: ComputedWeight, scale: float | Tensor
) -> None:
    r"""Before the update: ``grad += J.T @ dR(w)`` for each stored tensor, with :math:`J` the derivative of ``w`` by it.

    Args:
        optimizer: the stored tensors that its step changes get the gradient.
        penalty: ``R``, bound to the weight.
        computed: how ``w`` is computed.
        scale: multiplies the penalty.
    """
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    changed = [p for p in computed.stored if p in groups and p.grad is not None and p.requires_grad]
    if not changed:
        return
    weight = computed()
    with torch.no_grad():
        slope = penalty._gradient_times(weight.detach(), scale)
    gradients = torch.autograd.grad(weight, changed, slope, allow_unused=True)
    unscaled = gradient_scale(optimizer)
    with torch.no_grad():
        for param, gradient in zip(changed, gradients, strict=True):
            if gradient is not None and param.grad is not None:
                param.grad.add_(gradient * (-unscaled if groups[param].get("maximize") else unscaled))
