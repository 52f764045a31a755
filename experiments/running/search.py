"""The interface to Optuna: which point to try next, and which one to prune."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.random import SeedSequence

from ..config.names import point_of
from ..config.sweep import Dimension, Sweep
from ..errors import RecordError, UserError, oneline
from ..training import build
from ..training.files import checksum, damaged
from ..training.record import Log, Row
from ..training.storage import is_local

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.log"  # the storage of a search that is given no other


@dataclass(frozen=True)
class Trial:
    """A point to try."""

    number: int
    values: Mapping[str, Any]


class Search:
    """The search of one arm, in a storage of Optuna's.

    The storage has all that samplers and pruners learn from. Each point is drawn with a random generator of its own,
    so that no state of a sampler is missing when a search goes on. The log has the points in order, without which
    there is no report; it also fills a storage that is empty, because it is another one or was lost.

    Args:
        arm: its name.
        sweep: the search's settings.
        log: the points of all arms.
        storage: the URL of a database, or the path of a journal.
        name: the name of the search in the storage, which no other has.
    """

    def __init__(self, arm: str, sweep: Sweep, log: Log, storage: str, name: str) -> None:
        self.arm, self.sweep, self.log, self.storage, self.name = arm, sweep, log, storage, name
        self._study = _begun(storage, name, sweep)
        self._asked: list[Trial] = []
        self._ended: dict[int, tuple[str, float]] = {}
        asked = [event for event in log.events if event["arm"] == arm and event["event"] == "ask"]
        if [event["number"] for event in asked] != [*range(len(asked))]:
            raise damaged(log.path)
        self._logged = [event["values"] for event in asked]
        self._recall()

    @property
    def told(self) -> list[tuple[Trial, str, float]]:
        """The trials that have ended, with their status and metric."""
        return [(trial, *self._ended[trial.number]) for trial in self._asked if trial.number in self._ended]

    @property
    def open(self) -> list[Trial]:
        """The trials that were started but not finished."""
        return [trial for trial in self._asked if trial.number not in self._ended]

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
        count = len(self._asked)
        with _quietly() as library:
            self._study.sampler = build.sampler(self.sweep, _seed(self.sweep.seed, count))
            known = self._given(count)
            if known is not None and not self._study.get_trials(False, (library.trial.TrialState.WAITING,)):
                self._study.enqueue_trial(known)
            asked = self._study.ask()
            for key, dimension in self.sweep.space.items():
                _suggest(asked, key, dimension)
            asked.set_user_attr("point", point_of(self._values(asked.params)))  # for Optuna's dashboard
        return self._note(asked.number, asked.params)

    def judge(self, number: int) -> Judge | None:
        """What decides whether to prune a trial, if trials are pruned."""
        return Judge(self.storage, self.name, self.sweep, number) if self.sweep.pruner is not None else None

    def reopen(self, number: int) -> None:
        """Makes a trial that has ended one to try again, since its records are lost; the storage knows its end."""
        del self._ended[number]

    def tell(self, number: int, status: str, value: float | None) -> None:
        """Reports the end of a trial: "done" with its metric, "pruned" or "diverged"."""
        with _quietly():
            _tell(self._study, number, value if status == "done" else None, _STATES[status])
        self._ended[number] = status, math.inf if value is None else value

    def _recall(self) -> None:
        """Takes up the trials in the storage."""
        with _quietly():
            before = self._study.get_trials(deepcopy=False)
        for found in before:
            state = found.state.name
            if not self.sweep.space.keys() <= found.params.keys():
                if state == "RUNNING":  # the process was killed while the point was drawn: it is drawn again
                    with _quietly():
                        _tell(self._study, found.number, None, "FAIL")
                continue
            self._note(found.number, found.params)
            if status := {state: status for status, state in _STATES.items()}.get(state):
                value = found.value if status == "done" else None
                self._ended[found.number] = status, math.inf if value is None else value

    def _note(self, number: int, params: Mapping[str, Any]) -> Trial:
        """Takes up a trial, and adds it to the log if it is not there."""
        count, trial = len(self._asked), Trial(number, self._values(params))
        self._asked.append(trial)
        if count == len(self._logged):
            self._logged.append(trial.values)
            self.log.append({"arm": self.arm, "event": "ask", "number": count, "values": trial.values})
        if trial.values != self._logged[count]:
            raise RecordError(
                f"{self.log.path}: is damaged, or of another search than {self.storage}: remove the one that is "
                "wrong, and 'sweep --resume' fills it from the other one"
            )
        return trial

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values that Optuna's parameters stand for: positions in a finite list."""
        space = self.sweep.space.items()
        return {key: params[key] if own.finite is None else own.finite[params[key]] for key, own in space}

    def _given(self, count: int) -> dict[str, Any] | None:
        """What Optuna is to draw next: the point that the log has there, or the grid; None where a sampler draws."""
        space = self.sweep.space
        if count < len(self._logged):
            return {key: _param_of(value, space[key]) for key, value in self._logged[count].items()}
        if self.sweep.is_grid:
            positions = product(*(range(len(dimension.finite or ())) for dimension in space.values()))
            return dict(zip(space, next(islice(positions, count, None)), strict=True))
        return None


_STATES = {"done": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL"}


@dataclass(frozen=True)
class Judge:
    """Decides by Optuna's pruner, in whatever process the runs are made."""

    storage: str
    name: str
    sweep: Sweep
    number: int

    def __call__(self, step: int, row: Row) -> bool:
        """Whether to prune, by the figures at a step, which the storage gets."""
        with _quietly():
            study, storage = _begun(self.storage, self.name, self.sweep), opened(self.storage)
            of = storage.get_study_id_from_name(self.name)
            trial = storage.get_trial_id_from_study_id_trial_number(of, self.number)
            before = storage.get_trial(trial)
            last = before.last_step
            if before.state.is_finished():  # its records were lost: it ends as it did
                return before.state.name == "PRUNED" and last is not None and step >= last
            if last is None or step > last:  # else a checkpoint lies before what was reported
                storage.set_trial_intermediate_value(trial, step, row[self.sweep.metric])
            elif step < last:
                return False  # else it would have ended there
            return study.pruner.prune(study, storage.get_trial(trial))


def address_of(storage: str | None, folder: Path) -> str:
    """The storage of the searches in a folder: the one that is given, or else a journal in the folder."""
    return storage or str(folder.resolve() / JOURNAL)


def name_of(study: str, arm: str, storage: str | None, folder: Path) -> str:
    """The name of a search in its storage; in one that others may use, it tells of the folder too."""
    if storage is None:
        return f"{study}: {arm}"
    where = folder.resolve() if is_local(folder) else folder
    return f"{study}: {arm} ({checksum(str(where).encode())[:8]})"


@cache
def opened(storage: str) -> optuna.storages.BaseStorage:
    """The storage at a URL, or in the file of a journal, opened once in each process.

    Raises:
        UserError: it is none of Optuna's.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    try:
        if "://" in storage:
            return optuna.storages.RDBStorage(storage)
        return optuna.storages.JournalStorage(JournalFileBackend(storage, JournalFileOpenLock(storage)))
    except Exception as error:  # of the database's driver
        raise UserError(
            f"--storage: {storage} cannot be opened, such as sqlite:///FILE, postgresql://... or the path of a "
            f"journal: {oneline(error)}"
        ) from error


_STUDIES: dict[tuple[optuna.storages.BaseStorage, str], optuna.Study] = {}


def _begun(storage: str, name: str, sweep: Sweep) -> optuna.Study:
    """Optuna's study of that name, begun or taken up once in each process."""
    key = opened(storage), name
    if key not in _STUDIES:
        import optuna

        pruner = build.pruner(sweep)
        with _quietly():
            _STUDIES[key] = optuna.create_study(storage=key[0], study_name=name, pruner=pruner, load_if_exists=True)
    return _STUDIES[key]


def check(sweep: Sweep) -> None:
    """Tries the sampler and the pruner, so that their errors appear before the study begins."""
    with _quietly() as library:
        study = library.create_study(sampler=build.sampler(sweep, sweep.seed), pruner=build.pruner(sweep))
        try:
            for i in range(min(12, sweep.points)):  # some begin at random, and first import what they need after ten
                trial = study.ask()
                for key, dimension in sweep.space.items():
                    _suggest(trial, key, dimension)
                _tell(study, trial.number, float(i), "COMPLETE")
        except Exception as error:  # whatever a sampler raises is about this space, or about what it lacks here
            name = sweep.sampler.name if sweep.sampler else sweep.sampler_name
            raise UserError(f"sweep.sampler: {name} cannot sample this space: {oneline(error)}") from error


def _seed(seed: int, count: int) -> int:
    """The seed of a point: every process that asks for it draws the same."""
    return int(SeedSequence((seed, count)).generate_state(1)[0])


def _tell(study: optuna.Study, number: int, value: float | None, state: str) -> None:
    import optuna

    with suppress(RuntimeError):  # after a grid's last point: it asks to leave a loop that is not Optuna's
        study.tell(number, value, optuna.trial.TrialState[state], skip_if_finished=True)


def _suggest(trial: optuna.trial.Trial, key: str, dimension: Dimension) -> None:
    """Draws a key. Of a finite list Optuna samples positions, so that values may be of any type."""
    if dimension.values is not None:
        trial.suggest_categorical(key, range(len(dimension.values)))
    elif dimension.finite is not None:
        trial.suggest_int(key, 0, len(dimension.finite) - 1)
    else:
        assert dimension.low is not None
        assert dimension.high is not None
        if dimension.is_whole:
            trial.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)


def _param_of(value: Any, dimension: Dimension) -> Any:
    return value if dimension.finite is None else dimension.finite.index(value)


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
