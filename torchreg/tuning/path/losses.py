"""The loss of a stack's members on examples, and its standard error, for any criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchreg.ensemble.stacked import Stacked

Losses = Callable[[Any, Any], Tensor]
Criterion = Callable[[Any, Any], Tensor]

_EQUAL = 1e-4  # shares of the examples that differ by less are equal


class Loss(NamedTuple):
    """What a criterion says of each member of a stack."""

    loss: Tensor  # (members,)
    deviation: Tensor  # its standard error, (members,)
    counted: Tensor  # which targets count, in their shape if there is one output, or class scores, for each target
    examples: int  # how many of the examples count


def member_losses(stack: Stacked, criterion: Criterion) -> Losses:
    """The criterion as a function of stacked outputs and shared targets, with a loss for each member.

    A criterion that cannot be vectorized, as one that asks whether an output is large, is computed for one member after
    another.
    """
    at_once = stack.per_member(criterion)
    vectorize = True

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal vectorize
        if vectorize:
            try:
                return at_once(outputs, targets)
            except RuntimeError:  # if this is not vmap's error but the criterion's, the loop below raises it again
                vectorize = False
        return torch.stack([criterion(output, targets) for output in outputs])

    return losses


@torch.enable_grad()
def each_loss(losses: Losses, criterion: Criterion, outputs: Tensor, targets: Tensor) -> Loss:
    r"""The loss, its standard error over the examples, and which targets count.

    A criterion is seen as :math:`L = \sum_i q_i \ell_i`, where :math:`\ell_i` is the loss of an example alone and
    :math:`q_i` does not depend on the outputs: :math:`1 / n` for a mean, 1 for a sum, 0 for an ignored target, and a
    ratio of class weights for their mean. The gradients by the outputs tell :math:`q_i`, so that no list of criteria is
    needed. The standard error is

    .. math:: \Big(\tfrac{n}{n - 1} \sum_i q_i^2 (\ell_i - \bar\ell)^2\Big)^{1/2}, \qquad
              \bar\ell = \sum_i q_i \ell_i \Big/ \sum_i q_i

    over the :math:`n` examples that count: for a mean it is the usual one, for weights that of a ratio of means.

    References:
        William G. Cochran, "Sampling Techniques", third edition, 1977, section 6.3.
    """
    # One more member, whose outputs are nearly equal, tells of examples where all others keep a margin.
    draw = torch.Generator().manual_seed(0)
    probe = (0.5 + torch.rand(outputs.shape[1:], generator=draw, device="cpu")) / 1000
    outputs = torch.cat([outputs.detach(), probe.to(outputs)[None]]).requires_grad_()
    total = losses(outputs, targets)
    alone = _alone(losses, criterion, outputs, targets)
    slopes, own = (torch.autograd.grad(part.sum(), outputs, retain_graph=True)[0].double() for part in (total, alone))
    slopes, own = slopes.nan_to_num(0.0, 0.0, 0.0), own.nan_to_num(0.0, 0.0, 0.0)
    flat, alike = (part.reshape(*part.shape[:2], -1) for part in (slopes, own))
    total, alone = total.detach()[:-1].double(), alone.detach()[:-1].double()

    squares = alike.square().sum(2)
    steepest = squares.argmax(0, keepdim=True)  # the member that tells most of the example
    inner = (flat * alike).sum(2).gather(0, steepest)[0]
    shares = inner / squares.gather(0, steepest)[0].clamp(min=torch.finfo(squares.dtype).tiny)
    counts = flat.any(2).any(0)
    number = int(counts.sum())
    for equal in (1 / max(number, 1), 1.0):  # without rounding
        if bool(((shares / equal - 1).abs() < _EQUAL)[counts].all()):
            shares = counts.double() * equal
            break
    deviation = torch.zeros_like(total)
    if number > 1:
        q, each = shares[counts], alone[:, counts]
        middle = (each * q).sum(1, keepdim=True) / q.sum()
        deviation = ((q * (each - middle)).square().sum(1) * (number / (number - 1))).sqrt().nan_to_num(nan=0.0)
    has_classes = outputs.ndim > 2 and targets.shape == outputs.shape[1:2] + outputs.shape[3:]
    counted = slopes.ne(0).any(0).any(1) if has_classes else slopes.ne(0).any(0)
    if targets.is_floating_point() and targets.shape == counted.shape and not counted.all():
        counted = counted | _count_far_away(criterion, outputs[-1].detach(), targets, ~counted)
    return Loss(total, deviation, counted, number)


def _alone(losses: Losses, criterion: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each example alone, for each member: ``(members, examples)``."""
    one = torch.func.vmap(lambda output, target: criterion(output[None], target[None]))
    try:
        return torch.func.vmap(one, in_dims=(0, None))(outputs, targets)
    except RuntimeError:  # a mask of the targets, or an ``if``, cannot be vectorized over the examples
        pairs = zip(outputs.split(1, dim=1), targets.split(1), strict=True)
        return torch.stack([losses(output, target) for output, target in pairs], dim=1)


def _count_far_away(criterion: Criterion, outputs: Tensor, targets: Tensor, doubtful: Tensor) -> Tensor:
    """Which of the doubtful targets count for outputs far from them: a loss may be flat for those that are near."""
    far = torch.where(doubtful, targets + 2 * targets.abs().max() + 1, outputs).requires_grad_()
    try:
        return torch.autograd.grad(criterion(far, targets), far)[0].nan_to_num(0.0).ne(0) & doubtful
    except RuntimeError:  # the outputs must be in a range, as in BCELoss, which is nowhere flat
        return torch.zeros_like(doubtful)
