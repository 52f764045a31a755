"""A folder of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import config
from ...errors import UserError, oneline
from .examples import Source
from .files import paths_of
from .stream import Stream, is_streamed
from .vision import torchvision_module


def read(settings: config.Data) -> Source:
    """A folder with a folder of images for each class, as torchvision's ``ImageFolder`` reads it."""
    folders = torchvision_module("datasets.folder", "data.name: 'images'")
    found: list[tuple[list[tuple[str, int]], list[str]]] = []
    for path, key in paths_of(settings):
        try:
            classes, codes = folders.find_classes(path)
            files = folders.make_dataset(path, codes, extensions=folders.IMG_EXTENSIONS)
        except OSError as error:
            why = error.strerror if error.strerror else oneline(error).removeprefix("FileNotFoundError: ")
            raise UserError(f"{key}: {path} must hold a folder of images for each class: {why}") from None
        found.append((files, classes))
    classes = found[0][1]
    if len(classes) < 2:
        raise UserError(f"data.path: {settings.path} must hold two classes or more, each a folder, got {classes}")
    for _, others in found[1:]:
        if others != classes:
            raise UserError(f"data.test_path: must hold the classes {', '.join(classes)}, got {', '.join(others)}")
    is_gray = all(mode in ("1", "L") for files, _ in found for mode in _modes(files, settings))
    parts = []
    for files, _ in found:
        items = _Files([path for path, _ in files], is_gray, settings.size)
        stream = Stream.of(items)
        inputs = stream if is_streamed(items, settings.stream) else stream.clone()
        parts.append((inputs, torch.tensor([code for _, code in files])))
    return Source(*parts[0], parts[1] if len(parts) > 1 else None, labels=tuple(classes))


def _modes(files: Sequence[tuple[str, int]], settings: config.Data) -> Iterator[str]:
    """Each image's mode, such as L for gray ones; of images of different sizes the first two are named."""
    first: tuple[str, tuple[int, int]] | None = None
    for path, _ in files:
        with _opened(path) as image:
            first = first or (path, image.size)
            if settings.size is None and image.size != first[1]:
                one, other = (f"{at} has {size[1]} x {size[0]} pixels" for at, size in (first, (path, image.size)))
                raise UserError(
                    f"data.size: must be given, as size = [32, 32], for images of different sizes: {one}, {other}"
                )
            yield image.mode


@dataclass(frozen=True)
class _Files:
    """Images as floats from 0 to 1, ``(channels, height, width)``, read when asked for."""

    paths: Sequence[str]
    is_gray: bool
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Tensor:
        path = self.paths[position]
        with _opened(path) as image:
            try:
                converted = image.convert("L" if self.is_gray else "RGB")
            except (OSError, SyntaxError, ValueError) as error:  # a file that ends early
                raise UserError(f"data.path: {path} cannot be read as an image: {oneline(error)}") from None
        if self.size is not None:
            converted = converted.resize(self.size[::-1], resample=2)  # bilinear
        pixels = torch.from_numpy(np.array(converted)).float() / 255
        return pixels.unsqueeze(0) if self.is_gray else pixels.permute(2, 0, 1).contiguous()

    @property
    def identity(self) -> str:
        """The names and sizes of the files."""
        return ", ".join(f"{path} {Path(path).stat().st_size}" for path in self.paths)


def _opened(path: str) -> Any:
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"data.path: {path} cannot be read as an image: {oneline(error)}") from None
