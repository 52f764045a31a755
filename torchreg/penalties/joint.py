"""Penalties on several weights at once, such as a bound on the number of weights in a whole model that are not zero."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self, TypeVar

from torch import Tensor

from torchreg.penalties.base import Penalty, ProximalPenalty

Row = TypeVar("Row")


class Joint(ProximalPenalty):
    """A penalty or constraint on each weight alone or, if it is ``together``, on all weights of a regularizer at once.

    Bound to a parameter it is a part of the whole: of the penalty that the user gave, which does what follows with
    all parts and their weights.
    """

    together: bool

    @property
    def _whole(self) -> Joint | None:
        """The penalty on all weights that this one is a part of; None if it acts on its weight alone."""
        whole: Joint | None = vars(self).get("_given", self if self.together else None)
        return whole

    def _as_part_of(self, whole: Joint) -> Self:
        if whole is not self:
            vars(self)["_given"] = vars(whole).get("_given", whole)
        return self

    @abstractmethod
    def _check_together(self, each: Sequence[Joint], weights: Sequence[Tensor], names: str) -> None:
        """Raises ``ValueError`` if the penalty does not fit the weights, which are those of the parts ``each``."""

    @abstractmethod
    def _value_together(
        self, each: Sequence[Joint], weights: Sequence[Tensor], scales: Sequence[float | Tensor]
    ) -> Tensor:
        """The value; of a constraint 0 if the weights are in the set, else infinite. NaN for NaN."""

    @abstractmethod
    def _prox_together_(
        self,
        each: Sequence[Joint],
        weights: Sequence[Tensor],
        steps: Sequence[float | Tensor],
        are_moved: Sequence[bool],
    ) -> None:
        """Moves the weights to the proximal point, in place: to its part, those that ``are_moved``."""


def whole_of(penalty: Penalty | None) -> Joint | None:
    """The penalty on several weights that the penalty is a part of, if any."""
    return penalty._whole if isinstance(penalty, Joint) else None


def by_whole(rows: Iterable[tuple[Penalty, Row]]) -> dict[Joint, list[tuple[Joint, Row]]]:
    """The rows of penalties that are parts of one on several weights, for each of these.

    Example:
        >>> from torchreg import L1
        >>> from torchreg.penalties.counts import Sparsest
        >>> by_whole([(L1(0.1), "a"), (Sparsest(0.5, together=True), "b")])
        {Sparsest(share=0.5, together=True): [(Sparsest(share=0.5, together=True), 'b')]}
    """
    found: dict[Joint, list[tuple[Joint, Row]]] = {}
    for penalty, row in rows:
        whole = whole_of(penalty)
        if whole is not None:
            assert isinstance(penalty, Joint)
            found.setdefault(whole, []).append((penalty, row))
    return found
