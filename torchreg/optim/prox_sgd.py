"""SGD with a proximal step for a penalty."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from torchreg.hooks import Group, step_size
from torchreg.optim.decoupled import DecoupledDecay
from torchreg.optim.options import Params, ProxSGDOptions, Rules
from torchreg.optim.proximal import Proximal, apply_prox_
from torchreg.optim.step_wrapper import Weights
from torchreg.penalties import ProximalPenalty
from torchreg.steps.updates import update_


class ProxSGD(Proximal, DecoupledDecay, torch.optim.SGD):
    r"""SGD with momentum and a proximal step for a penalty: it minimizes loss + R, with exact zeros.

    .. math::
        \begin{array}{l}
            \hline
            \textbf{input}: w_0 \text{ (params)},\ R \text{ (penalty)},\ c \text{ (scale)}, \\
            \quad \eta \text{ (lr)},\ \mu \text{ (momentum)},\ \tau \text{ (dampening)} \\
            \hline
            \textbf{for}\ t = 1, 2, \dots \\
            \quad g_t \leftarrow \nabla L(w_{t-1}) \\
            \quad m_t \leftarrow \mu\, m_{t-1} + (1 - \tau)\, g_t \quad (m_1 \leftarrow g_1) \\
            \quad w' \leftarrow w_{t-1} - \eta\, m_t \\
            \quad \alpha \leftarrow \eta\, (1 - \tau) / (1 - \mu) \\
            \quad w_t \leftarrow \operatorname{argmin}_u \tfrac{1}{2} \|u - w'\|_2^2 + \alpha\, c R(u) \\
            \hline
        \end{array}

    With Nesterov momentum the update is that of :class:`torch.optim.SGD`. Momentum adds up the gradients: a constant
    gradient ends as :math:`(1 - \tau) / (1 - \mu)` times itself. The penalty therefore needs the step :math:`\alpha`.
    With the step :math:`\eta`, which a :class:`~torchreg.Regularizer` in mode "prox" takes, the strength would be too
    small by the factor :math:`1 - \mu`. A weight stays zero if the *averaged* gradient is smaller than the strength, so
    the noise of batches does not make it nonzero.

    Args:
        params, penalty, scale, biases: as in :class:`Proximal`.
        lr, momentum, dampening, nesterov, maximize, foreach, differentiable, fused: as in :class:`torch.optim.SGD`,
            with ``momentum < 1`` and ``dampening < 1``.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: decoupled decay beside the penalty;
            as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``: which weights are penalized and decay, and the ratio of the
            learning rates of layers; as in :func:`param_groups`.

    Raises:
        ValueError: a momentum or a dampening of 1.
        TypeError, ValueError: as for :class:`Proximal` and :class:`DecoupledDecay`.

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
            params: Params,
            penalty: ProximalPenalty,
            lr: Rules = 1e-3,
            **options: Unpack[ProxSGDOptions],
        ) -> None: ...

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        for key in ("momentum", "dampening"):
            if group["momentum"] and not group[key] < 1:
                raise ValueError(
                    f"{type(self).__name__}: {key} must be below 1, so that the sum of gradients has a limit, got "
                    f"{group[key]!r}"
                )

    def _take_proximal_step_(self, penalty: ProximalPenalty, param: Tensor, group: Group, old: Weights) -> None:
        momentum = group["momentum"]
        total = (1 - group["dampening"]) / (1 - momentum) if momentum else 1.0
        update_(penalty, partial(apply_prox_, penalty, step=step_size(self, group) * group["scale"] * total), param)
