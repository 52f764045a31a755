"""The command line in this process, with its own handling of errors."""

import contextlib
import io
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from experiments import cli

LIMIT = 120  # seconds, after which a command is taken to hang


class Outcome(NamedTuple):
    """What a command ended with."""

    code: int | None  # None: with an exception, whose traceback ends `err`
    out: str
    err: list[str]

    @property
    def is_refused(self) -> bool:
        """Whether it ended with code 2 and a line for each fault, and nothing else."""
        return self.code == 2 and not self.out and bool(self.err) and all(is_error(line) for line in self.err)


class HangsError(BaseException):
    """The time is over."""


def outcome_of(command: Callable[[], None]) -> Outcome:
    """Runs a command of :mod:`experiments.cli`, as its ``main`` does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited():
        try:
            code = cli.bounded(command)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            code = getattr(error, "exit_code", None)  # of typer.Exit
            if code is None:
                traceback.print_exc()
            elif code > 128:  # the fuzzer itself is asked to end
                raise KeyboardInterrupt from error
    return Outcome(code, out.getvalue(), err.getvalue().splitlines())


def is_error(line: str) -> bool:
    """Whether a line names a fault."""
    return line.startswith("error: ") and len(line) > 15


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    if not hasattr(signal, "SIGALRM"):  # on Windows
        yield
        return

    def end(*_: object) -> None:
        raise HangsError(f"after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
