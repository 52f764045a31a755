"""What a regularizer acts on: the parameters of a model and their penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from torchreg.penalties import Penalty, Term
from torchreg.penalties.joint import whole_of
from torchreg.regularizer.assignment import Assignment, assign
from torchreg.regularizer.structure import Structure, can_be_pickled, looked_again
from torchreg.regularizer.taken import with_taken
from torchreg.regularizer.value import FewValues
from torchreg.selection.selectors import Selector

Rules = Mapping[str, Penalty]
Trained = tuple[Penalty, Tensor, "nn.Parameter | str"]  # a penalty, its weight, and the key of its scale


class Penalized:
    """The parameters of a model with their penalties, as long as the model does not change.

    Args:
        model: the model.
        rules: name patterns and their penalties.
        select: which parameters.
        mode: the regularizer's.
        entries: what is known of each parameter; None to assign the penalties.

    Attributes:
        entries: each parameter once, with its penalty or the reason why it has none.
        penalties: the penalty of each parameter that a layer uses as it is.
        computed: the weights that a layer computes from others.
        acting: the penalty of each parameter that a step changes.
        has_joint: whether a penalty acts on several weights at once.
        has_ridge: whether weight decay beside a penalty would decay twice.
        few: the value, if it is that of few weights.

    Raises:
        ValueError: nothing is selected, or a parameter cannot have its penalty.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Rules,
        select: Selector | None,
        mode: str,
        entries: Sequence[Assignment] | None = None,
    ) -> None:
        self._made_of = model, rules, mode
        self._select = select
        if entries is None:
            assert select is not None
            entries = assign(model, rules, select, mode)
        self.entries = tuple(entries)
        self.penalties = {a.param: a.acting for a in self.entries if a.acting is not None and a.computed is None}
        self.computed = tuple(a for a in self.entries if a.acting is not None and a.computed is not None)
        self.has_ridge = any(isinstance(term, Term) and term._ridge > 0 for a in self.entries for term in a.terms)
        self.has_joint = any(whole_of(a.acting) for a in self.entries)
        layers = [a.computed.layer for a in self.entries if a.computed is not None]
        self._structure: Structure | None = Structure(model, layers)
        self.acting = self.penalties
        self._unchecked: tuple[Assignment, ...] = ()  # frozen, so that it does not matter whether the mode fits
        if self.computed and mode in ("decoupled", "prox"):  # they act on what is stored
            masked = [a for a in self.computed if a.is_penalized]
            self._unchecked = tuple(a for a in self.computed if not a.is_penalized)
            self.acting = self.penalties | {p: a.acting for a in masked if a.acting is not None for p in a.stored}
        trained = [(p, penalty) for p, penalty in self.penalties.items() if p.requires_grad]
        is_all = trained and len(trained) == len(self.penalties) and not self.computed
        self.few = FewValues.of([penalty for _, penalty in trained], [p for p, _ in trained]) if is_all else None

    def is_current(self) -> bool:
        """Whether the model's modules and parameters are those that they were."""
        is_known = self._structure is not None and self._structure.is_unchanged()
        return is_known and not any(a.is_penalized for a in self._unchecked)

    def given(self) -> Mapping[Tensor, Tensor]:
        """The tensors that ``functional_call`` has put in place of parameters, if it is running."""
        return {} if self._structure is None else self._structure.given()

    def trained(self, given: Mapping[Tensor, Tensor]) -> list[Trained]:
        """The penalties of what is not frozen; ``given`` are tensors in place of parameters."""
        plain: list[Trained] = [
            (penalty, given.get(p, p), p) for p, penalty in self.penalties.items() if p.requires_grad
        ]
        return plain + [(a.acting, a.param, a.key) for a in self.computed if a.acting is not None and a.is_penalized]

    def looked_again(self) -> Penalized:
        """The same for the model as it is now.

        Raises:
            ValueError: the model no longer holds a penalized parameter, or a new one cannot have its penalty.
        """
        model, rules, mode = self._made_of
        return self._with(looked_again(model, self.entries, rules, self._select, mode))

    def with_taken(self, saved: Mapping[str, Mapping[str, Tensor]]) -> Penalized:
        """The same with the references and weights that were saved."""
        return self._with([with_taken(a, saved) for a in self.entries])

    def _with(self, entries: Sequence[Assignment]) -> Penalized:
        model, rules, mode = self._made_of
        return Penalized(model, rules, self._select, mode, entries)

    def __getstate__(self) -> dict[str, Any]:
        select = self._select if can_be_pickled(self._select) else None  # a lambda cannot
        return self.__dict__ | {"_structure": None, "_select": select}
