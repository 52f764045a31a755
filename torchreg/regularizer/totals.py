"""The sum of the penalties of many weights, each times its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchreg.penalties.joint import by_whole, whole_of
from torchreg.regularizer.penalized import Trained
from torchreg.regularizer.scales import Scales
from torchreg.regularizer.value import joint_value, penalty_value


def total(pairs: Sequence[Trained], scales: Scales, compile: bool, has_joint: bool) -> Tensor:
    """The sum over weights.

    Args:
        pairs: each penalty with its weight and the key of its scale; not empty.
        scales: what multiplies them.
        compile: whether to use compiled kernels.
        has_joint: whether a penalty may act on several weights at once.
    """
    if not has_joint:
        return _of_each(pairs, scales, compile)
    joint = by_whole((penalty, (weight, scales.of_key(key))) for penalty, weight, key in pairs)
    alone = [pair for pair in pairs if whole_of(pair[0]) is None]
    values = [joint_value(whole, parts) for whole, parts in joint.items()]
    values += [_of_each(alone, scales, compile)] if alone else []
    return torch.stack([value.to(values[0]) for value in values]).sum()


def _of_each(pairs: Sequence[Trained], scales: Scales, compile: bool) -> Tensor:
    """The sum over weights, each of which has a penalty of its own."""
    scale = scales.given
    if not isinstance(scale, Mapping):
        penalties, weights, _ = zip(*pairs, strict=True)
        if not isinstance(scale, Tensor):
            return penalty_value(penalties, weights, scale, compile)
        value = penalty_value(penalties, weights, compile=compile)
        return scale.to(value.device) * value  # those of a stack that was moved lie where it was
    first, *others = (
        scales.of_key(key) * penalty_value([penalty], [weight], compile=compile) for penalty, weight, key in pairs
    )
    for other in others:
        first = first + other.to(first.device)
    return first
