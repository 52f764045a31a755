"""Adam with a proximal step for a penalty, in Adam's own metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.functional.sharding import is_sharded, largest
from torchreg.hooks import Group, step_size
from torchreg.optim.compiled import CompiledAdam
from torchreg.optim.couplings import is_readable
from torchreg.optim.kernels import AdamForm
from torchreg.optim.options import Params, ProxAdamOptions, Rules
from torchreg.optim.proximal import Proximal, apply_prox_
from torchreg.optim.step_wrapper import Plan, Weights, with_gradients
from torchreg.penalties import ProximalPenalty
from torchreg.steps.kernels import at_unit_strength, warn_of_no_kernels
from torchreg.steps.updates import update_

_INNER_STEPS = 10


class ProxAdam(Proximal, CompiledAdam, torch.optim.Adam):
    r"""Adam with a proximal step for a penalty, in Adam's own metric: it minimizes loss + R, with exact zeros.

    .. math::
        \begin{array}{l}
            \hline
            \textbf{input}: w_0 \text{ (params)},\ R \text{ (penalty)},\ c \text{ (scale)}, \\
            \quad \eta \text{ (lr)},\ \beta_1, \beta_2 \text{ (betas)},\ \epsilon \text{ (eps)} \\
            \hline
            \textbf{for}\ t = 1, 2, \dots \\
            \quad g_t \leftarrow \nabla L(w_{t-1}) \\
            \quad m_t \leftarrow \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
                \hat m_t \leftarrow m_t / (1 - \beta_1^t) \\
            \quad v_t \leftarrow \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad
                \hat v_t \leftarrow v_t / (1 - \beta_2^t) \\
            \quad d \leftarrow \sqrt{\hat v_t} + \epsilon \\
            \quad w' \leftarrow w_{t-1} - \eta\, \hat m_t / d \\
            \quad \textbf{where}\ v_{t,i} = 0 \textbf{:}\
                d_i \leftarrow \sqrt{\textstyle\max_j v_{t-1,j} / (1 - \beta_2^t)} + \epsilon
                \ \text{ (}\infty\text{ if that maximum is 0)} \\
            \quad w_t \leftarrow \operatorname{argmin}_u \tfrac{1}{2 \eta} \sum_i d_i (u_i - w'_i)^2 + c R(u) \\
            \hline
        \end{array}

    For L1 with strength :math:`s` the last line is the soft threshold :math:`\eta c s / d_i`: the threshold of a weight
    scales as its gradient does. With the same threshold for all weights, which a :class:`~torchreg.Regularizer` in mode
    "prox" takes, Adam would minimize another function.

    A weight whose gradients have all been exactly zero, such as an embedding of a word that no batch held, has no
    metric of its own yet: with the threshold :math:`\eta c s / \epsilon` the first step would make it zero. It takes
    the largest metric of its tensor, and shrinks as slowly as any other weight. While the tensor has none, it stays.

    The last line is exact for elementwise penalties and group lassos. For others (spectral norms, norm balls) it is
    approximated by ten accelerated proximal gradient steps from :math:`w_{t-1}`, which have the same stationary points.

    Args:
        params, penalty, scale, biases: as in :class:`Proximal`; the parameters are real.
        lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in :class:`torch.optim.Adam`.
        compile: whether :func:`torch.compile` makes one kernel of the whole step, for penalties that are a sum over
            single weights. Compiling takes some seconds at the first step and needs a C++ compiler. Without a compiler
            there is a warning, and the usual step. Small parameters, and all parameters under the scaler of a fused
            optimizer, also take the usual step.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: decoupled decay beside the penalty;
            as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``: which weights are penalized and decay, and the ratio of the
            learning rates of layers; as in :func:`param_groups`.

    Raises:
        ValueError: a parameter is complex, or ``compile`` is set with ``differentiable``.
        TypeError, ValueError: as for :class:`Proximal` and :class:`DecoupledDecay`.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, 1.0]]))
        >>> optimizer = ProxAdam([w], L1(0.5), lr=0.1)
        >>> w.grad = torch.tensor([[1.0, 0.01]])
        >>> optimizer.step()
        >>> w.data
        tensor([[0.8500, 0.0000]])

    References:
        Jihun Yun, Aurélie C. Lozano, Eunho Yang, "Adaptive Proximal Gradient Methods for Structured Neural Networks",
        NeurIPS 2021.
    """

    _unit: ProximalPenalty
    _strength: float
    _largest: dict[Tensor, Tensor]  # the largest second moment before this step, of tensors that may hold zeros
    _full: dict[Tensor, Tensor]  # second moments that are known to hold no zeros

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Params,
            penalty: ProximalPenalty,
            lr: Rules = 1e-3,
            **options: Unpack[ProxAdamOptions],
        ) -> None: ...

    else:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._largest, self._full = {}, {}
            unit, self._strength = at_unit_strength(self.penalty)
            assert isinstance(unit, ProximalPenalty)
            self._unit = unit
            if self.compile:
                warn_of_no_kernels(type(self).__name__, [self.penalty])

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if any(isinstance(p, Tensor) and p.is_complex() for p in group["params"]):
            raise ValueError(
                f"{type(self).__name__}: parameters must be real, because Adam scales real and imaginary parts "
                "separately, got complex ones: use ProxSGD"
            )

    def _keeps_old_weights(self, group: Group) -> bool:
        return super()._keeps_old_weights(group) or not self.penalty._takes_steps

    def _before_update(self) -> Plan:
        self._largest = {}
        for group in self.param_groups:
            if not group["support_fixed"]:
                for param in filter(self._bound.__contains__, with_gradients(group)):
                    self._note_largest(param, _moment(self.state.get(param), group), group)
        return super()._before_update()

    @torch.no_grad()
    def _note_largest(self, param: Tensor, second_moment: Tensor | None, group: Group) -> None:
        if second_moment is None or not second_moment.numel():
            self._largest[param] = torch.zeros((), dtype=param.dtype, device=param.device)
        elif self._full.get(param) is not second_moment:
            self._largest[param] = largest(second_moment.detach())
            if not is_sharded(second_moment) and is_readable(second_moment) and second_moment.all():
                del self._largest[param]
                if group["betas"][1] > 0.5:  # then a second moment that is not 0 stays so, down to the smallest number
                    self._full[param] = second_moment

    def _form(self, group: Group, is_penalized: bool) -> AdamForm | None:
        is_usual = group["support_fixed"] or (is_penalized and not self.penalty.is_uniform)
        return None if is_usual else super()._form(group, is_penalized)

    def _is_penalized(self, param: Tensor) -> bool:
        return param in self._bound and param.requires_grad

    def _has_taken_proximal_step(self, param: Tensor) -> bool:
        return param in self._kernels and self._kernels[param][0].penalty is not None

    def _reach(self, group: Group) -> float | Tensor:
        reach: float | Tensor = group["lr"] * group["scale"] * self._strength
        return reach

    def _largest_before(self, param: Tensor) -> Tensor | None:
        return self._largest.get(param)

    def _take_proximal_step_(self, penalty: ProximalPenalty, param: Tensor, group: Group, old: Weights) -> None:
        state = self.state[param]
        second_moment = _moment(state, group)
        assert second_moment is not None
        made = state["step"] if state["step"].is_cpu else state["step"].to(param.device)
        correction = (1 - group["betas"][1] ** made.clamp(min=1).double()).sqrt()
        lr = step_size(self, group) * group["scale"]
        before = self._largest.get(param)

        def take_(w: Tensor, v: Tensor, start: Tensor | None = None) -> None:
            if before is not None:
                v = torch.where(v == 0, before.masked_fill(before == 0, math.inf), v)
            # lr / (sqrt(v) / correction + eps), with fewer passes over the weights
            root = f.wide(v).sqrt()
            metric = (
                root + group["eps"] * correction if torch.is_grad_enabled() else root.add_(group["eps"] * correction)
            )
            if start is None:
                apply_prox_(penalty, w, lr * correction / metric)
            else:
                w.copy_(_prox_in_metric(penalty, w, metric, lr * correction, start))

        update_(
            penalty, take_, *((param, second_moment) if penalty._takes_steps else (param, second_moment, old[param]))
        )

    def __getstate__(self) -> dict[str, Any]:
        own = {"_unit": self._unit, "_strength": self._strength, "_largest": {}, "_full": {}}
        return {**super().__getstate__(), **own}


def _moment(state: Mapping[str, Tensor] | None, group: Group) -> Tensor | None:
    """The second moment by which Adam divides, if there is one yet."""
    return state.get("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq") if state else None


def _prox_in_metric(penalty: ProximalPenalty, w: Tensor, metric: Tensor, lr: float | Tensor, start: Tensor) -> Tensor:
    """Approximates ``argmin_u sum(metric * (u - w)**2) / 2 + lr * R(u)`` by accelerated proximal gradient steps.

    A stationary point ``start`` of loss + R does not move, whatever the number of steps is. A weight whose metric is
    infinite takes the largest of the others, and nothing is done if all are infinite.
    """
    if not w.numel():
        return w
    is_set = metric.isfinite()
    largest = metric.masked_fill(~is_set, 0).amax()
    ratio = torch.where(is_set, metric / largest, 1)
    step = lr * torch.where(largest > 0, 1 / largest, 0)
    point = ahead = start
    pace = 1.0
    for _ in range(_INNER_STEPS):
        before, point = point, penalty.prox(ahead - ratio * (ahead - w), step)
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, pace = point + (pace - 1) / faster * (point - before), faster
    return point
