"""Images in a page: test images that arms confuse or learn to tell, and the weights of first layers."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .. import config
from ..errors import UserError, oneline
from ..training.data import Examples, Stream, load
from ..training.data.vision import is_there
from ..training.outcomes import Predicted
from ..training.record import load_sealed
from .cells import Cell
from .datasets import MOST_ARMS, predicted
from .summary import Summary

MOST = 12  # images in a row
MOST_UNITS = 24  # of a first layer


class Image(NamedTuple):
    """An image as a page holds it, with what it shows."""

    address: str
    text: str
    caption: str = ""


class Strip(NamedTuple):
    """The images of an arm."""

    label: str
    text: str
    images: Sequence[Image]


class Shown(NamedTuple):
    """Strips below a heading."""

    title: str
    text: str
    strips: Sequence[Strip]


def of_study(cells: Mapping[str, Cell], summary: Summary, examples: Examples | None) -> list[Shown]:
    """The images of a study, if its examples are images and at hand."""
    if examples is None or examples.test.x.dim() != 4 or examples.shape[0] not in (1, 3):
        return []
    found = []
    if not summary.is_regression:
        found = [*_confused(cells, examples), *_gained(cells, summary, examples)]
    return [*found, *_first_layers(cells, examples)]


def examples_of(cells: Mapping[str, Cell], trusted: bool) -> tuple[Examples | None, str]:
    """The examples of the finished arms; or none, and a line that says why.

    Args:
        cells: the finished arms.
        trusted: whether a class that the records name may be run to load the data.
    """
    settings = {cell.runs[0].data.model_dump_json(): cell.runs[0].data for cell in cells.values()}
    if len(settings) != 1:
        return None, "The arms have different data, so no test images are shown." if settings else ""
    (data,) = settings.values()
    if data.class_ is not None and not trusted:
        return None, "What needs the data is in the page that 'run' writes: 'report' runs no class that a record names."
    try:
        examples = _load(data)
    except Exception as error:  # whatever a user's file or class makes of it
        why = str(error) if isinstance(error, UserError) else oneline(error)
        return None, f"No test images are shown, since the data cannot be loaded: {why}."
    for cell in cells.values():
        for found in predicted(cell).values():
            if not cell.is_regression and not np.array_equal(found.true, examples.test.y.cpu().numpy()):
                return None, "No test images are shown, since the data is not what it was when the study ran."
    return examples, ""


def _load(data: config.Data) -> Examples:
    if data.name is not None and not is_there(data):
        raise UserError(f"data.root: {data.name} is not there")  # a report downloads nothing
    return load(data, torch.device("cpu"))


def _confused(cells: Mapping[str, Cell], examples: Examples) -> list[Shown]:
    """The test images of each arm that most seeds get wrong, of these those they are surest of."""
    strips = []
    for label, cell in list(cells.items())[:MOST_ARMS]:
        found = predicted(cell)
        if not found:
            continue
        wrong = np.array([one.true != one.predicted for one in found.values()])
        sure = np.where(wrong, [one.confidence for one in found.values()], 0.0).sum(0)
        order = np.lexsort((-sure, -wrong.sum(0)))
        worst = [int(i) for i in order[:MOST] if wrong[:, i].any()]
        images = [_image(found, examples, i) for i in worst]
        strips.append(Strip(label, f"{int(wrong.any(0).sum()):,} of {wrong.shape[1]:,} wrong with some seed", images))
    text = (
        "The test images that most seeds get wrong, of these first the ones they are surest of. "
        "A → B: an A, taken for a B."
    )
    return [Shown("The most confused images", text, strips)] if strips else []


def _image(found: Mapping[int, Predicted], examples: Examples, at: int, by: str = "") -> Image:
    """An image with what it is and what it is taken for."""
    names = examples.labels
    guesses = [int(one.predicted[at]) for one in found.values()]
    wrong = [guess for guess in guesses if guess != examples.test.y[at]]
    most = max(sorted(set(wrong or guesses)), key=guesses.count)
    sure = np.mean([one.confidence[at] for one in found.values() if one.predicted[at] == most])
    votes = "" if len(guesses) == 1 else f" by {guesses.count(most)} of {len(guesses)} seeds"
    true = names[int(examples.test.y[at])]
    text = f"{true}, taken for {names[most]}{votes}{by} ({100 * sure:.0f} % sure)"
    return Image(_picture(examples, at), text, f"{true} → {names[most]}")


def _gained(cells: Mapping[str, Cell], summary: Summary, examples: Examples) -> list[Shown]:
    """The test images that most seeds of an arm get right and most seeds of the unregularized one do not."""
    others = {label: cell for label, cell in cells.items() if not cell.is_plain() and not cell.is_off()}
    strips = []
    for label, cell in list(others.items())[:MOST_ARMS]:
        plain = summary.counterpart(cell)
        if plain is None or not (before := predicted(plain)) or not (found := predicted(cell)):
            continue
        ours, theirs = (_mostly_wrong(one) for one in (found, before))
        if len(ours) != len(theirs):
            continue
        gained = np.flatnonzero(theirs & ~ours)
        margin = np.mean([one.confidence[gained] for one in found.values()], axis=0)
        best = [int(gained[i]) for i in np.argsort(-margin, kind="stable")[:MOST]]
        lost = int((ours & ~theirs).sum())
        text = f"{len(gained):,} more right than {plain.arm}, and {lost:,} that only {plain.arm} gets right"
        strips.append(Strip(label, text, [_image(before, examples, i, f" by {plain.arm}") for i in best]))
    text = (
        "Test images that most seeds of an arm get right and most without regularization do not, the surest first. "
        "A → B: an A, taken for a B without regularization."
    )
    return [Shown("What regularization gets right", text, strips)] if strips else []


def _mostly_wrong(found: Mapping[int, Predicted]) -> np.ndarray:
    wrong = np.array([one.true != one.predicted for one in found.values()])
    mostly: np.ndarray = wrong.mean(0) > 0.5
    return mostly


def _first_layers(cells: Mapping[str, Cell], examples: Examples) -> list[Shown]:
    """The weights of each arm's first layer, if they have the form of images."""
    strips = []
    for label, cell in list(cells.items())[:MOST_ARMS]:
        if not cell.records:
            continue
        weight = _first_weight(cell, examples.shape)
        if weight is None:
            continue
        order = np.argsort(-np.abs(weight).reshape(len(weight), -1).sum(1), kind="stable")[:MOST_UNITS]
        most = float(np.abs(weight).max()) or 1.0
        images = [Image(png(_diverging(weight[i] / most)), f"unit {i}") for i in order]
        strips.append(Strip(label, f"seed {cell.runs[0].seed}, largest weight {most:.2g}", images))
    text = (
        "The weights of units with the largest ones: orange adds to the unit, blue takes away, white is zero; each arm "
        "on its own scale."
    )
    return [Shown("The first layer", text, strips)] if strips else []


def _first_weight(cell: Cell, shape: tuple[int, ...]) -> np.ndarray | None:
    """The first weights of the first seed's checkpoint, ``(units, channels, height, width)``, if they are images."""
    path = cell.records[0].folder / "checkpoint.pt"
    try:
        state, _ = load_sealed(path)
        weights = (state.get("best") or {}).get("model") or state["model"]
        tensors = [value for value in weights.values() if isinstance(value, torch.Tensor) and value.dim() > 1]
        first = tensors[0].float()
    except Exception:  # there is none, or it is damaged: records do without it
        return None
    if first.dim() == 2 and first.shape[1] == np.prod(shape):
        first = first.reshape(-1, *shape)
    if first.dim() != 4 or first.shape[1] != shape[0] or min(first.shape[2:]) < 3 or not first.isfinite().all():
        return None
    found: np.ndarray = first.numpy()
    return found


def _picture(examples: Examples, at: int) -> str:
    x = examples.test.x
    image = x[at : at + 1].clone()[0].cpu()
    low, high = (image.min(), image.max()) if isinstance(x, Stream) else (x.min(), x.max())  # of one if all are many
    scaled = (image.numpy() - float(low)) / (float(high - low) or 1.0)
    return png(np.rint(255 * scaled).astype(np.uint8).transpose(1, 2, 0))


def _diverging(weight: np.ndarray) -> np.ndarray:
    """Weights from -1 to 1 as colors: blue, white, orange; of several channels their mean."""
    value = weight.mean(0)[..., None]
    ends = np.where(value > 0, np.array([194, 65, 12]), np.array([29, 78, 156]))
    colors: np.ndarray = np.rint(255 + np.abs(value) ** 0.7 * (ends - 255)).astype(np.uint8)
    return colors


def png(pixels: np.ndarray) -> str:
    """An image of 8 bits, ``(height, width, 1 or 3)``, as an address that holds it."""
    height, width, channels = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)])
    header = struct.pack(">2I5B", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()
