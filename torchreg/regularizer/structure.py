"""Whether a model still has the parameters that a regularizer knows, and what to penalize when it has others."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import is_
from typing import TypeGuard

from torch import Tensor, nn

from torchreg.functional.sharding import is_sharded
from torchreg.penalties import Penalty
from torchreg.regularizer.assignment import Assignment, assign_each
from torchreg.selection.modules import listed
from torchreg.selection.selectors import Selector


class Structure:
    """The modules and parameters of a model at one time.

    Looking for a change compares identities only: about 20 microseconds for a ResNet-50.

    Args:
        model: any module.
        computing: its layers that compute a weight; there the names count too, as ``prune.remove`` only changes a name.
    """

    def __init__(self, model: nn.Module, computing: Iterable[nn.Module] = ()) -> None:
        dicts = [own for module in list(model.modules()) for own in (module._modules, module._parameters)]
        self._empty = [own for own in dicts if not own]
        # Views of the dicts, then an element that differs from all others, so that neither can be longer.
        names = [layer._parameters.keys() for layer in computing]
        self._now = [*names, *(own.values() for own in dicts if own), (self,)]
        self._held = list(chain.from_iterable(self._now))

    def is_unchanged(self) -> bool:
        return not any(self._empty) and all(map(is_, chain.from_iterable(self._now), self._held))

    def given(self) -> dict[Tensor, Tensor]:
        """The tensors that ``torch.func.functional_call`` has put in place of parameters.

        A module holds tensors that are no parameters only during such a call.
        """
        pairs = zip(self._held, chain.from_iterable(self._now), strict=False)
        return {was: now for was, now in pairs if isinstance(was, nn.Parameter) and _is_bare(now)}


def looked_again(
    model: nn.Module, known: Sequence[Assignment], rules: Mapping[str, Penalty], select: Selector | None, mode: str
) -> Sequence[Assignment]:
    """The assignments of a model whose modules or parameters have changed.

    New parameters are assigned as when the regularizer was made; penalties keep their references.

    Raises:
        ValueError: the model no longer holds a penalized parameter, or a new parameter cannot have its penalty.
    """
    held = set(model.parameters())
    if any(is_sharded(param) and param not in held for a in known for param in a.stored):
        return known  # fully_shard has gathered them for a while
    replaced = [a.name for a in known if a.is_penalized and not held.issuperset(a.stored)]
    if replaced:
        raise ValueError(
            f"Regularizer: the model must hold the parameters it had, {listed(replaced)} were replaced: make the "
            "Regularizer and the optimizer when the model has its final parameters, as after fully_shard(model)"
        )
    if select is None:
        before = {param for a in known for param in a.stored}
        new = [name for name, param in model.named_parameters() if param not in before]
        if new:
            raise ValueError(
                f"Regularizer: {listed(new)} came into the model, and the selector was not saved with the "
                "Regularizer: make a new one"
            )
        return known
    bound = {place: a for a in known for place in _keys(a)}
    return [_as_before(a, bound) for a in assign_each(model, rules, select, mode)]


def _is_bare(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


def can_be_pickled(select: Selector | None) -> bool:
    """Whether the selector can be saved with a regularizer; a lambda cannot."""
    try:
        pickle.dumps(select)
    except Exception:  # whatever the attributes of a selector raise
        return False
    return True


def _keys(assignment: Assignment) -> list[object]:
    """What a parameter is known by: itself, or the place of a weight that its layer computes."""
    if assignment.computed is None:
        return [assignment.param]
    return [*assignment.stored, (assignment.computed.layer, assignment.computed.own_name)]


def _as_before(assignment: Assignment, bound: Mapping[object, Assignment]) -> Assignment:
    """The assignment with the penalty that was bound before, such as its reference."""
    before = next((bound[key] for key in _keys(assignment) if key in bound), None)
    if before is None or before.acting is None or before.penalty != assignment.penalty:
        return assignment
    return replace(assignment, acting=before.acting)
