"""The penalty of each parameter of a model, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchreg.ensemble.stacked import Stacked
from torchreg.functional.sharding import is_sharded
from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.penalties.constraints import Constraint
from torchreg.penalties.effective import Effective
from torchreg.penalties.given import in_words
from torchreg.penalties.joint import by_whole, whole_of
from torchreg.penalties.lassonet import LassoNet
from torchreg.penalties.members import bound_by_member, member_of
from torchreg.penalties.reference import Anchored
from torchreg.penalties.weighted import Weighted
from torchreg.selection.computed import ComputedWeight
from torchreg.selection.effective import Called
from torchreg.selection.modules import kind_of, listed
from torchreg.selection.parameters import ComputedInfo, ParamInfo, each_parameter
from torchreg.selection.selectors import Selector, check_patterns


@dataclass(frozen=True, eq=False)
class Assignment:
    """One parameter of the model with its penalty, or with the reason why it has none.

    Args:
        places: where the parameter is in the model; several places if it is tied.
        penalty: the penalty that the user gave.
        acting: the penalty bound to this parameter, with its groups or its reference.
        reason: why there is no penalty.
    """

    places: tuple[ParamInfo, ...]
    penalty: Penalty | None = None
    acting: Penalty | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        return self.places[0].name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(place.name for place in self.places)

    @property
    def param(self) -> nn.Parameter:
        """The parameter; of a weight that its layer computes, the weight now, differentiable."""
        return self.places[0].param

    @property
    def computed(self) -> ComputedWeight | None:
        """How the layer computes the weight, as parametrizations do; None for an ordinary parameter."""
        return self.places[0]._computed

    @property
    def is_effective(self) -> bool:
        """Whether it is what a user's function computes, and no weight of a layer."""
        return self.computed is not None and isinstance(self.computed.compute, Called)

    @property
    def stored(self) -> tuple[nn.Parameter, ...]:
        """What an optimizer holds: the parameter itself, or those that the weight is computed from."""
        return (self.param,) if self.computed is None else self.computed.stored

    @property
    def key(self) -> nn.Parameter | str:
        """The parameter itself, or the name of a weight that its layer computes."""
        return self.param if self.computed is None else self.name

    @property
    def terms(self) -> tuple[Penalty, ...]:
        return () if self.penalty is None else self.penalty.terms

    @property
    def is_penalized(self) -> bool:
        """Whether the parameter has a penalty and is not frozen now."""
        return self.penalty is not None and self._is_trained

    @property
    def _is_trained(self) -> bool:
        return any(param.requires_grad for param in self.stored)

    @property
    def status(self) -> str:
        if self.penalty is None:
            return f"- {self.reason}"
        if not self._is_trained:
            return "- frozen"
        others = ", ".join(self.names[1:])
        by = f" (computed by {self.computed.how})" if self.computed is not None else ""
        return repr(self.penalty) + by + (f" (tied: {others})" if others else "")


def _no_pattern(key: object) -> str:
    """The key of a dict of penalties in words, and what to write instead."""
    if isinstance(key, Selector):
        return "a selector: make a Regularizer for each, with it as select"
    if isinstance(key, type):
        advice = f"make a Regularizer for each kind of module, with select=in_modules(nn.{key.__name__})"
        return f"{kind_of(key)}: {advice}"
    return kind_of(key)


def as_rules(penalty: Penalty | Mapping[str, Penalty], mode: str) -> Mapping[str, Penalty]:
    """A dict of name patterns to penalties; a single penalty gets the pattern ``"*"``.

    Raises:
        TypeError: one of the values is no penalty.
        ValueError: the dict is empty, a pattern is no string, a penalty has no proximal operator in mode "prox", or is
            a constraint in another mode.
    """
    rules = penalty if isinstance(penalty, Mapping) else {"*": penalty}
    keys: list[object] = list(rules)
    for key in keys:
        if not isinstance(key, str):
            raise ValueError(
                f"Regularizer: the keys of a dict of penalties are name patterns, such as '0.*', got {_no_pattern(key)}"
            )
    if not rules:
        raise ValueError("Regularizer: a dict of penalties must have name patterns, such as '0.*', got an empty dict")
    for pattern, rule in rules.items():
        if not isinstance(rule, Penalty):
            where = f" for {pattern!r}" if rules is penalty else ""
            raise TypeError(f"Regularizer: penalty must be a Penalty such as L2(1e-4){where}, got {in_words(rule)}")
        if isinstance(rule, Effective):
            _check_effective(rule, rules, mode)
        if not rule._selects_itself and any(term._selects_itself for term in rule.terms):
            raise ValueError(
                f"Regularizer: a penalty that selects its parameters itself must not be part of a sum, got {rule!r}: "
                "make one Regularizer for each term"
            )
        if len(rule.terms) > 1 and any(whole_of(term) for term in rule.terms):
            raise ValueError(
                f"Regularizer: what acts on several weights together must not be part of a sum, got {rule!r}: make one "
                "Regularizer for each term"
            )
        if mode == "prox" and not isinstance(rule, ProximalPenalty):
            advice = "attach one Regularizer for each term" if len(rule.terms) > 1 else "use mode 'grad' or 'loss'"
            raise ValueError(
                f"Regularizer: mode 'prox' needs a penalty with a proximal operator, {rule!r} has none: {advice}"
            )
        if mode != "prox" and any(isinstance(term, Constraint | LassoNet) for term in rule.terms):
            raise ValueError(
                f"Regularizer: a constraint is a projection after the step, {rule!r} cannot act in mode {mode!r}: "
                "use mode 'prox'"
            )
    return rules


def _check_effective(rule: Effective, rules: Mapping[str, Penalty], mode: str) -> None:
    if list(rules) != ["*"]:
        raise ValueError(
            f"Regularizer: a dict must not hold {rule!r}, which says itself what is penalized, got the patterns "
            f"{listed(list(rules))}: make one Regularizer for it, without a pattern"
        )
    if mode not in ("loss", "grad"):
        raise ValueError(
            f"Regularizer: mode {mode!r} changes stored tensors, but the weight of {rule!r} is a function of them: use "
            "mode 'grad' or 'loss'"
        )


def assign(model: nn.Module, rules: Mapping[str, Penalty], select: Selector, mode: str) -> list[Assignment]:
    """An assignment for each parameter of the model. The first rule (name pattern to penalty) that matches is used.

    Raises:
        ValueError: nothing is selected, a rule matches no parameter, a parameter is lazy or sparse, a penalty does not
            fit its parameter, or the mode cannot change a weight because its layer computes it.
    """
    if isinstance(model, Stacked) and any(isinstance(rule, Effective) for rule in rules.values()):
        raise ValueError(
            "Regularizer: Effective cannot act on a stack of models, whose modules have no weights of their own: use "
            "it on each of its members()"
        )
    if any(isinstance(module, Stacked) for module in model.modules() if module is not model):
        raise ValueError(f"Regularizer: model must be the stack itself, got a {type(model).__name__} that holds one")
    assignments = assign_each(model, rules, select, mode)
    names = [name for a in assignments for name in a.names]
    if names:
        check_patterns("Regularizer", rules, names)
    if all(a.penalty is None for a in assignments):
        chosen = [a for a in assignments if not (a.reason or "").startswith("not named ")]
        found, advice = listed([f"{a.name} ({a.reason})" for a in chosen]), "select=everything lifts exemptions"
        if assignments and not chosen:
            found = f"{listed(names, 6)}, {assignments[0].reason}"
            advice = "a pattern matches whole names, as '*.weight' does"
        if any(rule._selects_itself for rule in rules.values()):
            advice = f"{listed(list(map(repr, rules.values())))} selects its parameters itself"
        raise ValueError(f"Regularizer: select must choose at least one parameter, got none of {found}: {advice}")
    check_patterns("Regularizer", select, names, " of select")
    return assignments


def assign_each(model: nn.Module, rules: Mapping[str, Penalty], select: Selector, mode: str) -> list[Assignment]:
    """:func:`assign` for a model that may have nothing to penalize."""
    members = len(model) if isinstance(model, Stacked) else None
    first = next(iter(rules.values()))
    effective: list[list[ParamInfo]] = (
        [[place] for place in first._weights_of(model)] if isinstance(first, Effective) else []
    )
    places = [*effective, *each_parameter(model, members)]
    each = [_assigned(tuple(own), rules, select, members) for own in places]
    if effective:
        through = {param: a.name for a in each if a.is_effective for param in a.stored}
        each = [_passing_through(a, through) for a in each]
    for assignment in each:
        _check_computed(assignment, mode)
        for place in assignment.places:
            if isinstance(place, ComputedInfo):
                place.release()
    _check_companions(each)
    _check_joint(each)
    return each


def _passing_through(assignment: Assignment, through: Mapping[nn.Parameter, str]) -> Assignment:
    """The assignment, which says which effective weight the parameter is a part of."""
    names = [through[param] for param in assignment.stored if param in through]
    is_part = names and not assignment.is_effective
    return replace(assignment, reason=f"acts through {names[0]}") if is_part else assignment


def _check_computed(assignment: Assignment, mode: str) -> None:
    """Raises ``ValueError`` if the mode would have to change a weight that its layer computes.

    Modes "decoupled" and "prox" change what is stored. That is right if the stored tensor is the weight; or the weight
    with some elements set to zero, as the masks of pruning do it, and the penalty a sum over the elements.
    """
    computed, penalty = assignment.computed, assignment.penalty
    if computed is None or penalty is None or not assignment.is_penalized or mode in ("loss", "grad"):
        return
    kept = computed.kept()
    if kept is None or not (penalty.is_separable or bool(kept.all())):
        raise ValueError(
            f"Regularizer: mode {mode!r} changes stored tensors, but {assignment.name} is computed from "
            f"{' and '.join(computed.originals) or 'a buffer'} by the parametrization {computed.how}: use mode 'grad' "
            f"or 'loss', exempt {assignment.name} with select, or remove the parametrization"
        )


def _check_companions(assignments: Sequence[Assignment]) -> None:
    """Raises ``ValueError`` if a penalty depends on several parameters and they do not all have it."""
    penalties: dict[object, Penalty | None] = {a.key: a.penalty for a in assignments}
    for assignment in assignments:
        for other in assignment.acting._companions if assignment.acting is not None else ():
            if penalties.get(other) != assignment.penalty:
                raise ValueError(
                    f"Regularizer: {assignment.penalty!r} on {assignment.name} is a function of its layer's other "
                    f"parameters, which have {penalties.get(other)!r}: match them all with one pattern"
                )


def _check_joint(assignments: Sequence[Assignment]) -> None:
    """Raises ``ValueError`` if a penalty on several weights does not fit them."""
    acting = [(a.acting, a) for a in assignments if a.acting is not None]
    for whole, parts in by_whole(acting).items():
        names = listed([a.name for _, a in parts])
        whole._check_together([part for part, _ in parts], [a.param for _, a in parts], names)


def _assigned(
    places: tuple[ParamInfo, ...], rules: Mapping[str, Penalty], select: Selector, members: int | None
) -> Assignment:
    name, param = places[0].name, places[0].param.detach() if places[0]._computed else places[0].param
    if is_lazy(param):
        raise ValueError(f"Regularizer: {name} has no shape yet: run one batch through the lazy model first")
    if not (param.is_floating_point() or param.is_complex()):
        return Assignment(places, reason=f"{str(param.dtype).removeprefix('torch.')} values")
    found = next((p for pattern, p in rules.items() if any(fnmatchcase(place.name, pattern) for place in places)), None)
    chooses = found._exempts if found is not None and found._selects_itself else select.reason
    reasons = [chooses(place if members is None else member_of(place, 0)) for place in places]
    if None not in reasons:
        return Assignment(places, reason=reasons[0])
    if param.layout != torch.strided:
        raise ValueError(
            f"Regularizer: {name} must be a dense tensor, got layout {param.layout}: exempt it with select"
        )
    if found is None:
        return Assignment(places, reason="no pattern matches")
    if isinstance(found, Effective):
        found = found.penalty
    acting = bound(found, places[reasons.index(None)], members)
    if is_sharded(param) and not acting.is_separable and any(map(_has_tensors, acting.terms)):
        raise ValueError(
            f"Regularizer: {name} is sharded over processes, where a penalty with weights or a reference can be added "
            f"to separable penalties only, got {found!r}: make one Regularizer for each term"
        )
    return Assignment(places, found, acting)


def _has_tensors(term: Penalty) -> bool:
    """Whether the term has a tensor of the parameter's shape."""
    return isinstance(term, Anchored) or (isinstance(term, Weighted) and term.weights is not None)


def bound(penalty: Penalty, place: ParamInfo, members: int | None) -> Penalty:
    """The penalty for the parameter at a place; of a stack with so many members, for the parameter of each."""
    return penalty.bind(place) if members is None else bound_by_member(penalty, place, members)
