"""How often reports claim what is not so, and what is: ``python -m experiments.report.coverage [FILE.md]``.

Results are simulated instead of trained, and go the way of all results: records' rows, cells, claims.

An image is wrong where a sum of normal numbers exceeds a threshold: how difficult the image is, what the arm, and what
the arm with this seed makes of it, and how well the seed and the arm with this seed do on all images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ..config import Run, resolve
from ..training.files import write
from ..training.outcomes import packed
from .cells import Cell, difference
from .claims import claims, shown_by
from .statistics import bootstrap, paired
from .summary import Summary

STUDIES = 1000  # of each kind
STRENGTHS = [0.01, 0.03, 0.1, 0.3, 1.0]
TREE: dict[str, Any] = {
    "name": "simulated",
    "data": {"name": "digits", "train_size": 300, "valid_size": 400},
    "model": {"name": "mlp", "hidden": [128]},
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 50},
    "arms": [
        {"name": "none"},
        {"name": "L1", "strengths": STRENGTHS, "regularizers": [{"penalty": "L1"}]},
        {"name": "L2", "strengths": STRENGTHS, "regularizers": [{"penalty": "L2"}]},
        {"name": "decay", "optimizer": {"weight_decay": 1.0}},
        {"name": "dropout", "model": {"dropout": {"name": "Dropout", "p": 0.5}}},
    ],
}
PLAIN, HELPFUL = "none", "dropout"  # the arm that an effect, if any, is of


HEAD = """# Coverage of intervals and claims

`python -m experiments.report.coverage docs/coverage.md` writes this page. It simulates results, not
trainings: {studies:,} studies in each row of the first table. The results go the way of all results
to [what a report claims](guides/studies.md#what-the-report-claims).

A simulated study has the arms of the quickstart: none, L1 and L2 at five strengths each, decay and
dropout. These are 12 comparisons with **none**. Test errors are about 10 %, on 797 images unless a
table says otherwise. There are three worlds:

- **as in the quickstart**: seeds and arms disagree about as many images as they do there.
- **seeds count more**: a seed moves the error of a run by about 2.5 points.
- **arms vary unequally**: some arms vary with the seed much more than others.

Without any effect a claim, or a difference marked "beyond", should be printed in at most 5 % of
studies, and the 95 % intervals of single comparisons should hold 0 in 95 %:
"""


class World(NamedTuple):
    """Where results come from: standard deviations, of which those over images add up to a variance of 1."""

    name: str
    by_seed: float  # how well a seed does in all arms
    by_run: float  # how well a seed does in one arm
    of_arm: float  # what an arm makes of an image
    of_run: float  # what an arm with a seed makes of an image
    is_even: bool = True  # whether all arms vary alike; else each has a factor between 0 and 2
    error: float = 0.1


WORLDS = (
    World("as in the quickstart", by_seed=0.01, by_run=0.01, of_arm=0.035**0.5, of_run=0.03**0.5),
    World("seeds count more", by_seed=0.1, by_run=0.1, of_arm=0.1**0.5, of_run=0.3**0.5),
    World("arms vary unequally", by_seed=0.05, by_run=0.1, of_arm=0.035**0.5, of_run=0.03**0.5, is_even=False),
)


class Counts(NamedTuple):
    """What so many simulated studies of a kind have shown, as shares."""

    claimed: float  # studies with any claim, or any difference beyond chance
    covered: float  # single intervals that hold the true difference
    of_seeds: float  # mean standard errors, in points
    of_images: float


def simulated(world: World, seeds: int, effect: float, draw: np.random.Generator, test_size: int) -> Summary:
    """A study's summary, in which the test error of one arm is lower by the effect, or of none."""
    runs = _cells_of(seeds)
    sizes = {"train": 300, "valid": 400, "test": test_size}
    shape = len(runs), seeds

    def normal(scale: float, *size: int) -> np.ndarray:
        return np.float32(scale) * draw.standard_normal(size, dtype=np.float32)

    factors = np.ones(len(runs)) if world.is_even else draw.uniform(0, 2, len(runs))
    shifts = normal(world.by_seed, seeds) + normal(world.by_run, *shape) * factors[:, None]
    common = (1 - world.of_arm**2 - world.of_run**2) ** 0.5
    rates = np.array([world.error - (effect if own[0].arm == HELPFUL else 0.0) for own in runs])
    spread = (1 + world.by_seed**2 + (world.by_run * factors) ** 2) ** 0.5  # so that the errors are the rates
    limits = {"valid": stats.norm.isf(rates) * spread, "test": stats.norm.isf(rates) * spread}
    limits["train"] = stats.norm.isf(np.full(len(runs), world.error / 4)) * spread
    wrong = {}
    for split, size in sizes.items():
        sums = normal(common, size) + normal(world.of_arm, len(runs), 1, size) + normal(world.of_run, *shape, size)
        sums += shifts[:, :, None]
        wrong[split] = sums > limits[split][:, None, None]
    cells = []
    for place, own in enumerate(runs):
        results = []
        for at in range(seeds):
            row: dict[str, Any] = {"status": "done", "sha256": f"{place} {at}", "seed": at}
            row |= {f"{split}_error": float(found[place, at].mean()) for split, found in wrong.items()}
            row["examples"] = sizes
            results.append({**row, "outcomes": {split: packed(wrong[split][place, at]) for split in ("valid", "test")}})
        cells.append(Cell(own, results))
    return Summary("simulated", cells, len(runs) * seeds, {})


_CELLS: dict[int, list[list[Run]]] = {}


def _cells_of(seeds: int) -> list[list[Run]]:
    """The runs of the study, cell by cell."""
    if seeds not in _CELLS:
        study = resolve({**TREE, "seeds": list(range(seeds))})
        _CELLS[seeds] = [list(study.runs[at : at + seeds]) for at in range(0, len(study.runs), seeds)]
    return _CELLS[seeds]


def count(
    world: World, seeds: int, effect: float = 0.0, studies: int = 1000, seed: int = 0, test_size: int = 797
) -> Counts:
    """Simulates studies, and counts in how many of them the report claims anything; with an effect, that it is."""
    draw = np.random.default_rng(seed)
    claimed, covered, errors = 0, [], []
    for number in range(studies):
        summary = simulated(world, seeds, effect, draw, test_size)
        titles = [claim.title for claim in claims(summary)]
        if effect:
            claimed += any(title.startswith("In between") for title in titles)
        else:
            claimed += bool(titles or shown_by(summary))
        plain = summary.cells[0]
        for cell in summary.cells[1:] if number % 4 == 0 else ():  # thousands of intervals are enough
            found = difference(cell, plain, "test_error")
            interval = None if found is None else found.interval()
            if found is None or found.of_seeds is None or interval is None:
                continue
            truth = -effect if cell.arm == HELPFUL else 0.0
            covered.append(interval[0] <= truth <= interval[1])
            errors.append((100 * found.of_seeds, 100 * found.of_images))
    of_seeds, of_images = np.mean(errors, axis=0)
    return Counts(claimed / studies, float(np.mean(covered)), float(of_seeds), float(of_images))


def compare_bootstrap(seeds: int, studies: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The shares of intervals over seeds that hold the true mean difference: of Student's t, and of the bootstrap."""
    draw = np.random.default_rng(seed)
    held = np.zeros(2)
    for _ in range(studies):
        values = draw.standard_normal(seeds).tolist()
        found = paired(dict(enumerate(values)), dict.fromkeys(range(seeds), 0.0))
        interval = (0.0, 0.0) if found is None else found.interval() or (0.0, 0.0)
        for at, (low, high) in enumerate((interval, bootstrap(values))):
            held[at] += low <= 0 <= high
    by_t, by_bootstrap = (held / studies).tolist()
    return by_t, by_bootstrap


def tables(studies: int) -> Iterator[str]:
    """The page of figures, line by line, as they are found."""
    started = time.monotonic()
    yield from (*HEAD.format(studies=studies).splitlines(), "")
    yield from _heads("no effect", "seeds", "studies with a claim %", "intervals that hold 0 %", "SE: seeds", "images")
    for world in WORLDS:
        for seeds in (2, 3, 10):
            found = count(world, seeds, studies=studies)
            yield _row(world.name, seeds, f"{100 * found.claimed:.1f}", *_rest(found))
    yield from ("", "One arm lowers the test error, at 10 seeds:", "")
    yield from _heads("effect", "points", "images", "studies that claim it %", "intervals that hold it %")
    for world, effect, size in [(world, effect, 797) for world in WORLDS for effect in (0.03, 0.05)]:
        found = count(world, 10, effect, studies * 3 // 10, test_size=size)
        yield _row(world.name, f"{100 * effect:g}", f"{size:,}", f"{100 * found.claimed:.1f}", _rest(found)[0])
    found = count(WORLDS[0], 10, 0.015, studies // 10, test_size=10_000)
    yield _row(WORLDS[0].name, "1.5", "10,000", f"{100 * found.claimed:.1f}", _rest(found)[0])
    yield from ("", "Normal differences over seeds, and what their mean's 95 % intervals hold:", "")
    yield from _heads("seeds", "Student's t %", "bootstrap (BCa) %")
    for seeds in (3, 5, 10):
        yield _row(seeds, *(f"{100 * share:.1f}" for share in compare_bootstrap(seeds, 3 * studies)))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


def _rest(found: Counts) -> list[str]:
    return [f"{100 * found.covered:.1f}", f"{found.of_seeds:.2f}", f"{found.of_images:.2f}"]


def _heads(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|---|" + "---:|" * (len(names) - 1)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str]) -> None:
    """Prints the figures, and writes them as a page."""
    if len(arguments) > 1 or any(not Path(name).parent.is_dir() for name in arguments):
        print(f"error: coverage: needs no more than a file in a folder that exists, got {arguments}", file=sys.stderr)
        sys.exit(2)
    lines = []
    for line in tables(STUDIES):
        print(line, flush=True)
        lines.append(line)
    if arguments:
        write(Path(arguments[0]), "\n".join([*lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
