"""The interface to Optuna: which point to try next, and which one to prune."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.sweep import Dimension, Sweep
from ..errors import UserError, oneline
from ..training import build
from ..training.files import damaged
from ..training.record import Log

if TYPE_CHECKING:
    import optuna
    import optuna.trial


@dataclass(frozen=True)
class Trial:
    """A point to try."""

    number: int
    values: Mapping[str, Any]


class Search:
    """The search of one arm.

    Samplers and pruners have internal states, such as random generators, which the results do not contain. The log of
    the search therefore records every question to Optuna and every answer, in order. To resume, all are repeated.
    """

    def __init__(self, arm: str, sweep: Sweep, log: Log) -> None:
        self.arm, self.sweep, self.log = arm, sweep, log
        self._asked: list[optuna.trial.Trial] = []
        with _quietly() as library:
            self._study = library.create_study(study_name=arm, sampler=build.sampler(sweep), pruner=build.pruner(sweep))
        self._verdicts: dict[tuple[int, int], bool] = {}
        self._open: dict[int, Trial] = {}
        self.told: list[tuple[Trial, str, float]] = []
        try:
            for event in [event for event in log.events if event["arm"] == arm]:
                self._again(**event)
        except (LookupError, ValueError, TypeError):  # what Optuna and we raise on an answer without its question
            raise damaged(log.path) from None

    @property
    def open(self) -> list[Trial]:
        """The trials that were started but not finished."""
        return list(self._open.values())

    @property
    def is_over(self) -> bool:
        """Whether all points were started."""
        return len(self._asked) >= self.sweep.points

    def trials(self) -> Iterator[Trial]:
        """The remaining trials: first those that were interrupted, then new ones."""
        yield from self.open
        while not self.is_over:
            yield self.ask()

    def ask(self) -> Trial:
        """The next point to try."""
        trial = self._ask()
        self._note("ask", trial.number, values=trial.values)
        return trial

    def report(self, number: int, step: int, value: float) -> bool:
        """Reports a trial's metric at a step; returns whether to prune the trial."""
        if (number, step) not in self._verdicts:  # else a checkpoint lies before what was reported
            self._report(number, step, value)
            self._note("report", number, step=step, value=value)
        return self._verdicts[number, step]

    def tell(self, number: int, status: str, value: float | None) -> None:
        """Reports the end of a trial: "done" with its metric, "pruned" or "diverged"."""
        self._tell(number, status, value)
        self._note("tell", number, status=status, value=value)

    def _note(self, event: str, number: int, **more: Any) -> None:
        self.log.append({"arm": self.arm, "event": event, "number": number, **more})

    def _again(self, arm: str, event: str, number: int, **more: Any) -> None:
        if event == "ask":
            values = self._ask().values
            if values != more["values"]:
                raise UserError(
                    f"--resume: this version of optuna goes on with other values, {values} where it was "
                    f"{more['values']}: install the one that began, or begin again in another folder"
                )
        elif event == "report":
            self._report(number, **more)
        else:
            self._tell(number, **more)

    def _ask(self) -> Trial:
        with _quietly():
            asked = self._study.ask()
            values = {key: _suggest(asked, key, dimension) for key, dimension in self.sweep.space.items()}
        self._asked.append(asked)
        self._open[asked.number] = Trial(asked.number, values)
        return self._open[asked.number]

    def _report(self, number: int, step: int, value: float) -> None:
        with _quietly():
            self._asked[number].report(value, step)
            self._verdicts[number, step] = self._asked[number].should_prune()

    def _tell(self, number: int, status: str, value: float | None) -> None:
        state = {"done": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL"}[status]
        with _quietly():
            _tell(self._study, self._asked[number], value if status == "done" else None, state)
        self.told.append((self._open.pop(number), status, math.inf if value is None else value))


def check(sweep: Sweep) -> None:
    """Tries the sampler and the pruner, so that their errors appear before the study begins."""
    with _quietly() as library:
        study = library.create_study(sampler=build.sampler(sweep), pruner=build.pruner(sweep))
        try:
            for i in range(min(12, sweep.points)):  # some begin at random, and first import what they need after ten
                trial = study.ask()
                for key, dimension in sweep.space.items():
                    _suggest(trial, key, dimension)
                _tell(study, trial, float(i), "COMPLETE")
        except Exception as error:  # whatever a sampler raises is about this space, or about what it lacks here
            name = sweep.sampler.name if sweep.sampler else sweep.sampler_name
            raise UserError(f"sweep.sampler: {name} cannot sample this space: {oneline(error)}") from error


def _tell(study: optuna.Study, trial: optuna.trial.Trial, value: float | None, state: str) -> None:
    import optuna

    with suppress(RuntimeError):  # after a grid's last point: it asks to leave a loop that is not Optuna's
        study.tell(trial, value, optuna.trial.TrialState[state])


def _suggest(trial: optuna.trial.Trial, key: str, dimension: Dimension) -> Any:
    """The key's value. For a finite list Optuna samples positions, so that values may be of any type."""
    if dimension.values is not None:
        return dimension.values[trial.suggest_categorical(key, range(len(dimension.values)))]
    if dimension.finite is not None:
        return dimension.finite[trial.suggest_int(key, 0, len(dimension.finite) - 1)]
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.is_whole:
        return trial.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)


@contextmanager
def _quietly() -> Iterator[Any]:
    """Optuna without its messages for each trial and each experimental feature."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("sweep: needs optuna, which is not installed: pip install optuna") from None
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield optuna
    finally:
        optuna.logging.set_verbosity(level)
