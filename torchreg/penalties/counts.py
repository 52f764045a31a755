"""Constraints on counts: of the weights or groups that are not zero, also in each short run, and of the rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.constraints import Constraint
from torchreg.penalties.groups import ByGroup
from torchreg.penalties.joint import Joint
from torchreg.penalties.matrices import AsMatrix
from torchreg.penalties.partition import Groups
from torchreg.selection.parameters import ParamInfo


@final
@dataclass(frozen=True, repr=False, eq=False)
class Sparsest(ByGroup, Joint, Constraint):
    r"""A bound on the number of weights that are not zero: the largest stay, to the bit, and all others become zero.

    .. math:: \|w\|_0 \le k, \qquad P(w) = \operatorname{argmin}_{\|u\|_0 \le k} \|u - w\|_2

    or, with ``groups``, a bound on the number of groups that are not zero; those with the largest Euclidean norm stay.
    Mode "prox" is then iterative hard thresholding: a step of the optimizer, then the projection. A weight that was
    zero may come back if its steps make it one of the largest. Of equal ones the first stay, so that never more than
    :math:`k` do. The set is not convex.

    Give either ``share`` or ``count``. Both say how much *stays*: the ``amount`` of :mod:`torch.nn.utils.prune` and the
    ``target`` of :class:`~torchreg.optim.TargetSparsity` say how much becomes zero, which is ``1 - share``.

    Args:
        share: the share of weights (or groups) that stay, in (0, 1]; ``k`` is the nearest whole number, at least 1.
        count: ``k`` itself, at least 1 and at most the number of weights (or groups).
        groups: what is counted: ``None`` for single weights, otherwise as for :class:`~torchreg.MaxNorm`.
        together: whether all weights of a :class:`~torchreg.Regularizer` together have ``k``, so that some layers keep
            more than others. Else each weight tensor has ``k`` of its own. Together, they are in one optimizer. Frozen
            ones do not count; those without a gradient count, but do not change in that step.

    Raises:
        TypeError: ``share`` is not a real number.
        ValueError: not exactly one of ``share`` and ``count`` is given, one is out of range, or the groups do not fit.

    Example:
        >>> Sparsest(count=2).project(torch.tensor([0.5, -2.0, 1.0, 0.1]))
        tensor([ 0., -2.,  1.,  0.])
        >>> Sparsest(0.5, groups="output").project(torch.tensor([[3.0, 0.1], [2.0, 2.0]]))
        tensor([[3.0000, 0.1000],
                [0.0000, 0.0000]])

    References:
        Thomas Blumensath, Mike E. Davies, "Iterative Hard Thresholding for Compressed Sensing", Applied and
        Computational Harmonic Analysis, 2009.
    """

    share: float | None = None
    count: int | None = None
    groups: Groups | None = None  # type: ignore[assignment]  # None is for single weights
    together: bool = False

    _is_exact: ClassVar[bool] = True
    _no_bounds: ClassVar[Sequence[str]] = ("share", "count", "groups", "together")

    def __post_init__(self) -> None:
        if self.groups is None:
            Constraint.__post_init__(self)
        else:
            super().__post_init__()
        if (self.share is None) == (self.count is None):
            got = "neither" if self.share is None else f"share={self.share!r} and count={self.count!r}"
            raise ValueError(f"Sparsest: either share or count must be given, got {got}")
        if self.share is not None:
            self._require("share", "in (0, 1], the share that stays", lambda share: 0 < share <= 1)
        else:
            _require_whole(self, "count")
        if not isinstance(self.together, bool):
            raise TypeError(f"Sparsest: together must be True or False, got {self.together!r}")

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in self._no_bounds}
        shown = [f"{name}={value!r}" for name, value in given.items() if value is not None and value is not False]
        return f"Sparsest({', '.join(shown)})"

    def bind(self, place: ParamInfo) -> Self:
        bound = self if self.groups is None else super().bind(place)
        if self.together:
            return bound._as_part_of(self)
        bound._kept(bound._number(place.param), place.name)
        return bound

    def project(self, w: Tensor) -> Tensor:
        scores = self._scores(w)
        return self._masked(w, f.are_largest(scores, self._kept(len(scores), f"a weight of shape {tuple(w.shape)}")))

    def value(self, w: Tensor) -> Tensor:
        return self._value_of(self._nonzero(w), self._kept(self._number(w), f"a weight of shape {tuple(w.shape)}"), w)

    # -- together ---------------------------------------------------------------------------------------------------

    def _check_together(self, each: Sequence[Joint], weights: Sequence[Tensor], names: str) -> None:
        self._kept(self._number_in_all(each, weights), names)

    def _value_together(
        self, each: Sequence[Joint], weights: Sequence[Tensor], scales: Sequence[float | Tensor]
    ) -> Tensor:
        first = weights[0]
        many = torch.stack([_own(part)._nonzero(w).to(first.device) for part, w in zip(each, weights, strict=True)])
        spoilt = torch.stack([w.isnan().any().to(first.device) for w in weights]).any()
        kept = self._kept(self._number_in_all(each, weights), None)
        return self._value_of(many.sum(), kept, first).masked_fill(spoilt, torch.nan)

    def _prox_together_(
        self,
        each: Sequence[Joint],
        weights: Sequence[Tensor],
        steps: Sequence[float | Tensor],
        are_moved: Sequence[bool],
    ) -> None:
        first = weights[0]
        scores = [_own(part)._scores(w).to(first.device) for part, w in zip(each, weights, strict=True)]
        kept = f.are_largest(torch.cat(scores), self._kept(sum(map(len, scores)), None))
        for part, w, stays, is_moved in zip(each, weights, kept.split(list(map(len, scores))), are_moved, strict=True):
            if is_moved:
                w.copy_(_own(part)._masked(w, stays.to(w.device)))

    # -- what is counted --------------------------------------------------------------------------------------------

    def _number(self, w: Tensor) -> int:
        """The number of weights or groups."""
        if self.groups is None:
            return w.numel()
        return sum(len(part.rows) for part in self._split(torch.empty(w.shape, device="meta")).parts)

    def _number_in_all(self, each: Sequence[Joint], weights: Sequence[Tensor]) -> int:
        return sum(_own(part)._number(w) for part, w in zip(each, weights, strict=True))

    def _scores(self, w: Tensor) -> Tensor:
        """By which weights or groups are ordered."""
        if self.groups is None:
            return f.magnitude(w).flatten()
        return torch.cat([f.row_norms(part.rows).squeeze(1) for part in self._split(w).parts])

    def _nonzero(self, w: Tensor) -> Tensor:
        """The number of weights or groups that are not zero, 0-d."""
        if self.groups is None:
            return w.count_nonzero()
        return torch.stack([part.rows.any(1).sum() for part in self._split(w).parts]).sum()

    def _masked(self, w: Tensor, stays: Tensor) -> Tensor:
        if self.groups is None:
            return w.masked_fill(~stays.view(w.shape), 0.0)
        split = self._split(w)
        gone = iter((~stays)[:, None].split([len(part.rows) for part in split.parts]))
        return split.map(lambda part: part.rows.masked_fill(next(gone), 0.0))

    def _kept(self, number: int, where: str | None) -> int:
        """``k``, of that number of weights or groups. ``where`` is named in the error; None: all stay instead."""
        if self.share is not None:
            return max(1, round(self.share * number))
        assert self.count is not None
        if where is not None and self.count > number:
            what = "weights" if self.groups is None else f"groups {self.groups!r}"
            raise ValueError(
                f"Sparsest: count must be at most the number of {what}, got {self.count} for the {number} of {where}: "
                "use share, or narrow select"
            )
        return self.count

    def _value_of(self, many: Tensor, kept: int, w: Tensor) -> Tensor:
        return f.nan_of(f.largest(w.detach())).masked_fill((many > kept) & ~w.isnan().any(), math.inf)


@final
@dataclass(frozen=True, repr=False, eq=False)
class NofM(AsMatrix, Constraint):
    r"""A bound in each run of ``m`` consecutive inputs: the ``n`` largest weights stay, to the bit; the rest are 0.

    .. math:: \|w_g\|_0 \le n \text{ for every run } g \text{ of } m \text{ weights in a row}, \qquad
              P(w)_g = \operatorname{argmin}_{\|u\|_0 \le n} \|u - w_g\|_2

    ``NofM(2, 4)`` is the pattern that the sparse tensor cores of GPUs compute with:
    :func:`torch.sparse.to_sparse_semi_structured` accepts the weight of a :class:`torch.nn.Linear` that has it. The
    rows belong to the output units. Those of a convolution are ``weight.flatten(1)``, of length ``in * kh * kw``. Of
    equal weights the first stay. The set is not convex.

    Args:
        n: how many stay, at least 1 and at most ``m``.
        m: the length of a run, which divides the length of a row.
        dim: the dimension of the output units in the weight, if not the module's own.

    Raises:
        TypeError: ``dim`` is not a whole number.
        ValueError: ``n`` or ``m`` is out of range, or ``m`` does not divide the length of a row.

    Example:
        >>> NofM(2, 4).project(torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.0, 0.5, 0.1, 0.2]]))
        tensor([[ 0.0000, -4.0000,  3.0000,  0.0000,  0.0000,  0.5000,  0.0000,  0.2000]])

    References:
        Aojun Zhou, Yukun Ma, Junnan Zhu, Jianbo Liu, Zhijie Zhang, Kun Yuan, Wenxiu Sun, Hongsheng Li, "Learning N:M
        Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.
    """

    n: int
    m: int
    dim: int | None = None

    _is_exact: ClassVar[bool] = True
    _no_bounds: ClassVar[Sequence[str]] = ("n", "m", "dim")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_whole(self, "n")
        _require_whole(self, "m")
        if self.n > self.m:
            raise ValueError(f"NofM: n must be at most m, got {self.n} of {self.m}")

    def bind(self, place: ParamInfo) -> Self:
        bound = super().bind(place)
        bound._runs(torch.empty(place.param.shape, device="meta"), place.name)
        return bound

    def project(self, w: Tensor) -> Tensor:
        if not w.numel():
            return w.clone()
        runs = self._runs(w, f"a weight of shape {tuple(w.shape)}")
        stays = f.are_largest(f.magnitude(runs), self.n)
        return self._weight(runs.masked_fill(~stays, 0.0).flatten(1), w)

    def _runs(self, w: Tensor, where: str) -> Tensor:
        rows = self._rows(w)
        if rows.shape[1] % self.m:
            raise ValueError(
                f"NofM: rows must divide into runs of {self.m}, got rows of length {rows.shape[1]} in {where}: "
                "narrow select"
            )
        runs: Tensor = rows.unflatten(1, (rows.shape[1] // self.m, self.m))
        return runs


@final
@dataclass(frozen=True, repr=False, eq=False)
class Rank(AsMatrix, Constraint):
    r"""A bound on the rank of each weight matrix: the largest singular values stay, and the others become zero.

    .. math:: \operatorname{rank} W \le r, \qquad
              P(W) = \operatorname{argmin}_{\operatorname{rank} U \le r} \|U - W\|_F
              = \sum_{i \le r} \sigma_i u_i v_i^H
              \quad \text{for } W = U \Sigma V^H

    It bounds what :class:`~torchreg.Nuclear` lowers. A singular value counts as zero up to :math:`\sigma_1` times the
    larger side of the matrix times the rounding unit. A weight whose rank is at most ``r`` does not change, to the bit.
    Each step decomposes the matrix; pass ``every=k`` to the :class:`~torchreg.Regularizer` for one such step in ``k``.
    The set is not convex.

    Args:
        rank: ``r``, at least 1 and at most the smaller side of the matrix.
        dim: the dimension of the output units in the weight, if not the module's own. They are the rows of the matrix;
            that of a convolution is ``weight.flatten(1)``.

    Raises:
        TypeError: ``dim`` is not a whole number.
        ValueError: ``rank`` is not a whole number of at least 1, or above the smaller side of a weight.

    Example:
        >>> Rank(1).project(torch.diag(torch.tensor([3.0, 1.0])))
        tensor([[3., 0.],
                [0., 0.]])

    References:
        Carl Eckart, Gale Young, "The Approximation of One Matrix by Another of Lower Rank", Psychometrika, 1936.
        Prateek Jain, Raghu Meka, Inderjit Dhillon, "Guaranteed Rank Minimization via Singular Value Projection",
        NIPS 2010.
    """

    rank: int
    dim: int | None = None

    _no_bounds: ClassVar[Sequence[str]] = ("rank", "dim")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_whole(self, "rank")

    def bind(self, place: ParamInfo) -> Self:
        bound = super().bind(place)
        bound._checked(torch.empty(place.param.shape, device="meta"), place.name)
        return bound

    def project(self, w: Tensor) -> Tensor:
        if not w.numel():
            return w.clone()
        matrix = self._checked(w, f"a weight of shape {tuple(w.shape)}")
        left, sigma, right = f.svd(f.wide(matrix))
        cut = (left[:, : self.rank] * sigma[: self.rank]) @ right[: self.rank]
        return torch.where(self._is_inside(sigma, w, matrix.shape), w, self._weight(cut, w))

    def value(self, w: Tensor) -> Tensor:
        w = w.detach()
        if not w.numel():
            return f.largest(w)
        matrix = self._checked(w, f"a weight of shape {tuple(w.shape)}")
        sigma = f.singular_values(f.wide(matrix))
        inside = self._is_inside(sigma, w, matrix.shape)
        return f.nan_of(f.largest(w)).masked_fill(~inside & ~w.isnan().any(), math.inf)

    def _checked(self, w: Tensor, where: str) -> Tensor:
        rows = self._rows(w)
        if self.rank > min(rows.shape) and rows.numel():
            raise ValueError(
                f"Rank: rank must be at most the smaller side of the matrix {tuple(rows.shape)}, got {self.rank} for "
                f"{where}: narrow select"
            )
        return rows

    def _is_inside(self, sigma: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        unit = torch.finfo(w.dtype).eps * max(shape)
        return (sigma[self.rank :] <= unit * sigma[:1]).all() & sigma.isfinite().all()


def _own(part: Joint) -> Sparsest:
    assert isinstance(part, Sparsest)
    return part


def _require_whole(constraint: Constraint, name: str) -> None:
    value = getattr(constraint, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{type(constraint).__name__}: {name} must be a whole number >= 1, got {value!r}")
