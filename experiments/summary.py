"""What a study found: its records, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from experiments.config import Run
from experiments.errors import UserError
from experiments.record import Record, Row, read_study


class Mean(NamedTuple):
    """A mean over seeds and its standard error (0 for a single seed)."""

    mean: float
    se: float


@dataclass(frozen=True)
class Cell:
    """One arm at one strength, over its seeds."""

    runs: Sequence[Run]
    results: Sequence[Row]
    histories: Sequence[Sequence[Row]]

    @property
    def arm(self) -> str:
        """The arm's name."""
        return self.runs[0].arm

    @property
    def strength(self) -> float | None:
        """The strength to show: that which the arm runs over, else that of its one regularizer or its weight decay."""
        run = self.runs[0]
        if run.strength is not None:
            return run.strength
        strengths = [r.strength for r in run.regularizers]
        strengths += [run.optimizer.penalty.strength] if run.optimizer.penalty and not run.sparsity else []
        strengths += [run.optimizer.weight_decay] if run.optimizer.weight_decay > 0 else []
        return strengths[0] if len(strengths) == 1 else None

    @property
    def label(self) -> str:
        """The arm's name, with the strength if it runs over several."""
        strength = self.runs[0].strength
        return self.arm if strength is None else f"{self.arm} ({strength:g})"

    @property
    def diverged(self) -> bool:
        """Whether any of its runs did not come to an end."""
        return any(result["status"] == "diverged" for result in self.results)

    @property
    def digests(self) -> dict[int, str]:
        """Of each seed, what tells any two bits of the final weights apart."""
        return {run.seed: result["sha256"] for run, result in zip(self.runs, self.results, strict=True)}

    @property
    def gap(self) -> Mean:
        """Test error less training error."""
        return mean([result["test_error"] - result["train_error"] for result in self.results])

    @property
    def norm(self) -> Mean:
        """The Euclidean norm of all weights."""
        return mean([math.hypot(*result["norms"].values()) for result in self.results])

    @property
    def compression(self) -> str:
        """How many times smaller the weights have become, in each way of counting; empty in records without it."""
        found = [result["compression"] for result in self.results if "compression" in result]
        ways = {way: [one[way] for one in found] for way in (found[0] if found else ())}
        return " / ".join("-" if None in ratios else f"{fmean(ratios):.0f}x" for ratios in ways.values())

    def mean(self, key: str) -> Mean:
        """The mean of one of the result's figures."""
        return mean([result[key] for result in self.results])

    def is_plain(self) -> bool:
        """Whether nothing regularizes it."""
        return self.runs[0].strength is None and self.runs[0] == _bare(self.runs[0])

    def is_off(self) -> bool:
        """Whether it would be regularized, were its strengths not 0."""
        off = self.runs[0].model_copy(update={"regularizers": ()})
        return not self.is_plain() and off == _bare(off) and all(r.strength == 0 for r in self.runs[0].regularizers)

    def differs_only_by_regularization(self, other: Cell) -> bool:
        """Whether without any regularizer the two would be the same run."""
        names = {"arm": "", "strength": None, "seed": 0}
        return _bare(self.runs[0]).model_copy(update=names) == _bare(other.runs[0]).model_copy(update=names)


@dataclass(frozen=True)
class Summary:
    """A study's cells, arm by arm and strength by strength, as far as they are finished."""

    name: str
    cells: Sequence[Cell]
    planned: int
    environment: Row

    @property
    def chosen(self) -> list[Cell]:
        """Of each arm the strength with the lowest validation error; of equals the strongest."""
        return [best_of(arm) or arm[0] for arm in self._arms]

    @property
    def paths(self) -> list[list[Cell]]:
        """The arms that ran over several strengths, weakest first, as far as they did not diverge."""
        arms = [[cell for cell in arm if not cell.diverged] for arm in self._arms]
        return [sorted(arm, key=lambda cell: cell.strength or 0.0) for arm in arms if len(arm) > 1]

    @property
    def plain(self) -> Cell | None:
        """The arm without any regularization, if there is one that did not diverge."""
        return next((cell for cell in self.cells if cell.is_plain() and not cell.diverged), None)

    @property
    def label_noise(self) -> float:
        """The fraction of wrong training labels, if it is the same for all; else 0."""
        noises = {cell.runs[0].data.label_noise for cell in self.cells}
        return noises.pop() if len(noises) == 1 else 0.0

    @property
    def subtitle(self) -> str:
        """The study in a sentence."""
        data, train = self.cells[0].runs[0].data, self.cells[0].runs[0].train
        if any((cell.runs[0].data, cell.runs[0].train) != (data, train) for cell in self.cells):
            return f"{len(self._arms)} arms, on different data or for different times."
        size = f"{data.train_size:,}" if data.train_size else "all remaining"
        noise = f", {100 * data.label_noise:g} % of their labels made wrong" if data.label_noise else ""
        return f"{data.name}: {size} training images{noise}; {train.epochs} epochs in batches of {train.batch_size}."

    @property
    def note(self) -> str:
        """How the figures were come by."""
        seeds = max(len(cell.runs) for cell in self.cells)
        finished = sum(len(cell.runs) for cell in self.cells)
        notes = {
            f"Mean ± standard error over {seeds} seeds.": seeds > 1,
            "Of several strengths, the one with the lowest validation error.": bool(self.paths),
            f"Not finished: these are {finished} of {self.planned} runs.": finished < self.planned,
        }
        return " ".join(note for note, applies in notes.items() if applies)

    @property
    def _arms(self) -> list[list[Cell]]:
        return [list(cells) for _, cells in groupby(self.cells, key=lambda cell: cell.arm)]


def mean(values: Sequence[float]) -> Mean:
    """The mean, and a sample's standard deviation over the square root of the number of values."""
    return Mean(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


def best_of(cells: Sequence[Cell]) -> Cell | None:
    """The cell with the lowest validation error, of equals the strongest; None if all diverged."""
    sound = [cell for cell in cells if not cell.diverged]
    return min(sound, key=lambda cell: (cell.mean("valid_error").mean, -(cell.strength or 0.0)), default=None)


def summarize(folder: Path) -> Summary:
    """Reads the finished runs of a study.

    Raises:
        UserError: the folder holds no study, or none of its runs is finished.
    """
    study = read_study(folder)
    cells, environment = [], {}
    for _, group in groupby(study.runs, key=lambda run: (run.arm, run.strength)):
        found = [(run, Record(folder / "runs" / run.folder)) for run in group]
        done = [(run, record, result) for run, record in found if (result := record.result) is not None]
        if done:
            runs, records, results = zip(*done, strict=True)
            cells.append(Cell(runs, results, [record.history for record in records]))
            environment = records[-1].environments[-1]
    if not cells:
        raise UserError(f"{folder}: no run of this study is finished yet: 'run --resume' goes on with it")
    return Summary(study.name, cells, len(study.runs), environment)


def _bare(run: Run) -> Run:
    """The run without its regularizers, weight decay and dropout."""
    model = run.model.model_copy(update={"dropout": None, "input_dropout": None, "wrap": None})
    optimizer = run.optimizer.model_copy(update={"weight_decay": 0.0})
    return run.model_copy(update={"model": model, "optimizer": optimizer, "regularizers": (), "dropout_schedule": None})
