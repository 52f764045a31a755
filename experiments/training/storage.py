"""Where records are: in a folder of this machine, or at an address that fsspec knows, such as ``s3://bucket/mine``.

An address is a ``UPath``, which has the names of a ``Path`` and is annotated as one. On an object store a file is put
as a whole, and is there for all at once; nothing can be added to it, and there are no folders to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ..errors import StorageError, UserError, did_you_mean, oneline


def place(text: str) -> Path:
    """The folder or file that a text names: a path, or an address if it has ``://``.

    Raises:
        UserError: the text is empty, or nothing here can read and write such an address.
    """
    if not text:
        raise UserError("must be the path of a folder or a file, got an empty text: is a variable not set?")
    if "://" not in text:
        return Path(text)
    if text.startswith("file://") and not text.startswith("file:///"):
        raise UserError(f"{text}: must be file:/// and an absolute path, or a path alone")
    if "::" in text:
        raise UserError(f"{text}: must be one address, is a chain: leave out what stands before the last ::")
    try:
        from fsspec.registry import known_implementations
        from upath import UPath
    except ModuleNotFoundError as error:
        raise UserError(f"{text}: needs {error.name}, which is not installed: pip install universal_pathlib") from None
    protocol = text.partition("://")[0]
    if protocol not in known_implementations:
        raise UserError(f"{text}: unknown protocol {protocol!r}, {did_you_mean(protocol, known_implementations)}")
    if protocol == "memory":
        raise UserError(f"{text}: ends with this process: choose a folder or an address that stays")
    try:
        found = UPath(text)
        _ = found.fs
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        hint = oneline(error) if package == "fsspec" else f"pip install {package}"
        raise UserError(f"{text}: needs a package that is not installed: {hint}") from None
    except Exception as error:  # whatever a file system raises on its address
        raise UserError(f"{text}: is no address of {protocol}: {oneline(error)}") from None
    return Path(found.path) if protocol in ("file", "local") else cast(Path, found)


def is_local(path: Path) -> bool:
    """Whether the path is in a file system of this machine."""
    return isinstance(path, Path)


def _system(path: Path) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    address: Any = path
    return address.fs, address.path


@contextmanager
def _reached(path: Path, what: str) -> Iterator[None]:
    """What goes wrong at an address, in one line. Transient faults have been retried by then."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:  # each file system has its own errors
        raise StorageError(f"{path}: cannot be {what}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What an error says, without its class where that tells nothing more."""
    return " ".join((error.strerror or str(error)).split()) if isinstance(error, OSError) else oneline(error)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder now."""
    if is_local(path):
        return path.exists()
    system, name = _system(path)
    with _reached(path, "read"):
        system.invalidate_cache()  # other machines write there too
        return bool(system.exists(name))


def get(path: Path) -> bytes:
    """The content of a file at an address."""
    system, name = _system(path)
    with _reached(path, "read"):
        system.invalidate_cache()  # of its size
        return bytes(system.cat_file(name))


def put(path: Path, content: bytes, is_new: bool = False) -> None:
    """Writes a file at an address, as a whole.

    Raises:
        FileExistsError: it exists, and must be new.
    """
    system, name = _system(path)
    try:
        with _reached(path, "written"):
            system.pipe_file(name, content, mode="create" if is_new else "overwrite")
    except FileNotFoundError as error:  # the bucket, or a folder where there are folders
        raise StorageError(f"{path}: cannot be written: {_said(error)}") from error


def remove(path: Path) -> None:
    """Removes a file, if there is one."""
    if is_local(path):
        path.unlink(missing_ok=True)
        return
    system, name = _system(path)
    with _reached(path, "removed"):
        try:
            system.rm_file(name)
        except FileNotFoundError:
            return


def make_folder(path: Path) -> None:
    """Makes a folder, where there are folders."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)
    elif not _is_object_store(path):
        system, name = _system(path)
        with _reached(path, "made"):
            system.makedirs(name, exist_ok=True)


def remove_folder_if_empty(path: Path) -> None:
    """Removes a folder that holds nothing."""
    if is_local(path) and path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none if there is no folder."""
    if is_local(folder):
        return [path.name for path in folder.iterdir()] if folder.exists() else []
    system, name = _system(folder)
    with _reached(folder, "read"):
        system.invalidate_cache()
        try:
            return [PurePosixPath(found).name for found in system.ls(name, detail=False)]
        except FileNotFoundError:
            return []


def files_below(folder: Path, pattern: str) -> list[PurePosixPath]:
    """The files below a folder that match a pattern, which begins with a name in the folder."""
    if is_local(folder):
        return [PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.glob(pattern)]
    system, name = _system(folder)
    depth = pattern.count("/") + 1
    with _reached(folder, "read"):
        system.invalidate_cache()
        found = map(PurePosixPath, system.find(f"{name}/{pattern.partition('/')[0]}"))  # a thousand in a request
        return [PurePosixPath(*path.parts[-depth:]) for path in found if path.match(pattern)]


def _is_object_store(path: Path) -> bool:
    from upath.implementations.cloud import CloudPath

    return isinstance(cast(object, path), CloudPath)
