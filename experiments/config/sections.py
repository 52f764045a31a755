"""The base classes of a study's sections."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Tree = dict[str, Any]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Strength = Annotated[float, Field(ge=0), AfterValidator(abs)]  # -0.0 is 0.0
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f]+$")]


class Section(BaseModel):
    """A table of a study's file, without unknown keys, values of another type, or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True)


class Component(Section):
    """An object to construct: a ``name`` or a ``class = "package.module:Class"``, and the constructor's arguments."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    class_: str | None = Field(None, alias="class", pattern=r"^\w[\w.]*:\w[\w.]*$")
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> Component:
        if (self.name is None) == (self.class_ is None):
            raise ValueError("exactly one of the keys name and class must be given")
        if twice := sorted(self.args.keys() & (self.model_extra or {}).keys()):
            raise ValueError(f"must not be given both in args and beside it: {', '.join(twice)}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**(self.model_extra or {}), **self.args}
