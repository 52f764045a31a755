"""What was given in the place of a penalty, for error messages."""

from __future__ import annotations

from torchreg.penalties.base import Penalty


def in_words(rule: object) -> str:
    """The value in a few words, and what to write instead where that can be told."""
    if isinstance(rule, type):
        advice = f": give it a strength, as in {rule.__name__}(1e-4)" if issubclass(rule, Penalty) else ""
        return f"the class {rule.__name__}{advice}"
    if isinstance(rule, list | tuple) and rule and all(isinstance(each, Penalty) for each in rule):
        return f"{kind_of(rule)}: add penalties up, as in L1(1e-5) + L2(1e-4)"
    return repr(rule) if isinstance(rule, Penalty | int | float | str) else kind_of(rule)


def kind_of(value: object) -> str:
    """The kind of a value with its article, as "a list"; the name of a class, as "the class L1"."""
    if value is None or isinstance(value, type):
        return "None" if value is None else f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"
