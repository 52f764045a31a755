"""A penalty on activities, as the loop and the record need it."""

from __future__ import annotations

from torch import Tensor

from torchreg import ActivityRegularizer


class Activity:
    """A penalty on the outputs of modules. What is recorded is its mean over the steps since it was last recorded."""

    def __init__(self, regularizer: ActivityRegularizer) -> None:
        self._regularizer = regularizer
        self._totals: dict[str, Tensor] = {}
        self._steps = 0

    def value(self) -> Tensor:
        """The penalty on the last forward pass, to be added to its loss."""
        terms = self._regularizer.terms()
        for kind, term in terms.items():
            before = self._totals.get(kind)
            self._totals[kind] = term.detach() if before is None else before + term.detach()
        self._steps += 1
        first, *others = terms.values()
        return sum(others, start=first)

    def read(self) -> dict[str, float]:
        """The mean of each kind since the last call."""
        means = {f"{kind} of activities": total.item() / self._steps for kind, total in self._totals.items()}
        self._totals, self._steps = {}, 0
        return means
