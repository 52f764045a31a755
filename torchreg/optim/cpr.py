"""Upper bounds on the norms of weights instead of weight decay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack, get_args

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.hooks import Group, step_share
from torchreg.optim.options import AdamCPROptions, Bound, Params, Rules
from torchreg.optim.step_wrapper import Plan, StepWrapper, Weights, is_regularized

_MULTIPLIER, _BOUND, _SIZE, _GROWTH, _COUNT = range(5)  # columns of a group's table


class ConstrainedNorm(StepWrapper):
    r"""Mixin that bounds the mean square of each weight tensor: constrained parameter regularization (CPR).

    .. math::
        \begin{array}{l}
            \hline
            \textbf{input}: \text{the base optimizer},\ w_0 \text{ (params)}, \\
            \quad \kappa \text{ (bound)},\ \mu \text{ (update rate)},\ \lambda_0 = 0 \\
            \hline
            \textbf{for}\ t = 1, 2, \dots \\
            \quad w' \leftarrow \text{the base's update of } w_{t-1} \\
            \quad \textbf{for each}\ \text{weight tensor } w' \text{ with } n \text{ elements} \\
            \quad\quad R \leftarrow \tfrac1n \textstyle\sum_i w_i'^2 \\
            \quad\quad \lambda_t \leftarrow \max(0, \lambda_{t-1} + \mu (R - \kappa)) \\
            \quad\quad w_t \leftarrow (1 - 2\lambda_t)\, w' \\
            \hline
        \end{array}

    Each weight tensor has its own bound and multiplier :math:`\lambda`, so no strength is needed: a weight shrinks only
    while it is larger than its bound. Weights without a gradient do not change; neither do parameters with fewer than
    two dimensions, unless ``biases`` is set. The options are those of each group. The groups, and so checkpoints,
    contain the multipliers.

    There are two differences from the authors' code: the factor :math:`1 - 2\lambda` is never below 0, and the first
    growth is that from the first step to the second. Sharded weights are not supported.

    Args:
        bound: how the bound is determined; it acts from the next step on.

            - ``"inflection"``: R at the step at which its growth first slows down.
            - ``"warm_start"``: R after ``warm_start`` steps.
            - ``"initial"``: ``factor`` times R at the start.
            - a number: the bound of all weights.
        warm_start: the number of steps for ``"warm_start"``.
        factor: for ``"initial"``.
        update_rate: :math:`\mu`, how fast the multiplier changes.
        biases: whether parameters with fewer than two dimensions are bounded too.

    Raises:
        ValueError: an option out of its range, or a ``weight_decay`` other than 0.

    Example:
        >>> class SGDCPR(ConstrainedNorm, torch.optim.SGD):
        ...     pass
        >>> w = torch.nn.Parameter(torch.full((1, 2), 2.0))
        >>> w.grad = torch.zeros(1, 2)
        >>> SGDCPR([w], lr=0.1, bound=3.9).step()
        >>> w.data  # the mean square was 4
        tensor([[1.6000, 1.6000]])

    References:
        Jörg K. H. Franke, Michael Hefenbrock, Gregor Koehler, Frank Hutter, "Improving Deep Learning Optimization
        through Constrained Parameter Regularization", NeurIPS 2024.
    """

    def __init__(
        self,
        *args: Any,
        bound: Bound = "inflection",
        warm_start: int = 1000,
        factor: float = 1.0,
        update_rate: float = 1.0,
        biases: bool = False,
        **kwargs: Any,
    ) -> None:
        self._add_options(bound=bound, warm_start=warm_start, factor=factor, update_rate=update_rate, biases=biases)
        super().__init__(*args, **kwargs)

    def _selection_options(self, is_selected: bool) -> dict[str, Any]:
        return {"selected": is_selected}

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        sizes = _mean_squares(group["params"])
        bounds = torch.full_like(sizes, math.nan)  # not known yet
        if group["bound"] == "initial":
            bounds = group["factor"] * sizes
        elif not isinstance(group["bound"], str):
            bounds = torch.full_like(sizes, group["bound"])
        zeros = torch.zeros_like(sizes)
        group["constraints"] = torch.stack([zeros, bounds, zeros, zeros, zeros], dim=1)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        owner, bound = type(self).__name__, group["bound"]
        names = get_args(get_args(Bound)[0])
        if isinstance(bound, str | bool) and bound not in names:
            raise ValueError(f"{owner}: bound must be one of {', '.join(names)} or a number > 0, got {bound!r}")
        for key in ("factor", "update_rate", *(() if isinstance(bound, str) else ("bound",))):
            if not 0 < group[key] < math.inf:
                raise ValueError(f"{owner}: {key} must be a finite number > 0, got {group[key]!r}")
        if isinstance(group["warm_start"], bool) or not isinstance(group["warm_start"], int) or group["warm_start"] < 1:
            raise ValueError(f"{owner}: warm_start must be a whole number >= 1, got {group['warm_start']!r}")
        if group.get("weight_decay", 0):
            raise ValueError(
                f"{owner}: weight_decay must be 0, because the bound replaces it, got {group['weight_decay']!r}"
            )

    def _after_update(self, old: Weights, plan: Plan) -> None:
        super()._after_update(old, plan)
        live = step_share(self)
        for group in self.param_groups:
            places = [i for i, param in enumerate(group["params"]) if _is_bounded(group, param)]
            if places:
                params, table = [group["params"][i] for i in places], group["constraints"]
                rows = table if len(places) == len(table) else torch.stack([table[i] for i in places])
                moved = _moved(rows, _mean_squares(params), group)
                if isinstance(live, Tensor):
                    moved = torch.where(live.to(rows.device) > 0, moved, rows)
                elif live == 0:
                    moved = rows
                for param, factor in zip(params, (1 - 2 * live * moved[:, _MULTIPLIER]).clamp(min=0), strict=True):
                    param.mul_(factor)
                if rows is table:
                    table.copy_(moved)
                else:
                    torch._foreach_copy_([table[i] for i in places], list(moved))


def _moved(rows: Tensor, sizes: Tensor, group: Group) -> Tensor:
    """The table after another step, given the weights' mean squares."""
    multipliers, bounds, last, growths, counts = rows.unbind(1)
    known = ~bounds.isnan()
    pushed = (multipliers + group["update_rate"] * (sizes - bounds)).clamp(min=0)
    multipliers = torch.where(known, pushed, multipliers)
    if group["bound"] == "inflection":
        found = (counts >= 2) & (sizes - last < growths)
    else:
        found = counts + 1 == group["warm_start"]
    return torch.stack(
        [multipliers, torch.where(~known & found, sizes, bounds), sizes, sizes - last, counts + 1], dim=1
    )


def _is_bounded(group: Group, param: Tensor) -> bool:
    return param.grad is not None and param.numel() > 0 and is_regularized(group, param)


def _mean_squares(params: list[Tensor]) -> Tensor:
    """The mean square of each weight, at least in single precision."""
    return torch.stack([2 * f.half_square(p.detach()) / max(p.numel(), 1) for p in params])


class AdamCPR(ConstrainedNorm, torch.optim.Adam):
    r"""Adam with bounded weight norms instead of weight decay, so that no strength is needed.

    .. math:: w' = w_{t-1} - \eta\, \hat m_t / (\sqrt{\hat v_t} + \epsilon), \qquad
              \lambda_t = \max\big(0, \lambda_{t-1} + \mu (\tfrac1n \|w'\|_2^2 - \kappa)\big), \qquad
              w_t = (1 - 2\lambda_t)\, w'

    See :class:`ConstrainedNorm` for the bound :math:`\kappa`.

    Args:
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            :class:`torch.optim.Adam`.
        weight_decay: must be 0.
        bound, warm_start, factor, update_rate, biases: as in :class:`ConstrainedNorm`.
        select, layer_decay: with a model as ``params``: which weights are bounded, and the ratio of the learning rates
            of layers; as in :func:`param_groups`.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> w = torch.nn.Parameter(torch.full((1, 2), 2.0))
        >>> optimizer = AdamCPR([w], lr=0.1, bound=1.0)
        >>> for _ in range(100):
        ...     w.grad = -torch.ones(1, 2)  # which would make it grow
        ...     optimizer.step()
        >>> bool((w.square().mean() < 1.1))
        True

    References:
        Jörg K. H. Franke, Michael Hefenbrock, Gregor Koehler, Frank Hutter, "Improving Deep Learning Optimization
        through Constrained Parameter Regularization", NeurIPS 2024.
    """

    if TYPE_CHECKING:

        def __init__(self, params: Params, lr: Rules = 1e-3, **options: Unpack[AdamCPROptions]) -> None: ...
