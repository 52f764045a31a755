"""Penalties on groups that pull large groups less than small ones: group MCP and group SCAD."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.concave import MCP, SCAD, Magnitudes
from torchreg.penalties.groups import Grouped, _most, _root, _total
from torchreg.penalties.partition import Groups, Part


class ByRootMeanSquare(Grouped):
    r"""A penalty ``R(w) = sum n_g r(m_g)`` on the root mean square ``m_g = |w_g| / sqrt(n_g)`` of each group.

    For MCP and SCAD this is the penalty of the group's norm with the strength :math:`s \sqrt{n_g}`, because
    :math:`r_{cs}(cu) = c^2 r_s(u)`: the convention of :class:`~torchreg.GroupLasso`. A group of one element has the
    penalty of the element.
    """

    is_linear: ClassVar[bool] = False

    @property
    @abstractmethod
    def _of_each(self) -> Magnitudes:
        """The penalty ``r`` of a single weight."""

    @property
    def _takes_steps(self) -> bool:
        return False

    def value(self, w: Tensor) -> Tensor:
        sums = [(part.sizes * self._of_each._cost(_means(part))).sum() for part in self._split(w).parts]
        largest = f.largest(w.detach())
        lost = largest.masked_fill(largest.isfinite(), 0.0)  # the formulas can be finite where a weight is not
        return (_total(sums) + lost).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        def slopes(part: Part) -> Tensor:
            means = _means(part)
            return (self._of_each._slope(means) / means.masked_fill(means == 0, math.inf)).expand_as(part.rows)

        return (w * self._split(w).map(slopes)).to(w.dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        def shrunk(part: Part) -> Tensor:
            means = _means(part)
            amount = f.as_tensor(step, means)
            kept = self._of_each._shrunk(means, amount) / means.masked_fill(means == 0, 1.0)
            stays = (kept >= 1) | (amount * self.strength == 0)
            return torch.where(stays, part.rows, (part.rows * kept).to(w.dtype))

        return self._split(w).map(shrunk)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        return self._distance(gradient + self.gradient(w), w, 0.0, self.strength)

    def strength_max(self, gradient: Tensor) -> Tensor:
        return _most(
            [f.largest(f.row_norms(part.rows) / _root(part)) for part in self._split(gradient).parts], gradient
        )


@final
@dataclass(frozen=True, repr=False, eq=False)
class GroupMCP(ByRootMeanSquare):
    r"""The group MCP: it drives whole groups to zero, and does not pull large groups at all.

    .. math:: R(w) = \sum_g r_g(\|w_g\|_2), \qquad
              r_g(u) = \begin{cases} s_g u - u^2 / (2 \gamma) & u \le \gamma s_g \\
              \gamma s_g^2 / 2 & u > \gamma s_g \end{cases}, \qquad s_g = s \sqrt{n_g}

    where :math:`n_g` is the size of group :math:`g`. The proximal operator,
    :math:`\operatorname{argmin}_u \tfrac12 \|u - w_g\|^2 + t\, r_g(\|u\|)`, keeps the direction of :math:`w_g`; its
    length is that of :class:`~torchreg.MCP`. For :math:`t < \gamma` that is firm thresholding, else hard thresholding.
    The penalty is not convex. The strength is not a factor of the penalty.

    Args:
        strength: ``s``, finite and not negative.
        gamma: :math:`\gamma > 0`, how slowly the slope falls; as for :class:`~torchreg.MCP`.
        groups: as for :class:`~torchreg.GroupLasso`.

    Raises:
        ValueError: ``gamma`` is not positive and finite, or ``groups`` do not fit the weight.

    Example:
        >>> penalty = GroupMCP(1.0, gamma=3.0)
        >>> penalty.prox(torch.tensor([[6.0, 8.0], [1.2, 1.6], [0.3, 0.4]]), step=1.0)
        tensor([[6.0000, 8.0000],
                [0.5272, 0.7029],
                [0.0000, 0.0000]])

    References:
        Patrick Breheny, Jian Huang, "Group descent algorithms for nonconvex penalized linear and logistic regression
        models with grouped predictors", Statistics and Computing, 2015. Jian Huang, Patrick Breheny, Shuangge Ma, "A
        Selective Review of Group Selection in High-Dimensional Models", Statistical Science, 2012.
    """

    gamma: float = 3.0
    groups: Groups = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("gamma", "positive and finite", lambda gamma: 0 < gamma < math.inf)

    @property
    def _of_each(self) -> Magnitudes:
        return MCP(self.strength, self.gamma)


@final
@dataclass(frozen=True, repr=False, eq=False)
class GroupSCAD(ByRootMeanSquare):
    r"""The group SCAD: a group lasso for small groups, which fades out and does not pull large groups at all.

    .. math:: R(w) = \sum_g r_g(\|w_g\|_2), \qquad r_g(0) = 0, \qquad
              r_g'(u) = \begin{cases} s_g & u \le s_g \\ (a s_g - u) / (a - 1) & s_g < u \le a s_g \\
              0 & u > a s_g \end{cases}, \qquad s_g = s \sqrt{n_g}

    where :math:`n_g` is the size of group :math:`g`. The proximal operator keeps the direction of :math:`w_g`; its
    length is that of :class:`~torchreg.SCAD`. The penalty is not convex. The strength is not a factor of the penalty.

    Args:
        strength: ``s``, finite and not negative.
        a: the length, in units of :math:`s_g`, from which the slope is 0; above 2, by default 3.7.
        groups: as for :class:`~torchreg.GroupLasso`.

    Raises:
        ValueError: ``a`` is not above 2 and finite, or ``groups`` do not fit the weight.

    Example:
        >>> penalty = GroupSCAD(1.0)
        >>> penalty.prox(torch.tensor([[6.0, 8.0], [1.2, 1.6], [0.3, 0.4]]), step=1.0)
        tensor([[6.0000, 8.0000],
                [0.3515, 0.4686],
                [0.0000, 0.0000]])

    References:
        Patrick Breheny, Jian Huang, "Group descent algorithms for nonconvex penalized linear and logistic regression
        models with grouped predictors", Statistics and Computing, 2015. Lifeng Wang, Guang Chen, Hongzhe Li, "Group
        SCAD Regression Analysis for Microarray Time Course Gene Expression Data", Bioinformatics, 2007.
    """

    a: float = 3.7
    groups: Groups = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("a", "above 2 and finite", lambda a: 2 < a < math.inf)

    @property
    def _of_each(self) -> Magnitudes:
        return SCAD(self.strength, self.a)


def _means(part: Part) -> Tensor:
    """The root mean square of each group, (groups, 1)."""
    return f.row_norms(part.rows) / _root(part)
