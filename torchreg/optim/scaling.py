"""Weight decay for another batch size, data set or width."""

from __future__ import annotations

import math
from numbers import Real
from typing import get_args

from torchreg.optim.options import Coupling


def transfer(
    weight_decay: float,
    *,
    batch: float = 1.0,
    data: float = 1.0,
    width: float = 1.0,
    lr: float = 1.0,
    coupling: Coupling = "lr",
) -> float:
    r"""The weight decay that keeps the timescale in epochs when the batch, the data or the model grows.

    .. math:: \lambda' = \lambda \, \frac{b}{d} \cdot \frac{w}{a}

    With learning rate :math:`\eta`, decay :math:`\lambda` and :math:`m` steps an epoch, decoupled decay averages the
    updates over about :math:`1 / (\eta\lambda)` steps, which is :math:`1 / (\eta\lambda m)` epochs. The best number of
    epochs hardly depends on the size of the model and of the data. A batch that is :math:`b` times as large has
    :math:`1/b` of the steps, and :math:`d` times as many data have :math:`d` times the steps. The muP rule divides the
    learning rate of hidden weights by the factor :math:`w` of the width, so the decay is multiplied by it. The factor
    :math:`w / a` is left out with the couplings whose decay does not depend on the size of the learning rate.

    Args:
        weight_decay: :math:`\lambda`, as tuned.
        batch: :math:`b`, the new batch size over the old one.
        data: :math:`d`, the new number of examples, or of tokens, over the old one.
        width: :math:`w`, the new width over the old one, if the learning rate follows muP, else 1.
        lr: :math:`a`, the new learning rate over the old one, beside what muP changes.
        coupling: as in :class:`DecoupledDecay`.

    Returns:
        :math:`\lambda'`. For a ``timescale`` in steps use ``timescale * data / batch``.

    Raises:
        TypeError: an argument is no number.
        ValueError: an unknown coupling, or coupling "timescale"; ``weight_decay`` is negative or not finite; a factor
            is not positive and finite.

    Example:
        >>> transfer(0.1, data=4, batch=2)  # four times the data in batches twice as large: twice the steps
        0.05

    References:
        Xi Wang, Laurence Aitchison, "How to Set AdamW's Weight Decay as You Scale Model and Dataset Size",
        arXiv:2405.13698, 2024.
    """
    if coupling not in get_args(Coupling) or coupling == "timescale":
        advice = ": a timescale becomes timescale * data / batch" if coupling == "timescale" else ""
        others = ", ".join(name for name in get_args(Coupling) if name != "timescale")
        raise ValueError(f"transfer: coupling must be one of {others}, got {coupling!r}{advice}")
    factors = {"batch": batch, "data": data, "width": width, "lr": lr}
    for name, value in {"weight_decay": weight_decay, **factors}.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"transfer: {name} must be a number, got {value!r}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"transfer: weight_decay must be finite and >= 0, got {weight_decay!r}")
    for name, value in factors.items():
        if not 0 < value < math.inf:
            raise ValueError(f"transfer: {name} must be new over old, positive and finite, got {value!r}")
    steps = batch / data
    return weight_decay * steps * (width / lr if coupling in ("lr", "corrected") else 1.0)
