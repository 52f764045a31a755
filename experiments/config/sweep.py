"""The table [sweep]: the keys of a search and their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .names import folder_name, slug, text_of
from .sections import Component, Section, Size, Tree


class Dimension(Section):
    """The values of a swept key: ``values``, or a range from ``low`` to ``high``; with ``count`` a grid in it."""

    values: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] | None = None
    low: int | float | None = None  # two whole numbers make a range of whole numbers
    high: int | float | None = None
    log: bool = False
    count: Annotated[int, Field(ge=2, le=10_000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _list_or_range(cls, given: Any) -> Any:
        if isinstance(given, (list, tuple)):
            return {"values": given}
        if not isinstance(given, dict):
            raise ValueError("must be a list of values or a range, such as { low = 1e-4, high = 1e-1, log = true }")
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Dimension:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log or self.count is not None:
                raise ValueError("must be a list of values or a range, not both")
            _check_distinct([text_of(value) for value in self.values])
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("low and high must be given, and low be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low must be greater than 0 where log = true")
        _check_distinct([text_of(value) for value in self.finite or ()])
        return self

    @property
    def is_whole(self) -> bool:
        """Whether this is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def finite(self) -> tuple[Any, ...] | None:
        """All values in order; None for a range without a count."""
        if self.values is not None or self.count is None:
            return self.values
        assert self.low is not None
        assert self.high is not None
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        inner = [low + (high - low) * i / (self.count - 1) for i in range(1, self.count - 1)]
        inner = [math.exp(value) if self.log else value for value in inner]
        # Six digits: a strength of 0.0316228 can be read, and typed into another study.
        middle = [round(value) if self.is_whole else float(f"{value:.6g}") for value in inner]
        return (self.low, *middle, self.high)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check before a search: all of them, or the ends of a range."""
        return self.finite or (self.low, self.high)


class Sweep(Section):
    """A search over keys of a study, with a sampler of ``optuna.samplers`` and a pruner of ``optuna.pruners``."""

    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    sampler: Component | None = None  # None: a grid if every key has a finite list of values, else TPESampler
    pruner: Component | None = None
    trials: Size | None = None  # None for a grid: all its points
    metric: Literal["valid_error", "valid_loss"] = "valid_error"  # at the end of a run; the mean over seeds
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # the sampler's
    arms: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None  # the searched ones; None: all

    @model_validator(mode="after")
    def _sampled(self) -> Sweep:
        endless = [key for key, dimension in self.space.items() if dimension.finite is None]
        if self.is_grid and endless:
            raise ValueError(f"a grid needs a list of values, or a range with a count, for {', '.join(endless)}")
        points = math.prod(len(dimension.finite or ()) for dimension in self.space.values())
        if self.is_grid and self.trials not in (None, points):
            raise ValueError(f"trials must be left out for a grid, whose {points} points are all tried")
        if not self.is_grid and self.trials is None:
            raise ValueError("trials must be the number of points to try")
        return self

    @property
    def is_grid(self) -> bool:
        """Whether all points of a grid are tried."""
        if self.sampler is None:
            return all(dimension.finite is not None for dimension in self.space.values())
        return self.sampler.name == "GridSampler"

    @property
    def sampler_name(self) -> str:
        """The sampler if the study names none."""
        return "GridSampler" if self.is_grid else "TPESampler"

    @property
    def points(self) -> int:
        """The number of points that are tried for an arm."""
        return self.trials or math.prod(len(dimension.finite or ()) for dimension in self.space.values())

    @property
    def probes(self) -> list[Tree]:
        """Points that together contain every value of every key, or the ends of its range."""
        first = {key: dimension.ends[0] for key, dimension in self.space.items()}
        return [first] + [
            {**first, key: value} for key, dimension in self.space.items() for value in dimension.ends[1:]
        ]


def _check_distinct(names: Sequence[str]) -> None:
    folders = [folder_name(slug(name)).casefold() for name in names]
    for name in names:
        if folders.count(folder_name(slug(name)).casefold()) > 1:
            raise ValueError(f"must be distinct, {name} has the folder of another value")
