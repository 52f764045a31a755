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
        return self.runs[0].arm

    @property
    def strength(self) -> float | None:
        """The strength the arm runs over, or else of its one regularizer or weight decay; None if it has no such."""
        run = self.runs[0]
        if run.strength is not None:
            return run.strength
        strengths = [r.strength for r in run.regularizers]
        strengths += [run.optimizer.weight_decay] if run.optimizer.weight_decay > 0 else []
        return strengths[0] if len(strengths) == 1 else None

    @property
    def diverged(self) -> bool:
        return any(result["status"] == "diverged" for result in self.results)

    def mean(self, key: str) -> Mean:
        return mean([result[key] for result in self.results])

    @property
    def gap(self) -> Mean:
        """Test error less training error."""
        return mean([result["test_error"] - result["train_error"] for result in self.results])

    @property
    def norm(self) -> Mean:
        """The Euclidean norm of all weights."""
        return mean([math.hypot(*result["norms"].values()) for result in self.results])


@dataclass(frozen=True)
class Summary:
    """A study's cells, arm by arm and strength by strength, and the cell that each arm is judged by."""

    name: str
    cells: Sequence[Cell]
    environment: Row

    @property
    def chosen(self) -> list[Cell]:
        """Of each arm the strength with the lowest validation error; of equals the strongest."""
        best = []
        for _, cells in groupby(self.cells, key=lambda cell: cell.arm):
            group = list(cells)
            sound = [cell for cell in group if not cell.diverged]
            best.append(min(sound, key=_merit) if sound else group[0])
        return best

    @property
    def paths(self) -> list[list[Cell]]:
        """The arms that ran over several strengths, weakest first."""
        arms = [list(cells) for _, cells in groupby(self.cells, key=lambda cell: cell.arm)]
        return [sorted(arm, key=lambda cell: cell.strength or 0.0) for arm in arms if len(arm) > 1]

    @property
    def subtitle(self) -> str:
        """The study in a sentence."""
        data, train = self.cells[0].runs[0].data, self.cells[0].runs[0].train
        size = f"{data.train_size:,}" if data.train_size else "all remaining"
        noise = f", {100 * data.label_noise:g} % of their labels made wrong" if data.label_noise else ""
        return f"{data.name}: {size} training images{noise}; {train.epochs} epochs in batches of {train.batch_size}."

    @property
    def label_noise(self) -> float:
        return self.cells[0].runs[0].data.label_noise

    @property
    def plain(self) -> Cell | None:
        """The arm without any regularization, if there is one."""
        return next((cell for cell in self.cells if _is_plain(cell.runs[0])), None)


def mean(values: Sequence[float]) -> Mean:
    return Mean(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


def summarize(folder: Path) -> Summary:
    """Reads the finished runs of a study.

    Raises:
        UserError: the folder holds no study, or none of its runs is finished.
    """
    study = read_study(folder)
    cells, environment = [], {}
    for _, group in groupby(study.runs, key=lambda run: (run.arm, run.strength)):
        done = [(run, record) for run in group if (record := Record(folder / "runs" / run.folder)).result is not None]
        if done:
            runs, records = zip(*done, strict=True)
            cells.append(Cell(runs, [r.result for r in records], [r.history for r in records]))
            environment = records[0].environment
    if not cells:
        raise UserError(f"{folder}: no run of this study is finished yet: 'run --resume' goes on with it")
    return Summary(study.name, cells, environment)


def _merit(cell: Cell) -> tuple[float, float]:
    return cell.mean("valid_error").mean, -(cell.strength or 0.0)


def _is_plain(run: Run) -> bool:
    drops = run.model.dropout or run.model.input_dropout
    return not (run.regularizers or run.optimizer.weight_decay or drops or run.train.early_stopping)
