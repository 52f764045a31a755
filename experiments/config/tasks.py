"""The tasks of a continual study: parts of the classes, on which one network is trained one after another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .sections import Section

Class = Annotated[int, Field(ge=0, lt=2**31)]
_Classes = Annotated[tuple[Class, ...], Field(strict=False, min_length=1)]


class Tasks(Section):
    """Which classes belong to which task, what the network is to tell of them, and when it sees them."""

    classes: Annotated[tuple[_Classes, ...], Field(strict=False, min_length=2)]  # of each task, by their numbers from 0
    scenario: Literal["task", "domain", "class"] = "task"  # a class in the task that is told, its place, or any class
    in_turn: bool = True  # each task has its share of the epochs, one after another; false: all of them in each epoch

    @model_validator(mode="after")
    def _consistent(self) -> Tasks:
        listed = self.listed
        for number in listed:
            if listed.count(number) > 1:
                raise ValueError(f"classes must be in one task each, got {number} twice")
        sizes = [len(own) for own in self.classes]
        if self.scenario == "task" and min(sizes) < 2:
            raise ValueError(f"classes must be 2 or more in each task, which is told, got {sizes}")
        if self.scenario == "domain" and (len(set(sizes)) > 1 or sizes[0] < 2):
            raise ValueError(
                f"classes must be as many in each task, and 2 or more, got {sizes}: change them, or set "
                "scenario = 'task'"
            )
        return self

    @property
    def listed(self) -> list[int]:
        """The classes of all tasks, task by task."""
        return [number for own in self.classes for number in own]
