"""The results of a study: its records, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

from ..config import Run, Study, Sweep
from ..errors import UserError
from ..training.record import Record, Row, read_runs, read_study
from . import statistics
from .cells import Cell, best_of, difference, one_standard_error, own_error

ONE_SE = ", one SE"
IMAGES = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10", "images")


@dataclass(frozen=True)
class Summary:
    """The finished cells of a study, arm by arm and strength by strength."""

    name: str
    cells: Sequence[Cell]
    planned: int
    environment: Row
    sweep: Sweep | None = None

    @property
    def metric(self) -> str:
        """The metric for the choice."""
        return self.sweep.metric if self.sweep else "valid_error"

    @property
    def metric_in_words(self) -> str:
        """The metric as text."""
        return self.metric.replace("valid", "validation").replace("_", " ").replace("error", self.error)

    @cached_property
    def is_regression(self) -> bool:
        """Whether the errors are root mean squared errors, and not shares of wrong classes."""
        return any(cell.is_regression for cell in self.cells)

    @property
    def error(self) -> str:
        """What an error is called."""
        return "RMSE" if self.is_regression else "error"

    @property
    def noun(self) -> str:
        """What the examples are called."""
        return "images" if all(cell.runs[0].data.name in IMAGES for cell in self.cells) else "examples"

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that any arm was measured by."""
        results = (result.get("metrics", {}).get("test", {}) for cell in self.cells for result in cell.results)
        return list(dict.fromkeys(name for found in results for name in found))

    @cached_property
    def chosen(self) -> list[Cell]:
        """The best cell of each arm; of a search over a strength also the strongest within one standard error."""
        return [cell for arm in self._arms for cell in self._chosen_of(arm)]

    def _chosen_of(self, arm: Sequence[Cell]) -> list[Cell]:
        best = best_of(arm, self.metric)
        if best is None:
            return [arm[0]]
        if self.sweep is None or not best.is_strength:
            return [best]
        strongest = one_standard_error(arm, best, self.metric)
        return [best] if strongest is best else [best, replace(strongest, remark=ONE_SE)]

    @cached_property
    def paths(self) -> list[list[Cell]]:
        """The arms with several values of one number: their finished cells, from the smallest value."""
        arms = [[cell for cell in arm if cell.is_done and cell.number is not None] for arm in self._arms]
        return [sorted(arm, key=lambda cell: cell.number or 0.0) for arm in arms if len(arm) > 1]

    @property
    def clouds(self) -> list[list[Cell]]:
        """The arms that were searched over several keys, or over one that is no number, with their finished points."""
        arms = [[cell for cell in arm if cell.point and not cell.is_broken] for arm in self._arms]
        return [arm for arm in arms if len(arm) > 1 and any(cell.number is None for cell in arm)]

    @cached_property
    def plain(self) -> Cell | None:
        """The arm without regularization, if there is one that did not diverge."""
        return next(iter(self._plain), None)

    @cached_property
    def _plain(self) -> list[Cell]:
        """The arms without regularization that came to an end."""
        return [cell for cell in self.cells if cell.is_plain() and cell.is_done]

    def counterpart(self, cell: Cell) -> Cell | None:
        """The unregularized arm that differs from the cell by regularization alone; else the first one, if any."""
        return next((other for other in self._plain if cell.differs_only_by_regularization(other)), self.plain)

    def cost(self, cell: Cell) -> float | None:
        """The time of all points of the cell's arm, relative to the unregularized run."""
        if self.sweep is None or self.plain is None or not self.plain.seconds:
            return None
        return self._seconds[cell.arm] / self.plain.seconds

    @cached_property
    def _seconds(self) -> dict[str, float]:
        """The time of all points of each arm, a run of each."""
        return {arm[0].arm: sum(cell.seconds for cell in arm) for arm in self._arms}

    @property
    def label_noise(self) -> float:
        """The share of wrong training labels if all runs have the same, else 0."""
        noises = {cell.runs[0].data.label_noise for cell in self.cells}
        return noises.pop() if len(noises) == 1 else 0.0

    @property
    def subtitle(self) -> str:
        """A sentence about the study."""
        data, train = self.cells[0].runs[0].data, self.cells[0].runs[0].train
        others = [cell.runs[0] for cell in self.cells]
        if any(other.data != data for other in others):
            return f"{len(self._arms)} arms, on different data."
        if any((run.train.epochs, run.train.batch_size) != (train.epochs, train.batch_size) for run in others):
            return f"{len(self._arms)} arms, for different times."
        count = self.cells[0].examples("train")
        size = f"{count:,}" if count else "all remaining"
        noise = f", {100 * data.label_noise:g} % of their labels made wrong" if data.label_noise else ""
        what = f"{size} training {self.noun}{noise}"
        return f"{data.source}: {what}; {train.epochs} epochs in batches of {train.batch_size}."

    @property
    def over_seeds(self) -> str:
        """How the figures follow from the runs, as text."""
        if not self._seeds:
            return "of a single seed, so without a standard error"
        return f"mean over {self._seeds} seeds with one standard error"

    @property
    def _seeds(self) -> str:
        """The number of seeds, or its range over the cells; an empty string if it is 1 everywhere."""
        counts = sorted({len(cell.runs) for cell in self.cells})
        return "" if counts == [1] else " to ".join(map(str, counts[:: max(len(counts) - 1, 1)]))

    @property
    def note(self) -> str:
        """A sentence about how the figures were computed."""
        statuses = [cell.status for cell in self.cells if cell.point]
        lost = [
            f", {statuses.count(status)} {status}" for status in ("pruned", "diverged", "failed") if status in statuses
        ]
        counts = f"{len(statuses)} points{''.join(lost)}"
        has_strongest = any(cell.remark for cell in self.chosen)
        finished = sum(len(cell.runs) for cell in self.cells)
        notes = {
            "RMSE: the root mean squared error, in units of the target.": self.is_regression,
            f"Mean ± standard error over {self._seeds} seeds.": bool(self._seeds),
            "A single seed: no standard errors, and no claims of a difference.": not self._seeds,
            f"Of several strengths, the one with the lowest validation {self.error}.": bool(self.paths)
            and self.sweep is None,
            f"Of {counts}, the one with the lowest {self.metric_in_words}.": self.sweep is not None,
            self._choosing: bool(self._choosing),
            "No arm is without regularization, so there is none to compare the others with.": self._is_alone,
            f"{', '.join(self._off)}: strength 0 was chosen, which is no regularization.": bool(self._off),
            f"'{ONE_SE.strip(', ')}': the strongest within one standard error of that.": has_strongest,
            f"Not finished: these are {finished} of {self.planned} runs.": finished < self.planned,
            self._sampling: bool(self._sampling),
        }
        return " ".join(note for note, applies in notes.items() if applies)

    @property
    def _is_alone(self) -> bool:
        """Whether several arms are regularized, and none is not."""
        return (
            not any(cell.is_plain() for cell in self.cells)
            and len({cell.arm for cell in self.chosen if cell.is_done}) > 1
        )

    @property
    def _off(self) -> list[str]:
        """The arms of which validation chose strength 0."""
        return [cell.arm for cell in self.chosen if cell.is_done and cell.is_strength and cell.is_off()]

    @property
    def _choosing(self) -> str:
        """A sentence about what choosing among several strengths or points costs."""
        if self.metric != "valid_error":
            return ""
        costs, is_choice = [], False
        for arm in self._arms:
            done = [cell for cell in arm if cell.is_done]
            best = best_of(done)
            others = [difference(cell, best, "valid_error") for cell in done if best and cell is not best]
            near = [other for other in others if other and not other.excludes_zero()]
            is_choice = is_choice or bool(others)
            if near and best:
                cost = statistics.optimism([math.hypot(other.of_seeds or 0.0, other.of_images) for other in near])
                size = f"{best.unit.size(cost)}{best.unit.points}"
                costs.append(f"{size} ({arm[0].arm}, {len(near) + 1} of {len(done)} alike)")
        if costs:
            return f"The choice makes that lower than it is, by up to about {', '.join(costs)}."
        return "All others are clearly worse in that, so the choice does not bias it." if is_choice else ""

    @property
    def _sampling(self) -> str:
        """A sentence about the error of the finite test set, which seeds do not show."""
        done = [cell for cell in self.chosen if cell.is_done]
        sizes = {cell.examples("test") for cell in done}
        if len(sizes) != 1:
            return ""
        unit = done[0].unit
        errors = sorted({unit.size(own_error(cell)) for cell in done}, key=float)
        span = f"{' to '.join(errors[:: max(len(errors) - 1, 1)])}{unit.points}"
        return f"By their {sizes.pop():,} {self.noun}, test {self.error}s have a standard error of {span} besides."

    @cached_property
    def _arms(self) -> list[list[Cell]]:
        return [list(cells) for _, cells in groupby(self.cells, key=lambda cell: cell.arm)]


def summarize(folder: Path, is_checked: bool = False) -> Summary:
    """Reads the finished runs of a study.

    Args:
        folder: of the study.
        is_checked: the records of its runs, but for averages, have been read or written a moment ago: then they are
            not checked again.

    Raises:
        UserError: the folder holds no study, or none of its runs is finished.
    """
    study = read_study(folder)
    asked = read_runs(study, folder)
    runs = list({run.folder: run for run in asked}.values())  # a sampler may try a point twice
    planned = len(runs) if study.sweep is None else _planned(study, study.sweep) - (len(asked) - len(runs))
    cells, environment = [], {}
    for _, group in groupby(runs, key=lambda run: run.place):
        found = [(run, _record(folder, run, is_checked)) for run in group]
        done = [(run, record, result) for run, record in found if (result := record.result) is not None]
        if done:
            ours, records, results = zip(*done, strict=True)
            cell = Cell(ours, [_light(result) for result in results], records=records)
            if study.sweep is not None:
                if cell.is_done and len(done) < len(found):
                    continue  # over some seeds only it would be compared with others over all
                planned -= len(found) - len(done)  # the others were given up
            cells.append(cell)
            environment = records[-1].environments[-1]
    if not cells:
        command = "run" if study.sweep is None else "sweep"
        raise UserError(f"{folder}: no run of this study is finished yet: '{command} --resume' goes on with it")
    return Summary(study.name, cells, planned, environment, study.sweep)


def _record(folder: Path, run: Run, is_checked: bool) -> Record:
    return Record(folder / "runs" / run.folder, run, is_checked and not run.is_average)


def _light(result: Row) -> Row:
    """The result without what takes most of its memory and is shown of few cells; :attr:`Cell.whole` reads it anew."""
    kept = {key: value for key, value in result.items() if key != "histogram"}
    outcomes = result.get("outcomes", {})
    if "wrong" in outcomes.get("test", {}):  # else the numbers of a regression, which every difference needs
        heavy = ("true", "predicted", "confidence")
        test = {key: value for key, value in outcomes["test"].items() if key not in heavy}
        kept["outcomes"] = {**outcomes, "test": test}
    return kept


def _planned(study: Study, sweep: Sweep) -> int:
    """The number of runs of a search if none is pruned."""
    points = [sweep.points if run.values else 1 for run in study.runs]
    return sum(count * (1 if run.average is None else 2) for run, count in zip(study.runs, points, strict=True))
