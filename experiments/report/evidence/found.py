"""What a measure finds: checks, tables and pictures, in the form in which a record holds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..numbers import plus_minus
from ..statistics import Mean

Scalar = str | int | float | bool | None


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class Check(_Form):
    """What must hold, and whether it does."""

    must: str
    ours: str
    value: float | None = None
    se: float | None = None
    is_reached: bool | None = None  # None: it cannot be told yet


class Figure(_Form):
    """A mean over seeds with its standard error, as a table shows it."""

    mean: float
    se: float | None
    digits: Annotated[int, Field(ge=0, le=9)]

    def __str__(self) -> str:
        return plus_minus(Mean(self.mean, self.se), self.digits)


class Table(_Form):
    """Rows of names and figures."""

    title: str
    columns: list[str]
    rows: list[list[Figure | str]]


class Picture(_Form):
    """What a picture is drawn from."""

    kind: Literal["peak", "onset", "slope", "tuned", "finals"]
    shows: str  # for those who do not see it
    x: str = ""  # the name of its horizontal axis, where the study decides
    rows: list[dict[str, Scalar]]
    marks: dict[str, float] = {}  # such as a level to draw


class Found(_Form):
    """The result of one measure."""

    checks: list[Check]
    tables: list[Table]
    picture: Picture


def figure(value: Mean | None, digits: int, factor: float = 1.0) -> Figure | str:
    """A mean, times a factor, with the digits that its table has."""
    if value is None:
        return "-"
    keep = digits + 2
    se = None if value.se is None else round(factor * value.se, keep)
    return Figure(mean=round(factor * value.mean, keep), se=se, digits=min(digits, 9))
