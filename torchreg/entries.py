"""Which parameter of a model carries which penalty, or the reason why it carries none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.selectors import ParamInfo, Selector, each_parameter


@dataclass(frozen=True, eq=False)
class Entry:
    """One parameter of the model, with the penalty it carries or the reason why it carries none."""

    names: tuple[str, ...]
    param: nn.Parameter
    penalty: Penalty | None
    reason: str | None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def terms(self) -> tuple[Penalty, ...]:
        return () if self.penalty is None else self.penalty.terms

    @property
    def is_penalized(self) -> bool:
        """Whether it carries a penalty and is not frozen at the moment."""
        return self.penalty is not None and self.param.requires_grad

    @property
    def status(self) -> str:
        if self.penalty is None:
            return f"- {self.reason}"
        if not self.param.requires_grad:
            return "- frozen"
        return repr(self.penalty) + (f" (tied: {', '.join(self.names[1:])})" if len(self.names) > 1 else "")


def as_rules(penalty: Penalty | Mapping[str, Penalty], mode: str) -> Mapping[str, Penalty]:
    """Name patterns to penalties; a single penalty is for every name.

    Raises:
        TypeError: one of them is no penalty.
        ValueError: one of them has no proximal operator, in mode "prox".
    """
    rules = penalty if isinstance(penalty, Mapping) else {"*": penalty}
    for rule in rules.values():
        if not isinstance(rule, Penalty):
            raise TypeError(f"Regularizer: penalty must be a Penalty such as L2(1e-4), got {rule!r}")
        if mode == "prox" and not isinstance(rule, ProximalPenalty):
            raise ValueError(
                f"Regularizer: mode 'prox' needs a penalty with a proximal operator, {rule!r} has none: "
                "use mode 'grad' or 'loss'"
            )
    return rules


def survey(model: nn.Module, rules: Mapping[str, Penalty], select: Selector) -> list[Entry]:
    """Each parameter of the model once; of the rules (name patterns to penalties) the first that matches is taken.

    Raises:
        ValueError: nothing is selected, a rule matches no parameter, or a parameter is lazy.
    """
    entries = [_entry(places, rules, select) for places in each_parameter(model)]
    names = [name for entry in entries for name in entry.names]
    for pattern in rules:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"Regularizer: the pattern {pattern!r} matches none of the parameters {listed(names)}")
    if all(entry.penalty is None for entry in entries):
        reasons = [f"{entry.name} ({entry.reason})" for entry in entries]
        raise ValueError(
            f"Regularizer: select must choose at least one parameter, got none of {listed(reasons)}; "
            "select=everything lifts the exemptions"
        )
    return entries


def _entry(places: list[ParamInfo], rules: Mapping[str, Penalty], select: Selector) -> Entry:
    names = tuple(place.name for place in places)
    param = places[0].param
    if is_lazy(param):
        raise ValueError(f"Regularizer: {names[0]} has no shape yet: run one batch through the lazy model first")
    reasons = [select.reason(place) for place in places]
    if None not in reasons:
        return Entry(names, param, None, reasons[0])
    for pattern, penalty in rules.items():
        if any(fnmatchcase(name, pattern) for name in names):
            return Entry(names, param, penalty, None)
    return Entry(names, param, None, "no pattern matches")


def listed(names: list[str], most: int = 12) -> str:
    """The names, or the first of many."""
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "a model without parameters"


def table(entries: Sequence[Entry]) -> str:
    """How many are penalized, and a line for each: name, shape, number of values, penalty or why it has none."""
    chosen = [e.param.numel() for e in entries if e.is_penalized]
    total = sum(e.param.numel() for e in entries)
    rows = [("parameter", "shape", "values", "penalty")]
    rows += [(e.name, " x ".join(map(str, e.param.shape)), f"{e.param.numel():,}", e.status) for e in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        [f"{len(chosen)} of {len(entries)} parameters penalized, {sum(chosen):,} of {total:,} values"]
        + [
            f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {values:>{widths[2]}}  {status}"
            for name, shape, values, status in rows
        ]
    )
