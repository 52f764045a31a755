"""Images as tensors in memory, on the training device, split and normalized once."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import config
from experiments.errors import UserError

_DIGITS_TEST = config.Data(name="digits").test_size  # of 1,797 digits: 1,000 are left for training and validation

# LeCun, Cortes, Burges, "The MNIST database of handwritten digits": MD5 of the unpacked files
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width), normalized, and labels (n,) from 0."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Images:
    """A data set on the training device."""

    train: Split
    valid: Split
    test: Split
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])


@lru_cache(maxsize=2)
def load(settings: config.Data, device: torch.device) -> Images:
    """The data set that the settings describe: the same images, split and label noise for the same settings.

    Validation images are drawn first and training images after them, so that a larger ``train_size`` adds images and
    keeps the rest. Pixels are shifted and scaled by the mean and standard deviation of the training images.

    Raises:
        UserError: more training images are asked for than there are, or files are missing or damaged.
    """
    (x, y), (x_test, y_test) = _digits() if settings.name == "digits" else _mnist(settings)
    left = len(y) - settings.valid_size
    if left < 1:
        raise UserError(
            f"data.valid_size: must be less than {len(y):,}, the images {settings.name} has besides its test set; "
            f"got {settings.valid_size:,}"
        )
    size = left if settings.train_size is None else settings.train_size
    if size > left:
        raise UserError(
            f"data.train_size: must be at most {left:,}: {settings.name} has {len(y):,} images to train on, "
            f"less valid_size = {settings.valid_size:,}; got {size:,}"
        )
    draw = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(y), generator=draw)
    valid, train = order[: settings.valid_size], order[settings.valid_size : settings.valid_size + size]
    classes = 10
    y_train = _corrupted(y[train], settings.label_noise, classes, draw)
    mean, std = x[train].mean(), x[train].std()

    def split(images: Tensor, labels: Tensor) -> Split:
        return Split(((images - mean) / std).to(device), labels.to(device))

    return Images(split(x[train], y_train), split(x[valid], y[valid]), split(x_test, y_test), classes)


def _corrupted(y: Tensor, fraction: float, classes: int, draw: torch.Generator) -> Tensor:
    """The labels with exactly ``round(fraction * n)`` of them replaced by another class, uniformly."""
    wrong = torch.randperm(len(y), generator=draw)[: round(fraction * len(y))]
    shift = torch.randint(1, classes, (len(wrong),), generator=draw)
    return y.index_copy(0, wrong, (y[wrong] + shift) % classes)


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # which images are tests never changes
    test, rest = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return (x[rest], y[rest]), (x[test], y[test])


def _mnist(settings: config.Data) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    dataset = _torchvision_class(settings.name)
    root = Path(settings.root or os.environ.get("TORCHREG_DATA") or "data")
    raw = root / dataset.__name__ / "raw"
    checked = {
        name: _checked(raw / name, md5 if settings.name == "mnist" else None)
        for name, md5 in _MNIST_MD5.items()
        if (raw / name).exists()
    }
    _check_together(raw, checked)
    absent = [folder for folder in (raw, raw.parent, root) if not folder.exists()]
    parts = []
    for train in (True, False):
        try:
            images = dataset(root, train=train, download=True)  # does nothing if all is there
        except (OSError, RuntimeError) as error:
            for folder in absent:  # torchvision has made them, for nothing
                with suppress(OSError):
                    folder.rmdir()
            why = " ".join(str(error).split())
            raise UserError(
                f"data.root: {settings.name} is not in {raw} and cannot be downloaded there ({why}): set data.root "
                f"or TORCHREG_DATA to a folder that holds {dataset.__name__}/raw"
            ) from None
        parts.append((images.data.float().unsqueeze(1) / 255, images.targets.long()))
    return parts[0], parts[1]


def _torchvision_class(name: str) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"data.name: {name!r} needs torchvision, which cannot be imported beside torch {torch.__version__} "
            f"({str(error).splitlines()[0]}): install a pair of the same build, pip install --upgrade torch torchvision"
        ) from None
    return {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]


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
