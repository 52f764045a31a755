"""Locks of folders: that of a file on this machine, and a lease at an address, where files cannot be locked."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from filelock import FileLock, Timeout

from ..errors import RecordError, StorageError
from . import storage

RENEWED = 5.0  # seconds between two renewals of a lease
LASTS = 60.0  # seconds without a renewal after which its holder counts as dead
_FREE = b'{"holder": null}\n'


class InUseError(Exception):
    """Another process holds the lock; the text says which."""


@contextmanager
def lock(folder: Path, waits: bool = True) -> Iterator[None]:
    """Holds the lock of a folder.

    Raises:
        InUseError: another process holds it, and this one does not wait for it.
        RecordError: there is a symbolic link in the place of the lock, which opening would follow.
    """
    if not storage.is_local(folder):
        with Lease(folder, waits):
            yield
        return
    path = folder / ".lock"
    if path.is_symlink():
        raise RecordError(f"{path}: must be a file, is a symbolic link: remove it")
    file = FileLock(path, timeout=-1 if waits else 0)
    try:
        file.acquire()
    except Timeout:
        raise InUseError("another process") from None
    try:
        yield
    finally:
        file.release()


def is_lock(name: str) -> bool:
    """Whether a file of that name is a lock."""
    return name == ".lock" or name.startswith(_PREFIX)


_PREFIX = ".lock-"


class Lease:
    """The lock of a folder at an address.

    It is an object with a number, which its holder writes again every few seconds. Who creates the one with the next
    number has the lock: only one process can. It may do so where the last one is free, or did not change for a minute
    while it was watched. So no clocks are compared. The last object is never removed: by it, whoever was stopped for
    long and goes on sees that he has lost the lock.
    """

    def __init__(self, folder: Path, waits: bool = True) -> None:
        self._folder, self._waits = folder, waits
        self._holder, self._id = f"process {os.getpid()} on {platform.node()}", uuid4().hex
        self._number = self._renewals = 0
        self._over = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> None:
        before, since = (0, _FREE), time.monotonic()
        while True:
            last = self._last()
            if last != before:
                if before[1] != _FREE and last[1] != _FREE and not self._waits:
                    raise InUseError(_holder_of(last[1]))
                before, since = last, time.monotonic()
                if last[1] != _FREE and not self._waits:
                    self._tell(_holder_of(last[1]))
            is_dead = time.monotonic() - since >= LASTS
            if (last[1] == _FREE or is_dead) and self._takes(last[0] + 1):
                self._thread.start()
                return
            if last[1] != _FREE:
                time.sleep(min(1.0, RENEWED))

    def _tell(self, holder: str) -> None:
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + LASTS))
        print(f"note: {self._folder} is held by {holder}; if that is dead, it is free at {until}", file=sys.stderr)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._is_lost:
            raise RecordError(
                f"{self._folder}: the lock was lost, because it could not be renewed for {LASTS:.0f} s: "
                "--resume goes on, if no other process does"
            ) from error
        with suppress(StorageError):  # then it is free in a minute
            storage.put(self._path(self._number), _FREE)

    def _path(self, number: int) -> Path:
        return self._folder / f"{_PREFIX}{number}"

    def _numbers(self) -> list[int]:
        ends = (name.removeprefix(_PREFIX) for name in storage.names_in(self._folder) if name.startswith(_PREFIX))
        return [int(end) for end in ends if end.isdecimal()]

    def _last(self) -> tuple[int, bytes]:
        """The number and the content of the last lease."""
        while True:
            number = max(self._numbers(), default=0)
            try:
                return number, storage.get(self._path(number)) if number else _FREE
            except FileNotFoundError:  # the next holder has removed it
                continue

    def _takes(self, number: int) -> bool:
        """Whether the lease of that number is ours."""
        path = self._path(number)
        try:
            storage.put(path, self._text(), is_new=True)
        except FileExistsError:
            if self._last() != (number, self._text()):  # else the answer to our own request got lost
                return False
        numbers = self._numbers()
        if not numbers:  # as over HTTP
            raise StorageError(f"{self._folder}: does not list the file that was written there: choose another storage")
        if max(numbers) != number:  # others came and went since the last one was read
            storage.remove(path)
            return False
        for other in numbers:
            if other < number:
                storage.remove(self._path(other))
        self._number = number
        return True

    def _text(self) -> bytes:
        return (json.dumps({"holder": self._holder, "id": self._id, "renewals": self._renewals}) + "\n").encode()

    def _renew(self) -> None:
        since = time.monotonic()
        while not self._over.wait(RENEWED):
            now = time.monotonic()
            self._renewals += 1
            try:
                if max(self._numbers()) > self._number:
                    break
                storage.put(self._path(self._number), self._text())
                since = now
            except StorageError:
                if now - since >= LASTS:
                    break
        else:
            return
        self._is_lost = True
        _interrupt()


def _holder_of(content: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["holder"])
    return "another process"


def _interrupt() -> None:
    """Ends what the main thread does, as Ctrl-C would."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it, if it waits
    else:
        signal.raise_signal(signal.SIGINT)
