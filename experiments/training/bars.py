"""Progress on standard error: bars in a terminal, and a line now and then in a file or a pipe."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from tqdm import tqdm

from . import interrupts

_EVERY = 10.0  # seconds between two lines, at first
_SHARE = 1 / 20  # of the time so far, between two lines later: an hour's log has no hundreds of them
_SHOWN = 0.1  # seconds between two looks of a bar
_BAR = "{percentage:3.0f}%|{bar}| {desc}"

_open: list[Bar] = []  # those that are shown, from the outermost one
_is_silent = False


class Bar:
    """The progress of a command, with the time that it still takes; or that of a part of it, while it is open.

    Example:
        with Bar("quickstart", len(runs), "run") as bar:
            for run in runs:
                train(run)  # opens a bar of its own, with as many units as there are epochs
                bar.write(f"{run} is done")
                bar.update()

    Args:
        name: what is under way.
        total: the number of units.
        unit: one of them, such as "run".
        done: the number of units that were done before; the time of the others tells the time that is left.
        stands_for: the number of units of the bar around it, such as the runs of a stack.
        stays: whether a terminal keeps it at its end; a bar within another one goes anyway.
    """

    def __init__(
        self, name: str, total: int, unit: str, done: int = 0, stands_for: int = 1, stays: bool = True
    ) -> None:
        self.name, self.total, self.unit, self.done, self.stands_for = name, total, unit, done, stands_for
        self.stays = stays
        self.note = ""
        self._outer: Bar | None = None
        self._known = float(done)
        self._parts = 0  # units of what is under way that have come to their end
        self._share = 0.0  # of the part that is under way
        self._started = self._shown = time.monotonic()
        self._bar: tqdm[Any] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Bar:
        if _is_silent:
            return self
        self._outer = _open[-1] if _open else None
        _open.append(self)
        if self._outer is not None:
            self._outer._share = self._done_of_outer
            self._outer._known += self._done_of_outer
        if is_terminal := sys.stderr is not None and sys.stderr.isatty():
            stays = self.stays and self._outer is None
            text = f"{self.name}: {self}"
            self._bar = tqdm(total=self.total, desc=text, leave=stays, bar_format=_BAR, dynamic_ncols=True)
        if self._outer is None:
            self._thread = threading.Thread(target=self._tell, args=(is_terminal,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self in _open:
            _open.remove(self)
        if self._outer is not None:
            self._outer._share = 0.0
            if kind is None:  # else its units are made in another way, or counted as failed
                self._outer._parts += self.stands_for
        if self._bar is not None:
            self._show(at_once=True)
            self._bar.close()

    def update(self, count: int = 1, is_new: bool = True) -> None:
        """Counts units that are done; ``is_new`` is False for those that took no time, since they were done before."""
        interrupts.check()
        self.done += count
        self._known += 0 if is_new else count
        self._parts, self._share = 0, 0.0
        if self._outer is not None:
            self._outer._share = self._done_of_outer
        self._show()

    def write(self, line: str) -> None:
        """Prints a line to standard output at once, above the bars."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    @property
    def _done_of_outer(self) -> float:
        return self.stands_for * self.done / self.total

    @property
    def left(self) -> float | None:
        """The seconds that are left if the rest goes on as fast; None before anything has been done."""
        now = self.done + min(self._parts + self._share, self.total - self.done)
        new = now - self._known
        return (time.monotonic() - self._started) * (self.total - now) / new if new > 0 else None

    def __str__(self) -> str:
        left = self.left
        text = f"{self.done} of {self.total} {self.unit}s, {lasting(time.monotonic() - self._started)}"
        if left is not None and self.done < self.total:
            text += f", {'about ' if left >= 1 else ''}{lasting(left)} left"
        return f"{text}, {self.note}" if self.note else text

    def _show(self, at_once: bool = False) -> None:
        if self._bar is not None and (at_once or time.monotonic() - self._shown >= _SHOWN):
            self._shown = time.monotonic()
            self._bar.n = self.done + min(self._parts + self._share, self.total - self.done)
            self._bar.set_description_str(f"{self.name}: {self}")

    def _tell(self, is_terminal: bool) -> None:
        """Keeps the time in a terminal up to date, or writes a line now and then; in a thread."""
        while not self._ended.wait(1.0 if is_terminal else max(_EVERY, _SHARE * (time.monotonic() - self._started))):
            with suppress(OSError, ValueError):  # nobody reads it
                if is_terminal:
                    self._show()
                elif sys.stderr is not None:
                    print(f"{self.name}: {self}", file=sys.stderr, flush=True)


def silence() -> None:
    """Shows nothing from here on: for a process beside others, whose parent tells of them all."""
    global _is_silent
    _is_silent = True


def lasting(seconds: float) -> str:
    """A time as text.

    Example:
        >>> [lasting(seconds) for seconds in (0.2, 59.4, 125, 7384)]
        ['less than 1 s', '59 s', '2 min 5 s', '2 h 3 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "less than 1 s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
