"""Timing of contenders in rounds; they are compared by the median of the ratios within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from ..training.bars import Bar

Work = Callable[[], object]
Contenders = Mapping[str, Work]


@dataclass(frozen=True)
class Row:
    """One contender: its time, and its ratio to the first contender with the quartiles over the rounds."""

    name: str
    ratio: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """The results of one comparison."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""
    figure: str = "ratio"

    def __str__(self) -> str:
        scale, unit = (1.0, "s") if max(row.seconds for row in self.rows) > 1 else (1e3, "ms")
        width = max(len(row.name) for row in self.rows)
        timed = any(row.seconds for row in self.rows)
        lines = [self.title, f"  {'':<{width}}{self.figure:>8}   {'quartiles':<18}{unit if timed else '':>6}".rstrip()]
        for row in self.rows:
            quartiles = f"{row.low:.3f} to {row.high:.3f}"
            own = f"{scale * row.seconds:6.3g}" if timed else ""
            lines.append(f"  {row.name:<{width}}{row.ratio:8.3f}   {quartiles:<18}{own}".rstrip())
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Table:
        return cls(**{**held, "rows": tuple(Row(**row) for row in held["rows"])})


def race(title: str, contenders: Contenders, rounds: int, warmup: int = 3, note: str = "") -> Table:
    """Times all contenders in each round, with ratios to the first contender."""
    return tabulate(title, list(contenders), laps(title, contenders, rounds, warmup), note)


def growing(title: str, rows: Iterable[Row]) -> Iterator[Table]:
    """A table that is given again with each row, so that those that were measured are kept if the rest is not."""
    held: tuple[Row, ...] = ()
    for row in rows:
        held = (*held, row)
        yield Table(title, held)


def laps(title: str, contenders: Contenders, rounds: int, warmup: int = 3) -> list[list[float]]:
    """The seconds that each contender takes, round after round; each round begins with the next one of them.

    What goes before, and leaves its weights in the caches and its memory to the C library, is thus not always the same.
    """
    works, taken = list(contenders.values()), []
    with Bar(title[:60] or list(contenders)[-1], rounds + warmup, "round") as bar:
        for number in range(rounds + warmup):
            lap = [0.0] * len(works)
            for turn in range(len(works)):
                i = (number + turn) % len(works)
                lap[i] = seconds(works[i])
            taken.append(lap)
            bar.update()
    return taken[warmup:]


def tabulate(title: str, names: Sequence[str], taken: Sequence[Sequence[float]], note: str = "", to: int = 0) -> Table:
    """The table of the seconds in all rounds, and of the ratios to the contender ``to``."""
    rows = []
    for i, name in enumerate(names):
        ratios = [times[i] / times[to] for times in taken]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows.append(Row(name, median(ratios), low, high, median(times[i] for times in taken)))
    return Table(title, tuple(rows), note)


def seconds(work: Work) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
