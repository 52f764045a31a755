"""The results of a study: its records, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..config import Run, Study, Sweep
from ..errors import UserError
from ..training.outcomes import predictions, unpacked
from ..training.record import Record, Row, read_runs, read_study
from . import statistics
from .numbers import PERCENT, Unit, unit_of_rmse
from .statistics import Difference, Mean, mean

ONE_SE = ", one SE"
IMAGES = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10", "images")


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
        if run.auto_strength is not None:
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
        """The compression of the weights by each count; an empty string for records without it."""
        found = [result["compression"] for result in self.results if "compression" in result]
        counts = {count: [one.get(count) for one in found] for count in (found[0] if found else ())}
        return " / ".join("-" if None in ratios else f"{fmean(ratios):.0f}x" for ratios in counts.values())

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
            f"'{ONE_SE.strip(', ')}': the strongest within one standard error of that.": has_strongest,
            f"Not finished: these are {finished} of {self.planned} runs.": finished < self.planned,
            self._sampling: bool(self._sampling),
        }
        return " ".join(note for note, applies in notes.items() if applies)

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
