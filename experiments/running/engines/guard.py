"""A script that ends what a process has started once that process has ended, however it did: ``guard.py PID``.

Two idle processes of a local Ray would else wait a minute for their server. It is for Linux, and imports nothing slow.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_LOOKED = 0.5  # seconds between two looks
_GRACE = 1.0  # seconds in which the processes may end by themselves


def descendants(pid: int) -> dict[int, str]:
    """The processes that a process has started, and that these have, each with the time of its start."""
    found: dict[int, str] = {}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                found |= {child: _start_of(child), **descendants(child)}
    return found


def _start_of(pid: int) -> str:
    """By which a process is told from a later one of the same number."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def main(pid: int) -> None:
    """Watches the process, which is this one's parent."""
    known: dict[int, str] = {}
    while os.getppid() == pid:
        known |= descendants(pid)
        time.sleep(_LOOKED)
    time.sleep(_GRACE)
    for other, start in known.items():
        with suppress(OSError):
            if other != os.getpid() and _start_of(other) == start:
                os.kill(other, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
