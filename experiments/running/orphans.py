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
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def call(module: str, function: str, *args: Any) -> None:
    """Imports a module, which may take seconds, and calls its function, in a process that ends when its parent does."""
    _end_with_parent()
    getattr(import_module(module), function)(*args)


def _end_with_parent() -> None:
    """Ends this process when its parent ends, whatever it is doing on Linux, else when Python's lock is free."""
    parent = parent_process()
    assert parent is not None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it has ended before
            os._exit(1)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
