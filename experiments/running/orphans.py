"""The first thing a worker process does: it makes sure that it ends with its parent.

This module imports nothing slow, so that a worker whose parent is killed while it imports torch ends too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def call(module: str, function: str, *args: Any) -> None:
    """Imports a module, which may take seconds, and calls its function, in a process that ends when its parent does."""
    _end_with_parent()
    getattr(import_module(module), function)(*args)


def nothing() -> None:
    """What a process does that only shows that one can be started."""


def _end_with_parent() -> None:
    """Ends this process when its parent ends, whatever it is doing on Linux, else when Python's lock is free."""
    parent = parent_process()
    assert parent is not None
    if sys.platform == "linux":
        import fcntl

        # The system's own parent is the process of which this one is a fork, and may outlive ours.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Ours has the other end of a pipe. When that is closed, the kernel sends a signal (SIGIO) that ends a process.
        pipe = parent.sentinel
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        if wait([pipe], timeout=0):  # it has ended before
            os._exit(1)
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
