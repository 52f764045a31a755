"""What a study shows: each arm against the unregularized one, and the claims that hold beyond chance.

Every comparison that a reader may see counts: all arms at all strengths, since the choice among them rests on the same
seeds as the test error does. Holm's procedure holds the chance of any false one at 5 % of studies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cells import Cell, best_of, difference, own_error, same_test
from .numbers import Unit
from .statistics import LEVEL, Difference, holm, mcnemar
from .summary import Summary

LEAST = 0.005  # half a point, or of an RMSE half a percent: a smaller difference is no claim, however certain


class Claim(NamedTuple):
    """A claim about regularization, with the evidence of this study."""

    title: str
    evidence: str


class Table(NamedTuple):
    """Rows of text below their heads, with a title and an explanation."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str


def claims(summary: Summary) -> list[Claim]:
    """The claims that this study supports, each arm against one that differs only in regularization."""
    pairs = [
        (cell, plain) for cell, plain in _pairs(summary, summary.cells) if cell.differs_only_by_regularization(plain)
    ]
    off = [(cell, plain) for cell, plain in pairs if cell.is_off()]
    on = [(cell, plain) for cell, plain in pairs if not cell.is_off()]
    shown = [cell.runs for cell in shown_by(summary)]
    found = [_Found(cell, plain) for cell, plain in on if any(cell.runs is runs for runs in shown)]
    held = holm([*(one.is_claim for one in found), *[never] * (len(on) - len(found))])
    sure = [one for one, is_held in zip(found, held, strict=False) if is_held]
    return [*_zero_is_plain(off), *_between([cell for cell, _ in on], sure), *_too_strong(sure), *_compressed(summary)]


def shown_by(summary: Summary) -> list[Cell]:
    """The cells whose test error differs from the unregularized one beyond chance, counting all comparisons."""
    pairs = [(cell, plain) for cell, plain in _pairs(summary, summary.cells) if not cell.is_off()]
    tests: list[Callable[[float], bool]] = []
    for cell, plain in pairs:
        found = _less(cell, plain)
        tests.append(found.excludes_zero if found else never)
    return [cell for (cell, _), is_shown in zip(pairs, holm(tests), strict=True) if is_shown]


def compared(summary: Summary) -> Table | None:
    """The chosen arms less the unregularized ones; None if there is none, or nothing but single seeds."""
    shown, rows, arms = [cell.runs for cell in shown_by(summary)], [], []
    for cell, plain in _pairs(summary, summary.chosen):
        found = None if cell.is_off() else _less(cell, plain)
        if found is not None and found.of_seeds is not None:
            errors = [plain.unit.size(error) for error in (found.of_seeds, found.of_images)]
            is_shown = any(cell.runs is runs for runs in shown)
            figures = [*written(found, plain.unit), *errors, str(found.seeds), "yes" if is_shown else "no"]
            rows.append([cell.label, *figures])
            arms.append(plain.arm)
    if not rows:
        return None
    several = len(set(arms)) > 1
    if several:
        rows = [[f"{label} less {arm}", *figures] for arm, (label, *figures) in zip(arms, rows, strict=True)]
    interval = f"{100 * LEVEL:g} % interval"
    heads = ["arms" if several else f"less {arms[0]}", f"test {summary.error}", interval, "SE: seeds"]
    text = (
        f"Differences{in_units(summary)}, seed by seed. The interval counts both standard errors, of seeds and of test "
        f"{summary.noun}. Beyond: the interval excludes zero also where all arms and strengths are counted (Holm), so "
        f"that by chance any does in {100 * (1 - LEVEL):.0f} % of studies."
    )
    title = "Against the unregularized arms" if several else f"Against {arms[0]}"
    return Table(title, [*heads, summary.noun, "seeds", "beyond"], rows, text)


def single_runs(summary: Summary) -> Table | None:
    """McNemar's test of the arms with one seed in common with the unregularized one; None without such."""
    rows, arms = [], []
    for cell, plain in _pairs(summary, summary.chosen):
        if not same_test(cell, plain):
            continue
        ours, theirs, common = cell.wrong("test"), plain.wrong("test"), cell.seeds & plain.seeds
        if len(common) == 1 and common <= ours.keys() & theirs.keys():
            (seed,) = common
            if len(ours[seed]) == len(theirs[seed]):
                found = mcnemar(ours[seed], theirs[seed])
                rows.append([cell.label, str(found.only_ours), str(found.only_theirs), f"{found.p:.2g}"])
                arms.append(plain.arm)
    if not rows:
        return None
    if several := len(set(arms)) > 1:
        rows = [[f"{label} and {arm}", *figures] for arm, (label, *figures) in zip(arms, rows, strict=True)]
    other = "in the other" if several else f"with {arms[0]}"
    heads = ["single runs", "wrong here only", f"wrong {other} only", "McNemar's p"]
    text = (
        f"Test {summary.noun} that only one of two runs has wrong. The exact p-value is for other {summary.noun} and "
        "these two runs; what other seeds would do is unknown, so no difference is claimed."
    )
    return Table("Two single runs", heads, rows, text)


def _pairs(summary: Summary, cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """The finished cells, each with the unregularized one to compare it with.

    That is one which differs by regularization alone. Other networks and losses without regularization are compared
    with the first such arm, if they have its data.
    """
    found = []
    for cell in cells:
        plain = summary.plain if cell.is_plain() else summary.counterpart(cell)
        if plain is None or not cell.is_done or cell is plain:
            continue
        if not cell.is_plain() or cell.runs[0].data == plain.runs[0].data:
            found.append((cell, plain))
    return found


def written(found: Difference, unit: Unit) -> list[str]:
    """A difference, and its interval."""
    interval = found.interval()
    return [unit.signed(found.mean), "unknown" if interval is None else " to ".join(map(unit.signed, interval))]


def in_units(summary: Summary) -> str:
    """What differences are in."""
    return " in units of the target" if summary.is_regression else " in points"


class _Found:
    """How a regularized arm differs from the unregularized one."""

    def __init__(self, cell: Cell, plain: Cell) -> None:
        self.cell, self.plain, self.unit = cell, plain, plain.unit
        self.least = LEAST * (plain.mean("test_error").mean if plain.is_regression else 1.0)
        self.test, self.gap, self.train = (_less(cell, plain, key) for key in ("test_error", "gap", "train_error"))

    @property
    def is_better(self) -> bool:
        """Whether test error and gap are lower, by what is enough for a claim."""
        return all(found is not None and -found.mean > self.least for found in (self.test, self.gap))

    @property
    def is_worse(self) -> bool:
        """Whether test and training error are higher, by as much."""
        return all(found is not None and found.mean > self.least for found in (self.test, self.train))

    def is_claim(self, level: float) -> bool:
        """Whether it is better or worse beyond both intervals: both figures must be, so each is held at the level."""
        figures = (self.test, self.gap) if self.is_better else (self.test, self.train) if self.is_worse else ()
        return bool(figures) and all(found is not None and found.excludes_zero(level) for found in figures)


def never(level: float) -> bool:
    """Stands for a comparison that cannot be shown at any level, and is counted."""
    return False


def _less(cell: Cell, plain: Cell, key: str = "test_error") -> Difference | None:
    return difference(cell, plain, key, is_same=same_test(cell, plain))


def _rounds(cell: Cell, plain: Cell, seed: int) -> bool:
    """Whether rounding alone may tell two runs apart: stacks differ, and test errors by what a few examples make."""
    return cell.stacks[seed] != plain.stacks[seed] and abs(_apart(cell, plain, seed)) <= 2 * own_error(plain)


def _apart(cell: Cell, plain: Cell, seed: int) -> float:
    return cell.by_seed("test_error")[seed] - plain.by_seed("test_error")[seed]


def _zero_is_plain(off: list[tuple[Cell, Cell]]) -> list[Claim]:
    common = [(cell, plain, cell.digests.keys() & plain.digests.keys()) for cell, plain in off]
    other = [one for one in common if any(one[0].digests[seed] != one[1].digests[seed] for seed in one[2])]
    names = " and ".join(cell.arm for cell, _, _ in other)
    plains = " and ".join(dict.fromkeys(plain.arm for _, plain, _ in other))
    if other and all(_rounds(cell, plain, seed) for cell, plain, seeds in other for seed in seeds):
        apart, unit = max(abs(_apart(*one[:2], seed)) for one in other for seed in one[2]), other[0][1].unit
        evidence = (
            f"{names} at strength 0 and {plains} were trained in stacks of other sizes, which round in another "
            f"order: their test errors differ by at most {unit.size(apart)}{unit.points}."
        )
        return [Claim("Strength 0 is the plain loss up to rounding.", evidence)]
    if other:
        return [Claim("Strength 0 is not the plain loss here!", f"Other weights than {plains}: {names}.")]
    same = [cell.arm for cell, _, seeds in common if seeds]
    if not same:
        return []
    verb = "end" if len(same) > 1 else "ends"
    evidence = f"{' and '.join(same)} at strength 0 {verb} with the unregularized weights, bit for bit."
    return [Claim("Strength 0 is the plain loss.", evidence)]


def _between(on: list[Cell], sure: list[_Found]) -> list[Claim]:
    """The best arm, which is chosen by the validation error, if it is better."""
    found = next((one for one in sure if one.is_better and one.cell is best_of(on)), None)
    if found is None:
        return []
    best, plain = found.cell, found.plain
    closes = abs(best.gap.mean) < 0.5 * plain.gap.mean
    noise = plain.runs[0].data.label_noise
    wrong = f" ({100 * noise:g} % of its labels are wrong)" if noise else ""
    evidence = f"Unregularized: {_errors(plain, wrong)}. {best.label}: {_errors(best)}. {_by(found)}"
    return [Claim(f"In between, the gap {'closes' if closes else 'narrows'}.", evidence)]


def _too_strong(sure: list[_Found]) -> list[Claim]:
    worse = [one for one in sure if one.is_worse]
    if not worse:
        return []
    found = max(worse, key=lambda one: one.cell.mean("train_error").mean)
    worst = found.cell
    at = "" if worst.strength is None else f" at {worst.strength:g}"
    return [Claim("Too strong, and the network under-fits.", f"{worst.arm}{at}: {_errors(worst)}. {_by(found)}")]


def _by(found: _Found) -> str:
    """The difference in test error and its interval, as a sentence."""
    if found.test is None:
        return ""
    middle, span = written(found.test, found.unit)
    error = "RMSE" if found.cell.is_regression else "error"
    return f"Test {error} {middle}{found.unit.points} ({100 * LEVEL:g} % interval {span}, {found.test.seeds} seeds)."


def _compressed(summary: Summary) -> list[Claim]:
    """How much the arms with many zeros can be compressed."""
    compressed = [cell for cell in summary.chosen if cell.is_done and cell.compression]
    counted = [f"{cell.label} {cell.compression}" for cell in compressed if cell.mean("zeros").mean > 0.9]
    if not counted:
        return []
    title = "Compression by weights that are not zero / by units left / in bits / size with a mask of what is left."
    return [Claim(title, f"{'; '.join(counted)}.")]


def _errors(cell: Cell, remark: str = "") -> str:
    train, test = (cell.unit.mean(cell.mean(key)) for key in ("train_error", "test_error"))
    if cell.is_regression:
        return f"training RMSE {train}, test RMSE {test}"
    return f"training error {train} %{remark}, test error {test} %"
