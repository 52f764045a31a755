"""DECAY decoupled from the gradient in any optimizer, and PROXIMAL steps, which end in exact zeros.

Decoupled decay: :class:`AdamW`, :class:`SGDW`, :class:`RMSpropW`, :class:`AdagradW`, :class:`NAdamW`, :class:`RAdamW`,
:class:`AdamaxW`; :func:`decoupled` makes such a class of any optimizer class, with the mixin :class:`DecoupledDecay`.
:func:`param_groups` makes parameter groups, for any optimizer, in which biases and the like do not decay.
:func:`transfer` gives the decay for another batch size, data set or width.
Norms bounded instead of decayed: :class:`AdamCPR`, with the mixin :class:`ConstrainedNorm`. Proximal steps:
:class:`ProxSGD` and :class:`ProxAdam`, with the mixin :class:`Proximal`; :class:`TargetSparsity` steers them to a given
share of zeros.
"""

from torchreg.optim.cpr import AdamCPR, ConstrainedNorm
from torchreg.optim.decoupled import DecoupledDecay
from torchreg.optim.factory import decoupled
from torchreg.optim.groups import param_groups
from torchreg.optim.named import SGDW, AdagradW, AdamaxW, AdamW, NAdamW, RAdamW, RMSpropW
from torchreg.optim.prox_adam import ProxAdam
from torchreg.optim.prox_sgd import ProxSGD
from torchreg.optim.proximal import Proximal
from torchreg.optim.scaling import transfer
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
    "param_groups",
    "transfer",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
