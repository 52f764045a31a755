"""Timing of contenders in rounds; they are compared by the median of the ratios within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median, quantiles
from typing import Any, TypeVar

import torch

from ..training.bars import Bar

T = TypeVar("T")
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
    """The results of one comparison; ``width`` is that of the longest name that will come."""

    title: str
    rows: tuple[Row, ...] = ()
    note: str = ""
    figure: str = "ratio"
    width: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return "\n".join([*self.head, *self.lines, *self.foot])

    @property
    def head(self) -> list[str]:
        return [self.title, f"  {'':<{self._width}}{self.figure:>8}   quartiles"]

    @property
    def lines(self) -> list[str]:
        """A line for each row."""
        found = []
        for row in self.rows:
            quartiles = f"{row.low:.3f} to {row.high:.3f}"
            line = f"  {row.name:<{self._width}}{row.ratio:8.3f}   {quartiles:<18}{_lasting(row.seconds):>9}"
            found.append(line.rstrip())
        return found

    @property
    def foot(self) -> list[str]:
        return [f"  {self.note}"] if self.note else []

    @property
    def _width(self) -> int:
        return max([self.width, *(len(row.name) for row in self.rows)])

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> dict[str, Any]:
        held = asdict(self)
        del held["width"]
        return held

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Table:
        return cls(**{**held, "rows": tuple(Row(**row) for row in held["rows"])})


def _lasting(seconds: float) -> str:
    scale, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{scale * seconds:.3g} {unit}" if seconds else ""


@dataclass(frozen=True)
class Clock:
    """How contenders are timed.

    Tables are given again as they grow, first without rows, so that a title is shown before the first round. If Ctrl-C
    is pressed, the rounds that there are make the last table; it says how many they are.

    Args:
        device: where they work; the clock waits for what a CUDA device has still to do.
        is_quick: whether a first look is enough: few rounds, and the benches leave out what takes long.
    """

    device: str = "cpu"
    is_quick: bool = False

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def race(
        self,
        title: str,
        contenders: Contenders,
        rounds: int,
        warmup: int = 3,
        note: str | Callable[[], str] = "",
        repeat: int = 20,
    ) -> Iterator[Table]:
        """All contenders in each round, with ratios to the first one; a note may be known after the last round only."""
        names = list(contenders)
        yield Table(title, width=max(map(len, names)))
        for taken, stopped in self.laps(title, contenders, rounds, warmup, repeat):
            said = note if isinstance(note, str) else note()
            yield tabulate(title, names, taken, "; ".join(filter(None, (said, stopped))))

    def duel(self, name: str, base: Work, work: Work, rounds: int, repeat: int = 20) -> Iterator[Row]:
        """The row of one contender against another."""
        for taken, stopped in self.laps(name, {"": base, name: work}, rounds, repeat=repeat):
            yield tabulate("", ["", f"{name}, {stopped}" if stopped else name], taken).rows[1]

    def laps(
        self, title: str, contenders: Contenders, rounds: int, warmup: int = 3, repeat: int = 20
    ) -> Iterator[tuple[list[list[float]], str]]:
        """The seconds that each contender takes, round after round; each round begins with the next one of them.

        What goes before, and leaves its weights in the caches and its memory to the C library, is thus not always the
        same.
        """
        works = list(contenders.values())

        def lap(number: int) -> list[float]:
            taken = [0.0] * len(works)
            for turn in range(len(works)):
                i = (number + turn) % len(works)
                taken[i] = self.seconds(works[i], repeat)
            return taken

        return self.repeated(title, lap, rounds, warmup)

    def repeated(
        self, title: str, measure: Callable[[int], T], rounds: int, warmup: int = 0
    ) -> Iterator[tuple[list[T], str]]:
        """What is measured in all rounds, once; or in those before it was stopped, with a word on that."""
        rounds = self._rounds(rounds)
        taken: list[T] = []
        try:
            with Bar(title[:60], rounds + warmup, "round", stays=False) as bar:
                for number in range(rounds + warmup):
                    taken.append(measure(number))
                    bar.update()
        except KeyboardInterrupt:
            if kept := taken[warmup:]:
                yield kept, f"stopped after {len(kept)} of {rounds} rounds"
            raise
        yield taken[warmup:], ""

    def seconds(self, work: Work, repeat: int = 1) -> float:
        """The seconds that a call takes; on CUDA the mean of some calls, since to wait for each would take its time."""
        calls = repeat if self.is_cuda else 1
        start = time.perf_counter()
        for _ in range(calls):
            work()
        if self.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    def _rounds(self, full: int) -> int:
        most = min(full, 20) if self.is_cuda else full  # of several calls each
        return min(most, max(5, most // 4)) if self.is_quick else most


def growing(title: str, rows: Iterable[Row], names: Iterable[str] = (), figure: str = "ratio") -> Iterator[Table]:
    """A table that is given again with each row, so that those that were measured are kept if the rest is not."""
    table = Table(title, figure=figure, width=max(map(len, names), default=0))
    yield table
    for row in rows:
        table = replace(table, rows=(*table.rows, row))
        yield table


def tabulate(title: str, names: Sequence[str], taken: Sequence[Sequence[float]], note: str = "", to: int = 0) -> Table:
    """The table of the seconds in all rounds, and of the ratios to the contender ``to``."""
    rows = []
    for i, name in enumerate(names):
        ratios = [times[i] / times[to] for times in taken]
        rows.append(Row(name, *spread(ratios), median(times[i] for times in taken)))
    return Table(title, tuple(rows), note)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the quartiles, which lie among the values even if these are two."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return middle, low, high
