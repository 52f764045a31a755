"""References and weights that penalties have taken from a model, which a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchreg.penalties import Penalty
from torchreg.penalties.base import Sum
from torchreg.penalties.members import ByMember, by_member
from torchreg.penalties.weighted import Weighted
from torchreg.regularizer.assignment import Assignment, bound
from torchreg.selection.modules import listed

_SAVED_AS = {"reference": "references", "weights": "weights"}  # keys of a regularizer's state


def taken(assignments: Sequence[Assignment]) -> dict[str, dict[str, Tensor]]:
    """The tensors that penalties have taken from the model: references and weights, by the parameter's name.

    Weights of a term that is not the first one have its number behind the name.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for assignment in assignments:
        for i, field, tensor in _taken(assignment):
            found.setdefault(_SAVED_AS[field], {})[_key(assignment, i, field)] = tensor
    return found


def _taken(assignment: Assignment) -> Iterator[tuple[int, str, Tensor]]:
    if assignment.acting is None:
        return
    for i, (given, acting) in enumerate(zip(assignment.terms, assignment.acting.terms, strict=True)):
        for field in given._taken if isinstance(given, Weighted) else ():
            each = [getattr(own, field) for own in (acting.each if isinstance(acting, ByMember) else (acting,))]
            yield i, field, torch.stack(each) if isinstance(acting, ByMember) else each[0]


def _key(assignment: Assignment, i: int, field: str) -> str:
    return f"{assignment.name}[{i}]" if i and field == "weights" else assignment.name


def with_taken(assignment: Assignment, saved: Mapping[str, Mapping[str, Tensor]]) -> Assignment:
    """The assignment with the saved references and weights."""
    acting, fields = assignment.acting, [(i, field) for i, field, _ in _taken(assignment)]
    if acting is None or not fields:
        return assignment
    members = len(acting.each) if isinstance(acting, ByMember) else None
    terms = list(acting.terms)
    for i, given in enumerate(assignment.terms):
        own: dict[str, Any] = {}
        for field in [field for number, field in fields if number == i]:
            tensors, key = saved.get(_SAVED_AS[field], {}), _key(assignment, i, field)
            if key not in tensors:
                raise ValueError(
                    f"Regularizer: state must hold the {field} of {assignment.name}, got {listed(list(tensors))}"
                )
            own[field] = {assignment.name: tensors[key]}
        if own:
            assert isinstance(given, Weighted)
            terms[i] = bound(replace(given, **own), assignment.places[0], members)
    return replace(assignment, acting=_with_terms(acting, terms))


def _with_terms(acting: Penalty, terms: Sequence[Penalty]) -> Penalty:
    if isinstance(acting, ByMember):
        own = [[term.each[m] for term in terms if isinstance(term, ByMember)] for m in range(len(acting.each))]
        return by_member([_with_terms(*pair) for pair in zip(acting.each, own, strict=True)])
    return replace(acting, _terms=tuple(terms)) if isinstance(acting, Sum) else terms[0]
