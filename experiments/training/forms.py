"""The form of what a record holds, so that a file that was altered is told, and not met as an error elsewhere."""

from __future__ import annotations

from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from .files import damaged, decompressed

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class Figures(_Form):
    """An epoch in a history. An error is a share, or of a regression any size."""

    epoch: Annotated[int, Field(ge=1)]
    task: Literal["classes", "regression"] = "classes"
    train_loss: float
    train_error: Size
    valid_loss: float
    valid_error: Size
    test_loss: float
    test_error: Size
    penalty: dict[str, float]
    metrics: dict[Literal["valid", "test"], dict[str, float | None]] = {}
    strengths: dict[str, Annotated[float, Field(gt=0)]] = {}
    tasks: dict[Literal["valid", "test"], list[Share]] = {}  # the errors on each task of a continual study

    @model_validator(mode="after")
    def _shares(self) -> Figures:
        if self.task == "classes" and max(self.train_error, self.valid_error, self.test_error) > 1:
            raise ValueError("the errors of classes must be shares")
        return self


class _Histogram(_Form):
    edges: list[float]
    shares: list[Size]
    below: Share
    above: Share

    @model_validator(mode="after")
    def _one_more(self) -> _Histogram:
        if len(self.edges) != len(self.shares) + 1:
            raise ValueError("there must be one edge more than shares")
        return self


class _Bins(_Form):
    count: list[Count]
    correct: list[Count]
    confidence: list[Size]

    @model_validator(mode="after")
    def _as_many(self) -> _Bins:
        if not len(self.count) == len(self.correct) == len(self.confidence):
            raise ValueError("there must be as many figures of each kind")
        return self


class _Outcomes(_Form):
    """Of classes ``wrong`` and, except in earlier versions and of validation examples, the rest; or ``values``."""

    count: Annotated[int, Field(ge=1)]
    wrong: str | None = None
    classes: Annotated[int, Field(ge=1, le=2**16)] | None = None
    true: str | None = None
    predicted: str | None = None
    confidence: str | None = None
    bins: _Bins | None = None
    values: str | None = None

    @model_validator(mode="after")
    def _one_for_each(self) -> _Outcomes:
        more = (self.classes, self.predicted, self.confidence, self.bins)
        kinds = {
            "wrong": self.wrong is not None and self.values is None and self.true is None and more == (None,) * 4,
            "classes": self.wrong is not None and self.values is None and None not in (self.true, *more),
            "values": self.wrong is None and None not in (self.values, self.true) and more == (None,) * 4,
        }
        if not any(kinds.values()):
            raise ValueError("some keys are missing")
        if self.wrong is not None and len(b64decode(self.wrong, validate=True)) != -(-self.count // 8):
            raise ValueError("there must be a bit for each example")
        kind = "<f4" if kinds["values"] else "u1" if (self.classes or 0) <= 256 else "<u2"
        for text in (self.true, self.predicted, self.values):
            if text is not None:
                found = np.frombuffer(decompressed(text, np.dtype(kind).itemsize * self.count), kind)
                if not np.isfinite(found).all() or (self.classes is not None and found.max() >= self.classes):
                    raise ValueError("there must be a class or a number for each example")
        if self.confidence is not None:
            decompressed(self.confidence, self.count)
        if self.bins is not None and sum(self.bins.count) != self.count:
            raise ValueError("each example must be in a bin")
        return self


class _Examples(_Form):
    train: Count
    valid: Count
    test: Count


class _Finished(Figures):
    status: Literal["done", "pruned"]
    epochs: Annotated[int, Field(ge=1)]
    norms: dict[str, Size]
    sparsity: dict[str, Share]
    compression: dict[str, float | None] = {}
    zeros: Share
    histogram: _Histogram
    sha256: str
    stack: Annotated[int, Field(ge=2)] | None = None  # the number of runs that were trained as one; None: alone
    outcomes: dict[Literal["valid", "test"], _Outcomes] = {}
    examples: _Examples | None = None  # earlier versions wrote none
    seconds: Size
    files: dict[str, str] = {}


class _Broken(_Form):
    status: Literal["diverged", "failed"]
    reason: str
    stack: Annotated[int, Field(ge=2)] | None = None
    seconds: Size
    files: dict[str, str] = {}


class _Ask(_Form):
    arm: str
    event: Literal["ask"]
    number: Count
    values: dict[str, Any]
    checksum: str = ""


class _Report(_Form):
    arm: str
    event: Literal["report"]
    number: Count
    step: Count
    value: float
    checksum: str = ""


class _Tell(_Form):
    arm: str
    event: Literal["tell"]
    number: Count
    status: Literal["done", "pruned", "diverged"]
    value: float | None
    checksum: str = ""


Result = Annotated[_Finished | _Broken, Field(discriminator="status")]
Event = Annotated[_Ask | _Report | _Tell, Field(discriminator="event")]
Environments = Annotated[list[dict[str, str | int | None]], Field(min_length=1)]


def check_form(form: Any, tree: Any, path: Path) -> Any:
    """The tree of a record's file, if it has the form."""
    try:
        _adapter(form).validate_python(tree, strict=True)
    except ValidationError:
        raise damaged(path) from None
    return tree


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)
