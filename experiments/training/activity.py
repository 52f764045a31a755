"""A penalty on activities, as the loop and the record need it."""

from __future__ import annotations

from torch import Tensor

from torchreg import ActivityRegularizer

from . import ranks


class Activity:
    """A penalty on the outputs of modules. What is recorded is its mean over the steps since it was last recorded."""

    def __init__(self, regularizer: ActivityRegularizer) -> None:
        self._regularizer = regularizer
        self._totals: dict[str, Tensor] = {}
        self._steps = 0

    def value(self, weight: float = 1.0) -> Tensor:
        """The penalty on the last forward pass, to be added to its loss.

        ``weight`` is what the pass counts in the mean over those of several processes.
        """
        terms = self._regularizer.terms()
        for kind, term in terms.items():
            before = self._totals.get(kind)
            counted = term.detach() if weight == 1 else weight * term.detach()
            self._totals[kind] = counted if before is None else before + counted
        self._steps += 1
        first, *others = terms.values()
        return sum(others, start=first)

    def read(self) -> dict[str, float]:
        """The mean of each kind since the last call."""
        totals = {kind: ranks.mean(total).item() for kind, total in self._totals.items()}
        means = {f"{kind} of activities": total / self._steps for kind, total in totals.items()}
        self._totals, self._steps = {}, 0
        return means
