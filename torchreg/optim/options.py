"""The keyword arguments of the optimizers, for type checkers and editors.

At run time the signatures are put together from torch's own, by :class:`~torchreg.optim.step_wrapper.StepWrapper`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from torchreg.schedules import Schedule
from torchreg.selection import ParamInfo, Selector

Params = ParamsT | nn.Module  # of a model the optimizer makes groups itself
Rules = float | Tensor | Mapping[str, float | Tensor]  # one number, or numbers by name patterns of a model
Select = Selector | Callable[[ParamInfo], bool]

Coupling = Literal[
    "lr", "independent", "schedule", "constant", "corrected", "timescale"
]  # the second and the third are one rule
Decay = Literal["L2", "L1"]
Target = Literal["zero", "start"]
Bound = Literal["inflection", "warm_start", "initial"] | float
Betas = tuple[float | Tensor, float | Tensor]


class TorchOptions(TypedDict, total=False):
    """What every optimizer of torch accepts."""

    weight_decay: Rules
    select: Select
    layer_decay: float | None
    maximize: bool
    foreach: bool | None
    differentiable: bool


class MomentOptions(TorchOptions, total=False):
    """What optimizers with running moments accept."""

    betas: Betas
    eps: float
    capturable: bool


class AdamOptions(MomentOptions, total=False):
    amsgrad: bool
    fused: bool | None


class DecayOptions(TypedDict, total=False):
    """What every decoupled optimizer accepts; see :class:`~torchreg.optim.DecoupledDecay`."""

    coupling: Coupling
    timescale: float | None
    decay: Decay
    towards: Target
    cautious: bool
    decay_schedule: Schedule | None


class ProximalOptions(TypedDict, total=False):
    """What every proximal optimizer accepts; see :class:`~torchreg.optim.Proximal`."""

    scale: float | Tensor
    biases: bool


class SGDWOptions(TorchOptions, DecayOptions, total=False):
    momentum: float
    dampening: float
    nesterov: bool
    fused: bool | None


class AdamWOptions(AdamOptions, DecayOptions, total=False):
    compile: bool


class RMSpropWOptions(TorchOptions, DecayOptions, total=False):
    alpha: float
    eps: float
    momentum: float
    centered: bool
    capturable: bool


class AdagradWOptions(TorchOptions, DecayOptions, total=False):
    lr_decay: float
    initial_accumulator_value: float
    eps: float
    fused: bool | None


class AdamaxWOptions(MomentOptions, DecayOptions, total=False):
    pass


class RAdamWOptions(MomentOptions, DecayOptions, total=False):
    pass


class NAdamWOptions(MomentOptions, DecayOptions, total=False):
    momentum_decay: float


class ProxSGDOptions(SGDWOptions, ProximalOptions, total=False):
    pass


class ProxAdamOptions(AdamWOptions, ProximalOptions, total=False):
    pass


class AdamCPROptions(AdamOptions, total=False):
    bound: Bound
    warm_start: int
    factor: float
    update_rate: float
    biases: bool
