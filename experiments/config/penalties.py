"""The penalties and constraints of a study."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from torchreg import penalties

from .sections import Component, Names, Section, Strength

_NAMED = {name: getattr(penalties, name) for name in penalties.__all__}
CONSTRAINTS = [name for name, it in _NAMED.items() if inspect.isclass(it) and issubclass(it, penalties.Constraint)]


def _patterns(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value)):
        raise ValueError("must be a pattern of names, or a list of them")
    return tuple(value)


Patterns = Annotated[
    str | Annotated[tuple[str, ...], Field(strict=False)],
    BeforeValidator(_patterns),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class Penalty(Component):
    """The penalty inside a proximal optimizer."""

    strength: Strength | None = None  # None only where the arm has strengths


class Regularizer(Section):
    """A penalty on parameters in a mode, a constraint on parameters, or a penalty on the outputs of modules.

    Other keys are its constructor's, such as ``l1_ratio`` or ``max_norm``.
    """

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"anyOf": [{"required": ["penalty"]}, {"required": ["activity"]}]}
    )

    penalty: str | None = None  # on parameters; or a constraint, such as "MaxNorm"
    activity: str | None = None  # on the outputs of modules
    strength: Strength | None = None  # None only of a constraint, and where the arm has strengths
    mode: Literal["loss", "grad", "decoupled", "prox"] = "loss"  # of a constraint always "prox"
    select: Patterns = "weights"  # or "everything", or patterns of names
    modules: Names | None = None  # whose outputs an activity penalty is on: patterns of names
    schedule: Component | None = None
    anchor: Literal["tasks"] | None = None  # of L2SP: the weights after each task so far; None: the first weights
    weights: Literal["fisher"] | None = None  # of L2SP at tasks: the Fisher information of each, which is EWC

    @model_validator(mode="before")
    @classmethod
    def _projects(cls, given: Any) -> Any:
        is_constraint = isinstance(given, dict) and given.get("penalty") in CONSTRAINTS
        return {"mode": "prox", **given} if is_constraint else given

    @model_validator(mode="after")
    def _consistent(self) -> Regularizer:
        if (self.penalty is None) == (self.activity is None):
            raise ValueError("exactly one of the keys penalty and activity must be given")
        if self.activity is not None:
            self._refuse("an activity penalty", mode="loss", select="weights", schedule=None, anchor=None)
            if self.modules is None:
                raise ValueError("modules must name those whose outputs are penalized, such as 'relu*'")
        elif self.modules is not None:
            raise ValueError("modules is for an activity penalty; select chooses parameters")
        if self.is_constraint:
            self._refuse(f"the constraint {self.penalty}", mode="prox", strength=None, schedule=None)
        if self.anchor == "tasks":
            if self.penalty != "L2SP":
                raise ValueError(f"anchor 'tasks' is for L2SP, whose sum over tasks is one penalty; got {self.penalty}")
            if given := {"reference", "weights"} & self.options.keys():
                raise ValueError(f"anchor 'tasks' takes {' and '.join(sorted(given))} from the tasks: remove it")
        elif self.weights is not None:
            raise ValueError("weights 'fisher' are of the tasks so far: set anchor = 'tasks', with penalty L2SP")
        return self

    def _refuse(self, what: str, **only: Any) -> None:
        for key, value in only.items():
            if getattr(self, key) != value:
                raise ValueError(f"{what} takes no {key}: remove it")

    @property
    def is_constraint(self) -> bool:
        """Whether it is a projection after each step, which has no strength."""
        return self.penalty in CONSTRAINTS

    @property
    def options(self) -> dict[str, Any]:
        """The penalty's arguments."""
        return self.model_extra or {}
