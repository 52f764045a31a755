"""The base classes of a study's sections."""

from __future__ import annotations

import math
from types import NoneType
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

Tree = dict[str, Any]


def amount_of(value: Any) -> Any:
    """The value itself, if it is a number of things or a share of them."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
    if not is_number and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError("must be a whole number of at least 1, or a share between 0 and 1")
    return value


Amount = Annotated[int | float, BeforeValidator(amount_of)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Strength = Annotated[float, Field(ge=0), AfterValidator(abs)]  # -0.0 is 0.0
_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=_ONE_LINE)]
Folder = Annotated[str, Field(min_length=1, pattern=_ONE_LINE)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed),
    Field(strict=False, min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]

_DEEPEST = 20  # tables and lists within each other


def fault_in(value: Any, depth: int = 0) -> tuple[str, str] | None:
    """The first value in a tree of tables and lists that a record cannot hold: its key, and what is wrong with it.

    Example:
        >>> fault_in({"optimizer": {"betas": [0.9, float("nan")]}})
        ('optimizer.betas.1', 'must be a finite number, got nan')
    """
    if depth > _DEEPEST:
        return "", f"must not be more than {_DEEPEST} tables or lists deep"
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if not str(key).isprintable():
                return repr(key), "must be a key of printable characters"
            if (found := fault_in(inner, depth + 1)) is not None:
                return ".".join(filter(None, [str(key), found[0]])), found[1]
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "", f"must be a finite number, got {value!r}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "", "must be less than 2**63 and at least -2**63"
    if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        return "", f"must be text without NUL, in UTF-8, got {value[:80]!r}"
    if not isinstance(value, (str, int, float, NoneType)):
        return "", f"must be a number, text, true or false, a list or a table, got {value}"
    return None


class Section(BaseModel):
    """A table of a study's file, without unknown keys, values of another type, or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True)


class Component(Section):
    """An object to construct: a ``name`` or a ``class = "package.module:Class"``, and the constructor's arguments."""

    model_config = ConfigDict(extra="allow")

    _sources: ClassVar[tuple[str, ...]] = ("name", "class")
    usual: ClassVar[tuple[str, ...]] = ()  # arguments that are known to belong here where they stand elsewhere

    name: str | None = None
    class_: str | None = Field(None, alias="class", pattern=r"^\w[\w.]*:\w[\w.]*$")
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> Component:
        if sum(getattr(self, {"class": "class_"}.get(key, key)) is not None for key in self._sources) != 1:
            *others, last = self._sources
            raise ValueError(f"exactly one of the keys {', '.join(others)} and {last} must be given")
        if twice := sorted(self.args.keys() & (self.model_extra or {}).keys()):
            raise ValueError(f"must not be given both in args and beside it: {', '.join(twice)}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**(self.model_extra or {}), **self.args}
