"""Optimizers: decay decoupled from the gradient, and steps that end in exact zeros."""

from torchreg.optim.cpr import AdamCPR, ConstrainedNorm
from torchreg.optim.decoupled import DecoupledDecay
from torchreg.optim.factory import decoupled
from torchreg.optim.named import SGDW, AdagradW, AdamaxW, AdamW, NAdamW, RAdamW, RMSpropW
from torchreg.optim.prox_adam import ProxAdam
from torchreg.optim.prox_sgd import ProxSGD
from torchreg.optim.proximal import Proximal
from torchreg.optim.sparsity import TargetSparsity

__all__ = [
    "SGDW",
    "AdagradW",
    "AdamCPR",
    "AdamW",
    "AdamaxW",
    "ConstrainedNorm",
    "DecoupledDecay",
    "NAdamW",
    "ProxAdam",
    "ProxSGD",
    "Proximal",
    "RAdamW",
    "RMSpropW",
    "TargetSparsity",
    "decoupled",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
