"""What was given in the place of a penalty, for error messages."""

from __future__ import annotations

import inspect

from torchreg.penalties.base import Penalty
from torchreg.selection.modules import kind_of

_MOST = 80  # letters of a value that are shown


def in_words(rule: object) -> str:
    """The value in a few words, and what to write instead where that can be told."""
    if isinstance(rule, type):
        return f"{kind_of(rule)}{_call(rule)}" if issubclass(rule, Penalty) else kind_of(rule)
    if isinstance(rule, list | tuple) and rule and all(isinstance(each, Penalty) for each in rule):
        return f"{kind_of(rule)}: add penalties up, as in L1(1e-5) + L2(1e-4)"
    if not isinstance(rule, Penalty | int | float | str):
        return kind_of(rule)
    shown = repr(rule)
    return shown if len(shown) <= _MOST else f"{shown[:_MOST]}..."


def _call(penalty: type[Penalty]) -> str:
    """How to make a penalty of the class: told with a number only where that is the strength."""
    if inspect.isabstract(penalty):
        return ": give it one of its subclasses, such as L1(1e-4)"
    parameters = inspect.signature(penalty).parameters.values()
    needed = [
        each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    if needed == ["strength"]:
        return f": give it a strength, as in {penalty.__name__}(1e-4)"
    return f": call it, as in {penalty.__name__}({', '.join(needed)})"
