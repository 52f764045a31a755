"""Ctrl-C and SIGTERM: a command ends with one line, wherever the signal meets it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_asked: int | None = None  # the signal that has come and that nothing has acted on yet


class Stopped(KeyboardInterrupt):
    """The process was asked to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def heard() -> Iterator[None]:
    """Raises :class:`Stopped` at Ctrl-C, and if the process is asked to end (SIGTERM), unless that is ignored."""
    global _asked
    if threading.current_thread() is not threading.main_thread():  # Python allows it no handlers
        yield
        return
    heeded = (number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN)
    before = {number: signal.signal(number, _raise) for number in heeded}
    try:
        yield
    finally:
        _asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raises again what was lost: Python drops an exception that it meets in a finalizer, and so does other code.

    Raises:
        Stopped: the process was asked to end.
    """
    if _asked is not None:
        raise Stopped(_asked)


def _raise(number: int, _: object) -> None:
    global _asked
    _asked = number
    raise Stopped(number)
