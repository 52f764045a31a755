"""Penalties on groups of weights, such as the rows of a matrix: group lassos and the exclusive lasso."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty, Term
from torchreg.penalties.described import Described
from torchreg.penalties.elementwise import L1Mixture
from torchreg.penalties.partition import Groups, Part, Partition, check_groups, resolve, split
from torchreg.selection.parameters import ParamInfo


class ByGroup(Described):
    """Mixin for what acts on groups of a weight's elements; the field ``groups`` says which elements form a group.

    Args:
        groups: how the elements are grouped.

            - ``"output"``: a group for each output unit or channel, with all weights into it.
            - ``"input"``: a group for each input, with all weights out of it.
            - ``"filter"``: as ``"output"``, but an error for a weight that is not a convolution's.
            - ``"tensor"``: the whole weight is one group.
            - a number: a group for each slice of that dimension.
            - :class:`~torchreg.Heads`: a group for each attention head.
            - an integer tensor, of the weight's shape or with a number for each output unit: a group for each number.

            A :class:`~torchreg.Regularizer` knows on which dimension the outputs of a module are; in transposed
            convolutions and embeddings they are on the second. Without a regularizer ``"output"`` is the first
            dimension and ``"input"`` the second.

    Raises:
        ValueError: ``groups`` is none of these, or does not fit the weight.
    """

    groups: Groups

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "groups", check_groups(type(self).__name__, self.groups))

    def bind(self, place: ParamInfo) -> Self:
        owner = type(self).__name__
        groups = resolve(check_groups(owner, self.groups), place, owner)
        return replace(self, groups=groups)  # type: ignore[type-var]  # the final classes are dataclasses

    def _split(self, w: Tensor) -> Partition:
        owner = type(self).__name__
        return split(w, check_groups(owner, self.groups), owner)

    def _in_place(self, number: float | Tensor, *tensors: Tensor) -> list[Part] | None:
        """The groups as rows in the tensors' own memory; None if they lie elsewhere, or if that would be wrong.

        It is wrong where derivatives need what was there before, and with a ``number`` that differs within a group.
        """
        if torch.is_grad_enabled() or (isinstance(number, Tensor) and number.ndim):
            return None
        found = [self._split(tensor) for tensor in tensors]
        return [each.parts[0] for each in found] if all(each.is_view for each in found) else None


class Grouped(ByGroup, Term, ProximalPenalty):
    """A penalty on each group of the weight.

    Args:
        strength: ``s``, finite and not negative.
        groups: what makes a group; see :class:`ByGroup`.

    Raises:
        ValueError: ``groups`` is none of these, or does not fit the weight.
    """

    @property
    def _takes_steps(self) -> bool:
        return True

    def _with_steps(self, w: Tensor, step: float | Tensor, act: Callable[[Part, float | Tensor], Tensor]) -> Tensor:
        """``act(part, step)`` for each part of ``w``; a step of ``w``'s shape becomes a row for each group."""
        if not isinstance(step, Tensor) or not step.ndim:
            return self._split(w).map(lambda part: act(part, step))
        steps = iter(self._split(step).parts)
        return self._split(w).map(lambda part: act(part, next(steps).rows))

    def _slopes(self, w: Tensor, strength: float) -> Tensor:
        """``strength * sqrt(size) / norm`` of the group of each element of ``w``; 0 in a group of zeros."""

        def slopes(part: Part) -> Tensor:
            norms = f.row_norms(part.rows)
            return (strength * _root(part) / norms.masked_fill(norms == 0, math.inf)).expand_as(part.rows)

        return self._split(w).map(slopes)

    def _add_group_gradient_(self, into: Tensor, w: Tensor, strength: float, scale: float | Tensor) -> Tensor:
        """``into += scale * strength * sqrt(size) * w / norm``, in place."""
        parts = self._in_place(scale, into, w)
        if parts is None:
            return into.addcmul_(w, self._slopes(w, strength) * scale)
        rows, own = parts
        lengths = f.row_lengths(own.rows)
        precision = torch.finfo(lengths.dtype)
        vanishing = (precision.tiny * precision.eps) ** 0.5  # its square is 0, so that everywhere else it counts as 0
        lengths.masked_fill_(lengths < vanishing, math.inf)
        rows.rows.addcmul_(own.rows, strength * _root(own) / lengths * scale)
        return into

    def _shrink_groups_(self, w: Tensor, strength: float, step: float | Tensor) -> Tensor | None:
        """The proximal operator of ``strength * sqrt(size) * norm``, in place; None if that cannot be."""
        parts = self._in_place(step, w)
        if parts is None:
            return None
        (own,) = parts
        lengths = f.row_lengths(own.rows)
        own.rows.mul_(f.kept_share(lengths, step * strength * _root(own)))
        return w

    def _distance(self, residual: Tensor, w: Tensor, lasso: float, strength: float) -> Tensor:
        """The length of ``residual`` less the subgradients at zero elements (``lasso``) and at zero groups."""
        residual = torch.where(w == 0, f.soft_threshold(residual, lasso), residual)
        lengths = [
            f.distance_beyond_kink(f.row_norms(rest.rows), f.row_norms(own.rows) == 0, strength * _root(own))
            for own, rest in zip(self._split(w).parts, self._split(residual).parts, strict=True)
        ]
        return (f.l2_norm(torch.stack(lengths)) if len(lengths) > 1 else lengths[0]).to(f.real_dtype(w))

    def _sum_of_norms(self, w: Tensor) -> Tensor:
        """``sum_g sqrt(n_g) |w_g|``."""
        return _total([(_root(part) * f.row_norms(part.rows)).sum() for part in self._split(w).parts])


@final
@dataclass(frozen=True, repr=False, eq=False)
class GroupLasso(Grouped):
    r"""The group lasso: it drives whole groups to zero, in mode ``"prox"`` to exactly zero.

    .. math:: R(w) = s \sum_g \sqrt{n_g} \, \|w_g\|_2, \qquad
              \operatorname{prox}_{tR}(w)_g
              = \operatorname{argmin}_u \tfrac12 \|u - w_g\|_2^2 + ts \sqrt{n_g} \, \|u\|_2
              = w_g \max\!\left(1 - \frac{ts \sqrt{n_g}}{\|w_g\|_2}, 0\right)

    where :math:`n_g` is the size of group :math:`g`. With ``groups="output"`` whole units or filters become zero;
    :func:`~torchreg.compress` can then remove them.

    Args:
        strength: ``s``, finite and not negative.
        groups: ``"output"``, ``"input"``, ``"filter"``, ``"tensor"``, a dimension, ``Heads(n)`` or an index tensor; see
            :class:`~torchreg.penalties.groups.ByGroup`.

    Raises:
        ValueError: ``groups`` is none of these, or does not fit the weight.

    Example:
        >>> import torch
        >>> penalty = GroupLasso(1.0)
        >>> penalty.value(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor(7.7782)
        >>> penalty.prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), step=1.0)
        tensor([[2.1515, 2.8686],
                [0.0000, 0.0000]])

    References:
        Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped Variables", Journal of the Royal
        Statistical Society B, 2006. Wei Wen, Chunpeng Wu, Yandan Wang, Yiran Chen, Hai Li, "Learning Structured
        Sparsity in Deep Neural Networks", NeurIPS 2016.
    """

    groups: Groups = "output"

    def value(self, w: Tensor) -> Tensor:
        return (self.strength * self._sum_of_norms(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return (w * self._slopes(w, self.strength)).to(w.dtype)

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return self._add_group_gradient_(grad, w, self.strength, scale)

    def _descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return self._add_group_gradient_(w, w, self.strength, -step)

    @property
    def _curvature(self) -> float:
        return 0.0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return self._with_steps(
            w, step, lambda part, own: f.group_soft_threshold(part.rows, own * self.strength * _root(part))
        )

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        shrunk = self._shrink_groups_(w, self.strength, step)
        return super()._prox_(w, step) if shrunk is None else shrunk

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return self._distance(gradient + self.gradient(w), w, 0.0, self.strength)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return _most(
            [f.largest(f.row_norms(part.rows) / _root(part)) for part in self._split(gradient).parts], gradient
        )


@final
@dataclass(frozen=True, repr=False, eq=False)
class SparseGroupLasso(Grouped, L1Mixture):
    r"""Lasso and group lasso under one strength: few groups, and few weights in each of them.

    .. math:: R(w) = s \Big( \alpha \|w\|_1 + (1 - \alpha) \sum_g \sqrt{n_g} \, \|w_g\|_2 \Big), \qquad
              \operatorname{prox}_{tR} = \operatorname{prox}_{ts(1 - \alpha) \sum_g \sqrt{n_g} \|\cdot_g\|_2}
              \circ \operatorname{prox}_{ts\alpha \|\cdot\|_1}

    where :math:`n_g` is the size of group :math:`g`. The proximal operator thresholds the elements, then the groups.

    Args:
        strength: ``s``, finite and not negative.
        l1_ratio: :math:`\alpha`, the share of the Lasso, in [0, 1].
        groups: as for :class:`GroupLasso`.

    Raises:
        ValueError: ``l1_ratio`` outside [0, 1], or ``groups`` that do not fit the weight.

    Example:
        >>> import torch
        >>> SparseGroupLasso(1.0, l1_ratio=0.5).prox(torch.tensor([[3.5, 0.4], [0.9, 0.9]]), step=1.0)
        tensor([[2.2929, 0.0000],
                [0.0000, 0.0000]])

    References:
        Noah Simon, Jerome Friedman, Trevor Hastie, Robert Tibshirani, "A Sparse-Group Lasso", Journal of Computational
        and Graphical Statistics, 2013.
    """

    groups: Groups = "output"

    def value(self, w: Tensor) -> Tensor:
        return (self._lasso * f.l1_norm(w) + self._rest * self._sum_of_norms(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return f.scaled_sign(w, self._lasso).addcmul_(w, self._slopes(w, self._rest))

    def _add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        if f.is_half(grad):
            return super()._add_gradient_(grad, w, scale)  # which rounds once
        f.axpy_(grad, w.sgn(), self._lasso * scale)
        return self._add_group_gradient_(grad, w, self._rest, scale)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        thresholded = f.soft_threshold(w, step * self._lasso)
        return self._with_steps(
            thresholded, step, lambda part, own: f.group_soft_threshold(part.rows, own * self._rest * _root(part))
        )

    def _prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        if self._in_place(step, w) is None:
            return super()._prox_(w, step)
        f.soft_threshold_(w, step * self._lasso)
        self._shrink_groups_(w, self._rest, step)
        return w

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return self._distance(gradient + self.gradient(w), w, self._lasso, self._rest)

    def strength_max(self, gradient: Tensor) -> Tensor:
        if not gradient.numel():
            return f.largest(gradient)
        return _most(list(map(self._held, self._split(gradient).parts)), gradient)

    def _held(self, part: Part) -> Tensor:
        """The smallest strength at which all groups of a part of the gradient stay at 0."""
        # A group stays at 0 with strength s if |S(g, s * lasso)| <= s * slope, where S is the soft threshold. That is
        # a quadratic equation in s once it is known which elements are above the threshold.
        size = f.magnitude(part.rows).sort(dim=1, descending=True).values
        lasso, slope = self.l1_ratio, (1 - self.l1_ratio) * _root(part)
        count = torch.arange(1, size.shape[1] + 1, dtype=size.dtype, device=size.device)
        total, square = size.cumsum(1), size.square().cumsum(1)
        beyond = square - 2 * size * total + count * size.square()
        held = lasso**2 * beyond <= (slope * size).square()
        last = held.sum(1, keepdim=True) - 1
        b, c = lasso * total.gather(1, last), square.gather(1, last)
        root = b + (b.square() - (lasso**2 * count[last] - slope**2) * c).clamp(min=0).sqrt()
        return (c / root.masked_fill(root == 0, 1.0)).amax()


@final
@dataclass(frozen=True, repr=False, eq=False)
class ExclusiveLasso(Grouped):
    r"""The exclusive lasso: each group keeps few nonzero weights, and no group becomes zero.

    .. math:: R(w) = \frac{s}{2} \sum_g \|w_g\|_1^2, \qquad
              \operatorname{prox}_{tR}(w)_g
              = \operatorname{argmin}_u \tfrac12 \|u - w_g\|_2^2 + \tfrac{ts}{2} \|u\|_1^2
              = \operatorname{sign}(w_g) \max(|w_g| - \tau_g, 0)

    It is the opposite of the group lasso: the zeros lie within the groups, evenly over all groups. The threshold
    :math:`\tau_g` of each group is found exactly by sorting.

    Args:
        strength: ``s``, finite and not negative.
        groups: as for :class:`GroupLasso`.

    Raises:
        ValueError: ``groups`` do not fit the weight.

    Example:
        >>> import torch
        >>> ExclusiveLasso(1.0).prox(torch.tensor([[3.0, -1.0], [0.5, 0.1]]), step=1.0)
        tensor([[1.5000, 0.0000],
                [0.2500, 0.0000]])

    References:
        Yang Zhou, Rong Jin, Steven C. H. Hoi, "Exclusive Lasso for Multi-task Feature Selection", AISTATS 2010.
    """

    groups: Groups = "output"

    def value(self, w: Tensor) -> Tensor:
        squares = _total([_l1_norms(part.rows).square().sum() for part in self._split(w).parts])
        return (self.strength / 2 * squares).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return (w.sgn() * self._slope(w)).to(w.dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return self._with_steps(w, step, lambda part, own: f.exclusive_threshold(part.rows, own * self.strength))

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return f.distance_beyond_kink(gradient + self.gradient(w), w == 0, self._slope(w))

    def _slope(self, w: Tensor) -> Tensor:
        """R's slope at each element: the strength times the L1 norm of its group."""
        return self._split(w).map(lambda part: (self.strength * _l1_norms(part.rows)).expand_as(part.rows))


def _root(part: Part) -> float | Tensor:
    """``sqrt(n_g)``: a number if all groups have one size, else of shape (groups, 1)."""
    if isinstance(part.sizes, int):
        return math.sqrt(part.sizes)
    return part.sizes.to(torch.promote_types(f.real_dtype(part.rows), torch.float32)).sqrt()


def _total(sums: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(sums)).sum() if len(sums) > 1 else sums[0]


def _most(found: Sequence[Tensor], like: Tensor) -> Tensor:
    """The largest of 0-d tensors, in ``like``'s real dtype."""
    return (torch.stack(list(found)).amax() if len(found) > 1 else found[0]).to(f.real_dtype(like))


def _l1_norms(rows: Tensor) -> Tensor:
    return f.magnitude(rows).sum(1, keepdim=True)
