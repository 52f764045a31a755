"""SGD whose step ends with a penalty's proximal operator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torchreg.hooks import Group, step_size
from torchreg.optim.decoupled import DecoupledDecay
from torchreg.optim.options import ProxSGDOptions
from torchreg.optim.proximal import Proximal, apply_prox_
from torchreg.optim.step_wrapper import Weights
from torchreg.penalties import ProximalPenalty
from torchreg.steps.updates import update_


class ProxSGD(Proximal, DecoupledDecay, torch.optim.SGD):
    r"""SGD with momentum, with a penalty by its proximal operator: it minimizes loss + R, with exact zeros.

    .. math:: w \leftarrow \operatorname{prox}_{\alpha R}\big(w - \eta\, m_t\big), \qquad
              \alpha = \eta \, \frac{1 - \text{dampening}}{1 - \mu}

    with :math:`m_t` the momentum of :class:`torch.optim.SGD`, Nesterov's as well. Momentum adds up gradients, in the
    long run to :math:`1 / (1 - \mu)` times a constant one, so the penalty must act with the step :math:`\alpha`; with
    :math:`\eta` alone, as a :class:`~torchreg.Regularizer` in mode "prox" has it, the strength would count
    :math:`1 - \mu` times. A coordinate is zero where the *averaged* gradient is below the strength, so the noise of
    batches does not fill it.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        penalty: any penalty with a proximal operator, or a constraint, on the parameters of two or more dimensions.
        lr, momentum, dampening, nesterov, maximize, foreach, differentiable, fused: as in :class:`torch.optim.SGD`;
            ``momentum < 1`` and ``dampening < 1``.
        weight_decay, coupling, decay, towards, cautious, decay_schedule: decoupled decay beside the penalty; see
            :class:`~torchreg.optim.DecoupledDecay`.
        scale: multiplies the penalty, in each group.
        biases: whether parameters with fewer than two dimensions carry the penalty too, in each group.

    Raises:
        TypeError: the penalty has no proximal operator.
        ValueError: no parameter is penalized, a momentum or a dampening of 1, a ridge beside a ``weight_decay``, a
            penalty towards a reference that it does not have.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, 0.05]]))
        >>> optimizer = ProxSGD([w], L1(1.0), lr=0.1)
        >>> w.grad = torch.zeros(1, 2)
        >>> optimizer.step()
        >>> w.data
        tensor([[0.9000, 0.0000]])

    References:
        Yang Yang, Yaxiong Yuan, Avraam Chatzimichailidis and others, "ProxSGD: Training Structured Neural Networks
        under Regularization and Constraints", ICLR 2020.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            penalty: ProximalPenalty,
            lr: float | Tensor = 1e-3,
            **options: Unpack[ProxSGDOptions],
        ) -> None: ...

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        for key in ("momentum", "dampening"):
            if group["momentum"] and not group[key] < 1:
                raise ValueError(
                    f"{type(self).__name__}: {key} must be below 1, where gradients add up to a multiple that the "
                    f"penalty can follow, got {group[key]!r}"
                )

    def _take_proximal_step_(self, penalty: ProximalPenalty, param: Tensor, group: Group, old: Weights) -> None:
        momentum = group["momentum"]
        total = (1 - group["dampening"]) / (1 - momentum) if momentum else 1.0
        update_(penalty, partial(apply_prox_, penalty, step=step_size(self, group) * group["scale"] * total), param)
