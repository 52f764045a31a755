"""A cell of a study: one arm at one strength with all its seeds, and how two cells are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from ..config import Run
from ..training.outcomes import predictions, unpacked
from ..training.record import Record, Row
from . import statistics
from .numbers import PERCENT, Unit, unit_of_rmse
from .statistics import Difference, Mean, mean


@dataclass(frozen=True)
class Cell:
    """One arm at one strength, with all its seeds."""

    runs: Sequence[Run]
    results: Sequence[Row]
    remark: str = ""  # why it was chosen, if not as the best
    records: Sequence[Record] = ()

    @property
    def arm(self) -> str:
        """The arm's name."""
        return self.runs[0].arm

    @property
    def strength(self) -> float | None:
        """The strength to show: the varied one, else that of the only regularizer or the weight decay."""
        run = self.runs[0]
        if run.strength is not None:
            return run.strength
        if run.auto_strength is not None or isinstance(run.train.solve, str):
            return self._tuned
        strengths = [r.strength for r in run.regularizers if not r.is_constraint]
        strengths += [run.optimizer.penalty.strength] if run.optimizer.penalty and not run.sparsity else []
        strengths += [run.optimizer.weight_decay] if run.optimizer.weight_decay > 0 else []
        return strengths[0] if len(strengths) == 1 else None

    @property
    def _tuned(self) -> float | None:
        """The geometric mean of the tuned strength over seeds; None if several strengths were tuned."""
        found = [list(result.get("strengths", {}).values()) for result in self.results]
        return math.exp(fmean(math.log(own[0]) for own in found)) if all(len(own) == 1 for own in found) else None

    @property
    def seconds(self) -> float:
        """The mean time of a run."""
        return fmean(result["seconds"] for result in self.results)

    @property
    def point(self) -> dict[str, Any]:
        """The varied keys of the arm, with the values of this run."""
        return self.runs[0].point

    @property
    def number(self) -> float | None:
        """The value of the varied number; None if several keys are varied, or no number."""
        values = list(self.point.values())
        is_number = len(values) == 1 and isinstance(values[0], (int, float)) and not isinstance(values[0], bool)
        return values[0] if is_number else None

    @property
    def is_strength(self) -> bool:
        """Whether a larger number regularizes more."""
        return self.number is not None and all(key.endswith(("strength", "weight_decay")) for key in self.point)

    @property
    def label(self) -> str:
        """The arm's name, with the value if it is varied."""
        return f"{self.arm}{self.remark}" if self.number is None else f"{self.arm} ({self.number:.3g})"

    @property
    def status(self) -> str:
        """ "done", or else what its first run that did not come to an end is: "diverged", "failed" or "pruned"."""
        return next((result["status"] for result in self.results if result["status"] != "done"), "done")

    @property
    def is_done(self) -> bool:
        """Whether all runs are finished."""
        return self.status == "done"

    @property
    def is_broken(self) -> bool:
        """Whether a run ended without figures: it diverged or failed."""
        return self.status in ("diverged", "failed")

    @cached_property
    def whole(self) -> Sequence[Row]:
        """The results with all that the records hold."""
        return [record.result or {} for record in self.records] if self.records else self.results

    @property
    def histories(self) -> list[list[Row]]:
        """The figures of each epoch, of each run: read anew, since those of all runs would take much memory."""
        return [record.history for record in self.records]

    @property
    def seeds(self) -> set[int]:
        """The seeds of the runs."""
        return {run.seed for run in self.runs}

    @property
    def digests(self) -> dict[int, str]:
        """The digest of the final weights' bits, for each seed."""
        return {run.seed: result["sha256"] for run, result in zip(self.runs, self.results, strict=True)}

    @cached_property
    def is_regression(self) -> bool:
        """Whether the errors are root mean squared errors, and not shares of wrong classes."""
        return any(result.get("task") == "regression" for result in self.results)

    def examples(self, part: str) -> int:
        """The number of training, validation or test examples."""
        for result in self.results:
            if result.get("examples"):
                return int(result["examples"][part])
        data = self.runs[0].data  # of an earlier version, which knew digits and MNIST
        known = {"train": data.train_size, "valid": data.valid_size, "test": 797 if data.name == "digits" else 10_000}
        return int(known[part] or 0)

    @property
    def unit(self) -> Unit:
        """How the errors are written."""
        return unit_of_rmse(self.mean("test_error").mean) if self.is_regression else PERCENT

    @property
    def stacks(self) -> dict[int, int]:
        """How many runs were trained as one model, for each seed."""
        return {run.seed: result.get("stack") or 1 for run, result in zip(self.runs, self.results, strict=True)}

    @property
    def gap(self) -> Mean:
        """Test error minus training error."""
        return mean(list(self.by_seed("gap").values()))

    def by_seed(self, key: str) -> dict[int, float]:
        """A figure of the results, or the gap, for each seed."""
        seeds = [run.seed for run in self.runs]
        if key == "gap":
            values = [result["test_error"] - result["train_error"] for result in self.results]
        else:
            values = [result[key] for result in self.results]
        return dict(zip(seeds, values, strict=True))

    def wrong(self, split: str) -> dict[int, np.ndarray]:
        """Whether each "valid" or "test" example was wrong, for each seed; none of regressions and earlier versions."""
        found = zip(self.runs, (result.get("outcomes", {}).get(split) for result in self.results), strict=True)
        return {run.seed: unpacked(row) for run, row in found if row and "wrong" in row}

    @property
    def residuals(self) -> dict[int, np.ndarray]:
        """What a regression predicts less what is true, for each test example and seed; where records tell them all."""
        found = {}
        for run, result in zip(self.runs, self.results, strict=True):
            row = result.get("outcomes", {}).get("test", {})
            made = predictions(row) if "values" in row else None
            if made is not None:
                away = made.predicted - made.true
                # Records hold the first target alone, and what overflows is cut off.
                if math.isclose(math.sqrt(np.mean(away.astype(np.float64) ** 2)), result["test_error"], rel_tol=1e-3):
                    found[run.seed] = away
        return found

    @property
    def norm(self) -> Mean:
        """The Euclidean norm of all weights."""
        return mean([math.hypot(*result["norms"].values()) for result in self.results])

    @property
    def compression(self) -> str:
        """The compression by each count, and the size in bytes; an empty string for records without it."""
        found = [result["compression"] for result in self.results if "compression" in result]
        counts = {count: [one.get(count) for one in found] for count in (found[0] if found else ())}
        written = {"bytes": "{:,.0f} bytes"}
        return " / ".join(
            "-" if None in figures else written.get(count, "{:.0f}x").format(fmean(figures))
            for count, figures in counts.items()
        )

    def mean(self, key: str) -> Mean:
        """The mean of a figure of the results."""
        if key not in self._means:
            self._means[key] = mean([result[key] for result in self.results])
        return self._means[key]

    @cached_property
    def _means(self) -> dict[str, Mean]:
        """The means that were asked for."""
        return {}

    def metric(self, name: str) -> Mean | None:
        """The mean of a metric on the test examples, over the seeds for which it is defined."""
        values = [result.get("metrics", {}).get("test", {}).get(name) for result in self.results]
        found = [value for value in values if value is not None]
        return mean(found) if found else None

    def is_plain(self) -> bool:
        """Whether the cell has no regularization."""
        return not self.point and self.runs[0] == _bare(self.runs[0])

    def is_off(self) -> bool:
        """Whether the cell has regularization with strength 0 only."""
        off = self.runs[0].model_copy(update={"regularizers": ()})
        return not self.is_plain() and off == _bare(off) and all(r.strength == 0 for r in self.runs[0].regularizers)

    def differs_only_by_regularization(self, other: Cell) -> bool:
        """Whether the two cells would be the same runs without regularization."""
        return _unnamed(self.runs[0]) == _unnamed(other.runs[0])


def difference(ours: Cell, theirs: Cell, key: str, is_same: bool = True) -> Difference | None:
    """How much higher a figure is in ours, over the seeds that both have; None if they have no seed in common.

    Of the gap the size of ours is taken: a negative one is as far from 0, and theirs must be above 0 to be closed.

    Args:
        ours: an arm.
        theirs: the arm that it is compared with.
        key: a figure of the results, or the gap.
        is_same: whether both were measured on the same examples.
    """
    one, two = ours.by_seed(key), theirs.by_seed(key)
    if key == "gap":
        one = {seed: abs(gap) for seed, gap in one.items()}
    return statistics.paired(one, two, _sampling_error(ours, theirs, key, is_same))


def _sampling_error(ours: Cell, theirs: Cell, key: str, is_same: bool) -> float:
    """The standard error of a difference by other validation or test examples.

    It is measured example by example where the records tell these. If not, the two errors are taken as independent:
    arms err on the same difficult examples, so this is an upper limit. A loss has no such limit.
    """
    split = {"gap": "test", "test_error": "test", "valid_error": "valid"}.get(key)
    if split is None:
        return 0.0
    if ours.is_regression:
        one, two = (cell.residuals if split == "test" else {} for cell in (ours, theirs))
    else:
        one, two = ours.wrong(split), theirs.wrong(split)
    common = sorted(one.keys() & two.keys())
    sizes = {len(found[seed]) for found in (one, two) for seed in common}
    if is_same and len(sizes) == 1 and set(common) == ours.seeds & theirs.seeds:
        measured = statistics.example_error if ours.is_regression else statistics.image_error
        return measured([one[seed] for seed in common], [two[seed] for seed in common])
    return math.hypot(*(own_error(cell, f"{split}_error") for cell in (ours, theirs)))


def same_test(ours: Cell, theirs: Cell) -> bool:
    """Whether two arms are tested on the same examples, wherever these lie and whatever they train on."""
    not_tested = dict.fromkeys(("root", "train_size", "valid_size", "label_noise", "augment", "mix", "stream"))
    one, two = (cell.runs[0].data.model_copy(update=not_tested) for cell in (ours, theirs))
    if one.tasks is not None and two.tasks is not None:
        one = one.model_copy(update={"tasks": one.tasks.model_copy(update={"in_turn": two.tasks.in_turn})})
    return one == two


def own_error(cell: Cell, key: str = "test_error") -> float:
    """The standard error of a test or validation error by other examples, which is the same for every seed."""
    by_count = statistics.rms_error if cell.is_regression else statistics.binomial_error
    return by_count(cell.mean(key).mean, cell.examples(key.removesuffix("_error")))


def best_of(cells: Sequence[Cell], metric: str = "valid_error") -> Cell | None:
    """The cell with the lowest metric, of equal ones the strongest; None if none is finished."""
    done = [cell for cell in cells if cell.is_done]
    return min(done, key=lambda cell: (cell.mean(metric).mean, -(cell.strength or 0.0)), default=None)


def one_standard_error(cells: Sequence[Cell], best: Cell, metric: str = "valid_error") -> Cell:
    """The strongest cell whose metric is within one standard error of the best one's."""
    middle, error = of_metric(best, metric)
    limit = middle + (error or 0.0)
    near = [cell for cell in cells if cell.is_done and cell.mean(metric).mean <= limit]
    return max(near, key=lambda cell: cell.strength or 0.0)


def of_metric(cell: Cell, metric: str) -> Mean:
    """The mean over seeds with its standard error; for a validation error that of the finite number of examples.

    Seeds are validated on the same examples, so their spread does not tell what others would give.
    """
    found = cell.mean(metric)
    if metric != "valid_error":
        return found
    return Mean(found.mean, own_error(cell, metric))


def _bare(run: Run) -> Run:
    """The same run without regularizers, weight decay and dropout, and its last weights."""
    model = run.model.model_copy(update={"dropout": None, "input_dropout": None, "wrap": None})
    optimizer = run.optimizer.model_copy(update={"weight_decay": 0.0})
    off = {"regularizers": (), "dropout_schedule": None, "auto_strength": None, "is_average": False}
    return run.model_copy(update={"model": model, "optimizer": optimizer, **off})


def _unnamed(run: Run) -> Run:
    """The same run without regularization, names and seed; whether its weights were averaged too, does not count."""
    names: Row = {"arm": "", "strength": None, "values": {}, "seed": 0}
    train = run.train.model_copy(update={"average": None})
    return _bare(run).model_copy(update={**names, "train": train})
