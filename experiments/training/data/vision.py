"""The data sets of torchvision: MNIST and its like, and CIFAR-10, downloaded where they are missing."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import config
from ...errors import UserError
from .examples import Source

_CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
    "qmnist": "QMNIST",
    "cifar10": "CIFAR10",
}
_CHECKED = ("mnist", "fashion_mnist", "kmnist")  # those whose files have the names below

# LeCun, Cortes, Burges, "The MNIST database of handwritten digits": MD5 of the unpacked files
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def read(settings: config.Data) -> Source:
    """The data set of that name, downloaded if it is not there."""
    assert settings.name is not None
    dataset: Any = getattr(torchvision_module("datasets", f"data.name: {settings.name!r}"), _CLASSES[settings.name])
    root, raw = _folders(settings)
    if settings.name in _CHECKED:
        checked = {
            name: _checked(raw / name, md5 if settings.name == "mnist" else None)
            for name, md5 in _MNIST_MD5.items()
            if (raw / name).exists()
        }
        _check_together(raw, checked)
    options = {"split": settings.split} if settings.name == "emnist" else {}
    absent = [folder for folder in (raw, raw.parent, root) if not folder.exists()]
    parts: list[tuple[Tensor, Tensor]] = []
    labels: tuple[str, ...] = ()
    for train in (True, False):
        try:
            found = dataset(root, train=train, download=True, **options)  # does nothing if all is there
            parts.append(_tensors(found, settings))
        except Exception as error:  # of the network, of the disk, or whatever a damaged file makes torchvision raise
            for folder in absent:  # torchvision has made them, for nothing
                with suppress(OSError):
                    folder.rmdir()
            why = " ".join(str(error).split())
            raise UserError(
                f"data.root: {settings.name} is not in {raw}: set data.root or TORCHREG_DATA to a folder that holds "
                f"{raw.relative_to(root)}; it cannot be downloaded there ({why})"
            ) from None
        labels = tuple(map(str, found.classes))
    if settings.name == "emnist" and settings.split == "letters":
        labels = labels[1:]  # the first is for no letter
    elif settings.name in ("mnist", "qmnist"):
        labels = tuple(map(str, range(10)))
    return Source(*parts[0], parts[1], labels=labels)


def is_there(settings: config.Data) -> bool:
    """Whether :func:`read` would download nothing, as also for other sources."""
    return settings.name not in _CLASSES or _folders(settings)[1].is_dir()


def _folders(settings: config.Data) -> tuple[Path, Path]:
    """The folder of all data sets, and that of this one's files."""
    assert settings.name is not None
    root = Path(settings.root or os.environ.get("TORCHREG_DATA") or "data")
    return root, root / ("cifar-10-batches-py" if settings.name == "cifar10" else f"{_CLASSES[settings.name]}/raw")


def _tensors(found: Any, settings: config.Data) -> tuple[Tensor, Tensor]:
    """The images and labels of a data set of torchvision."""
    if settings.name == "cifar10":
        return torch.from_numpy(found.data).permute(0, 3, 1, 2).float() / 255, torch.tensor(found.targets)
    images, labels = found.data.float().unsqueeze(1) / 255, found.targets.long()
    if settings.name == "emnist":  # its images lie on their side, and its letters count from 1
        return images.transpose(2, 3).contiguous(), labels - int(settings.split == "letters")
    return images, labels[:, 0] if settings.name == "qmnist" else labels  # beside the class: who wrote it, and where


def torchvision_module(name: str, what: str) -> Any:
    """A module of torchvision, if it can be imported."""
    try:
        import_module("torchvision")
        return import_module(f"torchvision.{name}")
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"{what} needs torchvision, which cannot be imported beside torch {torch.__version__} "
            f"({str(error).splitlines()[0]}): install a pair of the same build, pip install --upgrade torch torchvision"
        ) from None


def _checked(path: Path, md5: str | None) -> tuple[int, ...]:
    """The sizes in the header of an IDX file, whose bytes they must count; where it is known, with its checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.root: {path} cannot be read: {error.strerror}") from None
    dimensions = 3 if "images" in path.name else 1
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < header:
        raise _damaged(path, f"must be an IDX file, is not one of bytes in {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if not all(sizes):
        raise _damaged(path, f"must hold images, has the sizes {sizes}")
    if len(content) != header + math.prod(sizes):
        raise _damaged(path, f"must hold {header + math.prod(sizes):,} bytes, got {len(content):,}")
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise _damaged(path, f"must have the MD5 checksum {md5}, has another")
    if dimensions == 1 and max(content[header:]) > 9:
        raise _damaged(path, f"must hold labels from 0 to 9, got {max(content[header:])}")
    return sizes


def _check_together(raw: Path, sizes: dict[str, tuple[int, ...]]) -> None:
    """Compares the files with each other: as many labels as images, and images of one size."""
    for images, labels in (list(_MNIST_MD5)[:2], list(_MNIST_MD5)[2:]):
        if images in sizes and labels in sizes and sizes[images][0] != sizes[labels][0]:
            wanted = f"must hold a label for each of the {sizes[images][0]:,} images, got {sizes[labels][0]:,}"
            raise _damaged(raw / labels, wanted)
    found = {name: size[1:] for name, size in sizes.items() if "images" in name}
    if len(set(found.values())) > 1:
        raise _damaged(raw / list(found)[1], "must hold images of one size with those to train on")


def _damaged(path: Path, fault: str) -> UserError:
    return UserError(f"data.root: {path} is damaged: {fault}; delete it, and it will be downloaded again")
