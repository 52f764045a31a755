"""What a study would do: its runs, its models, and how long it would take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from ..config import Run, Study
from ..config.sections import Tree
from ..config.toml import dumped
from ..errors import UserError, oneline
from ..training.bars import lasting
from ..training.setup import set_up
from . import plans, search, stacks
from .catalog import counts
from .rehearsal import check


@dataclass(frozen=True)
class ArmOutline:
    """An arm: its runs, the values in its model's parameters, and the time of one of its runs."""

    name: str
    runs: int
    parameters: int
    steps: int  # of a run
    seconds_per_run: float  # without early stopping; of a stack its share


@dataclass(frozen=True)
class Outline:
    """A study's arms on a device."""

    study: Study
    device: torch.device
    arms: Sequence[ArmOutline]

    @property
    def runs(self) -> int:
        return sum(arm.runs for arm in self.arms)

    @property
    def seconds(self) -> float:
        return sum(arm.runs * arm.seconds_per_run for arm in self.arms)

    def as_json(self, tree: Tree) -> str:
        """All figures, and the keys of the study."""
        figures = {"name": self.study.name, "runs": self.runs, "device": str(self.device), "seconds": self.seconds}
        return json.dumps({**figures, "arms": [asdict(arm) for arm in self.arms], "study": tree}, indent=2)

    def as_toml(self, tree: Tree) -> str:
        """The study as a TOML file of its own, which ends with comments that hold the figures."""
        rows = [("arm", "runs", "parameters", "steps", "s a run")]
        rows += [
            (arm.name, str(arm.runs), f"{arm.parameters:,}", f"{arm.steps:,}", f"{arm.seconds_per_run:.1f}")
            for arm in self.arms
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["#   " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        stops = any(run.train.early_stopping for run in self.study.runs)
        less = ", less where a run stops early or is pruned" if stops or self.study.sweep else ""
        total = f"# {self.runs} runs, about {lasting(self.seconds)} on {self.device.type}{less}"
        return "\n".join([dumped(tree), *lines, "#", f"{total}; by the first steps"])


def outline(study: Study, device: torch.device) -> Outline:
    """The arms of a study, each with the time that the first steps of its first run predict.

    Raises:
        UserError: the study could not be run.
    """
    if study.sweep is not None:
        search.check(study.sweep)
    check(study)
    runs = counts(study)
    groups = [[run] for run in study.runs] if study.sweep is not None else stacks.groups(study.runs)
    arms: dict[str, ArmOutline] = {}
    for group in groups:
        for run in group:
            if run.arm not in arms:
                arms[run.arm] = _measured(run, runs[run.arm], group, device)
    return Outline(study, device, [arms[arm] for arm in runs])


def _measured(run: Run, runs: int, group: Sequence[Run], device: torch.device) -> ArmOutline:
    try:
        setup = set_up([run], device)
        parameters = sum(parameter.numel() for parameter in setup.model.parameters())
        epoch = plans.seconds_of_each(group, device)
    except Exception as error:  # whatever a model raises in its third step, or a device that is full
        raise UserError(f"arms[{run.arm}].model: cannot be trained: {oneline(error)}") from error
    return ArmOutline(run.arm, runs, parameters, setup.steps_before(run.train.epochs), run.train.epochs * epoch)
