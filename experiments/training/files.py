"""Files that are complete or do not exist, and that are what was written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ..errors import RecordError
from . import storage

_CHECKSUM = ',\n  "checksum": "'


def checksum(content: bytes) -> str:
    """The SHA-256 digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


def damaged(path: Path, how: str = "is damaged") -> RecordError:
    """The error for a file of a record that is not what was written."""
    return RecordError(f"{path}: {how}: remove {path.parent}, and --resume makes the run again")


def content_of(path: Path) -> bytes:
    """The bytes of a record's file."""
    try:
        if not storage.is_local(path):
            return storage.get(path)
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise damaged(path, "is not a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from None


def parsed(content: bytes, path: Path, made_of: Callable[[dict[str, Any]], Any] = dict) -> Any:
    """The JSON value in a record's file, or in a line of it; ``made_of`` makes something of each table in it."""

    def table(pairs: list[tuple[str, Any]]) -> Any:
        # Thousands of records have the same keys: these are to be the same strings in memory, too.
        return made_of({sys.intern(key): value for key, value in pairs})

    try:
        # Bytes that are not UTF-8 are refused.
        return json.loads(content.decode(), parse_constant=_refuse, object_pairs_hook=table)
    except (ValueError, RecursionError):
        raise damaged(path) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def sealed(text: str) -> str:
    """The text of a JSON object with its checksum as the last key."""
    body = text.rstrip().removesuffix("}").rstrip()
    return f'{body}{_CHECKSUM}{checksum(body.encode())}"\n}}\n'


def unsealed(path: Path, made_of: Callable[[dict[str, Any]], Any] = dict) -> dict[str, Any]:
    """The JSON object in a file that :func:`sealed` has made, or in one without a checksum, of an earlier version."""
    content = content_of(path)
    tree = parsed(content, path, made_of)
    if not isinstance(tree, dict):
        raise damaged(path)
    if "checksum" in tree or "files" in tree:  # what has checksums of other files has its own
        body, _, end = content.rpartition(_CHECKSUM.encode())
        if end.decode() != f'{checksum(body)}"\n}}\n':
            raise damaged(path)
        del tree["checksum"]
    return tree


def compressed(content: bytes) -> str:
    """The bytes as a text for a JSON file."""
    return b64encode(zlib.compress(content, 6)).decode()


def decompressed(text: str, count: int) -> bytes:
    """The bytes in a text that :func:`compressed` has made.

    Raises:
        ValueError: it holds another number of them, or something else.
    """
    reader = zlib.decompressobj()
    try:
        found = reader.decompress(b64decode(text, validate=True), count + 1)  # never more, whatever it claims to hold
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) != count:
        raise ValueError(f"there must be {count} bytes, got {len(found)} or more")
    return found


def write(path: Path, content: str | bytes) -> None:
    """Writes a file such that it is complete or does not exist, even if the process is killed or the power fails.

    What lies at the name of the temporary file is removed first: left by a killed process, or a symbolic link, which
    is not followed.
    """
    data = content.encode() if isinstance(content, str) else content
    if not storage.is_local(path):
        storage.put(path, data)
        return
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # fails if anything, such as a link, has come in between
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()  # of a full disk it would take the rest
        raise _unwritable(path, error) from error


def line_of(row: dict[str, Any]) -> bytes:
    """The line of a file for a row."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a line to a file that :func:`write` has made."""
    if not storage.is_local(path):
        write(path, content_of(path) + line_of(row))
        return
    try:
        with path.open("ab") as file:
            file.write(line_of(row))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{path}: cannot be written: {error.strerror or error}")
