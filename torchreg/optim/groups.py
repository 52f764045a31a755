"""Parameter groups for any optimizer: with weight decay, and without."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchreg.ensemble.stacked import Stacked
from torchreg.hooks import Group
from torchreg.penalties.members import member_of
from torchreg.selection.modules import check_model
from torchreg.selection.parameters import ParamInfo, each_parameter
from torchreg.selection.selectors import Selector, as_selector, weights


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float | Tensor,
    select: Selector | Callable[[ParamInfo], bool] = weights,
    **options: Any,
) -> list[Group]:
    r"""Parameter groups for any optimizer, in which only selected parameters have a weight decay.

    .. math:: \lambda_i = \begin{cases} \lambda & \text{if parameter } i \text{ is selected} \\
              0 & \text{otherwise} \end{cases}

    The default selection is that of a :class:`~torchreg.Regularizer`: no biases, no parameters of normalization layers,
    no position embeddings, nothing that the model itself exempts; see :data:`~torchreg.weights`. Each parameter is in
    one group, once, also if it is tied or frozen.

    Args:
        model: any module, wrapped or not.
        weight_decay: :math:`\lambda`, the weight decay of the selected parameters.
        select: which parameters decay: a selector, or a function of :class:`~torchreg.ParamInfo`.
        **options: further options of all groups, such as ``lr``.

    Returns:
        The group that decays, then the group that does not; without a group that would be empty.

    Raises:
        TypeError: ``model`` is no module, or ``select`` no selector.
        ValueError: ``weight_decay`` is negative or not finite; nothing is selected; a parameter has no shape yet.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> groups = param_groups(model, weight_decay=0.01)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.01, 2), (0.0, 4)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    check_model("param_groups", model)
    is_number = weight_decay.numel() == 1 if isinstance(weight_decay, Tensor) else isinstance(weight_decay, Real)
    if not is_number or isinstance(weight_decay, bool):
        raise TypeError(f"param_groups: weight_decay must be a number, got {weight_decay!r}")
    if "params" in options:
        raise TypeError("param_groups: params are those of the model, got them as an option: leave params out")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"param_groups: weight_decay must be finite and >= 0, got {weight_decay!r}")
    selector = as_selector(select)
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for places in each_parameter(model):
        (decaying if _decays(places, selector, isinstance(model, Stacked)) else others).append(places[0].param)
    if not decaying:
        raise ValueError(
            f"param_groups: select must choose at least one parameter, got none of {len(others)} of "
            f"{type(model).__name__}" + (": select=torchreg.everything lifts exemptions" if others else "")
        )
    groups = ({"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0})
    return [{**options, **group} for group in groups if group["params"]]


def _decays(places: list[ParamInfo], selector: Selector, is_stacked: bool) -> bool:
    name, param = places[0].name, places[0].param
    if is_lazy(param):
        raise ValueError(f"param_groups: {name} has no shape yet: run one batch through the lazy model first")
    if not (param.is_floating_point() or param.is_complex()):
        return False
    return any(selector(member_of(place, 0) if is_stacked else place) for place in places)
