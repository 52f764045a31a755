"""What a trained model says of each validation and test example, so that models are compared example by example.

Of classes: which ones are wrong, a bit for each; and of the test examples the class it predicts, how sure it is, and
how often it is right where it is so sure. Of a regression: the number it predicts for each test example.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import ranks
from .data import Examples, Split
from .data.tasks import Regression
from .files import compressed, decompressed
from .record import Row

BINS = 15  # of confidences, as in C. Guo et al., "On Calibration of Modern Neural Networks", 2017
_EVALUATED_AT_ONCE = 4096  # examples; bounds the memory an evaluation takes


class Predicted(NamedTuple):
    """The test examples as a model sees them.

    Args:
        true: their classes, or of a regression their first target.
        predicted: what the model says.
        confidence: the probability it gives to that, in steps of 1/255; empty of a regression.
    """

    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


def outcomes(model: nn.Module, examples: Examples) -> Row:
    """What the model says, in evaluation mode: of classes as :func:`packed` and :func:`classified`."""
    task = examples.task
    if isinstance(task, Regression):
        most = float(np.finfo("<f4").max)  # what diverges soon may be beyond it
        columns = _outputs(model, examples.test)[:, 0], examples.test.y[:, 0]
        scale, middle = float(task.scale[0]), float(task.middle[0])
        predicted, true = ((scale * column.double() + middle).clamp(-most, most).cpu().numpy() for column in columns)
        return {"test": {"count": len(true), "values": _text(predicted, "<f4"), "true": _text(true, "<f4")}}
    valid, test = (
        task.scores(task.limited(_outputs(model, split), split.y)).cpu() for split in (examples.valid, examples.test)
    )
    y_valid, y_test = examples.valid.y.cpu(), examples.test.y.cpu()
    return {
        "valid": packed((valid.argmax(1) != y_valid).numpy()),
        "test": {**packed((test.argmax(1) != y_test).numpy()), **classified(test, y_test)},
    }


@torch.no_grad()
def _outputs(model: nn.Module, split: Split) -> Tensor:
    model.eval()
    return torch.cat([ranks.outputs(model, x) for x, _ in split.in_order(_EVALUATED_AT_ONCE)])


def packed(wrong: np.ndarray) -> Row:
    """Errors as their number of examples and a text of a bit for each: 1,250 bytes, in base64, for 10,000 examples.

    Example:
        >>> packed(np.array([True, False, False]))
        {'count': 3, 'wrong': 'gA=='}
    """
    return {"count": len(wrong), "wrong": b64encode(np.packbits(wrong).tobytes()).decode()}


def unpacked(row: Row) -> np.ndarray:
    """The errors in a record, as booleans that cannot be written to."""
    return _unpacked(row["wrong"], row["count"])


@lru_cache(maxsize=1024)
def _unpacked(wrong: str, count: int) -> np.ndarray:
    found = np.unpackbits(np.frombuffer(b64decode(wrong), dtype=np.uint8), count=count).view(bool)
    found.flags.writeable = False
    return found


def classified(outputs: Tensor, y: Tensor) -> Row:
    """The true and the predicted classes, the confidences, and the sums of each bin of confidences."""
    confidences, predicted = outputs.double().softmax(1).nan_to_num(0.0).max(1)
    sure, is_right = confidences.numpy(), (predicted == y).numpy()
    kind = "u1" if outputs.shape[1] <= 256 else "<u2"
    return {
        "classes": outputs.shape[1],
        "true": _text(y.numpy(), kind),
        "predicted": _text(predicted.numpy(), kind),
        "confidence": _text(np.rint(255 * sure), "u1"),
        "bins": binned(sure, is_right),
    }


def binned(confidences: np.ndarray, is_right: np.ndarray) -> Row:
    """Of each of 15 bins of equal width: its examples, how many are right, and the sum of their confidences.

    The k-th bin holds the confidences above (k - 1) / 15 and up to k / 15.
    """
    place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)
    return {
        "count": np.bincount(place, minlength=BINS).tolist(),
        "correct": np.bincount(place[is_right], minlength=BINS).tolist(),
        "confidence": np.bincount(place, confidences, minlength=BINS).tolist(),
    }


def calibration_error(bins: Row) -> float:
    """The expected calibration error (ECE): the mean over examples of |accuracy - mean confidence| of their bin.

    Source: M. P. Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.

    Example:
        >>> calibration_error({"count": [2, 2], "correct": [1, 2], "confidence": [0.8, 1.8]})
        0.1
    """
    apart = np.abs(np.subtract(bins["correct"], bins["confidence"]))
    return round(float(apart.sum() / sum(bins["count"])), 12)


def predictions(row: Row) -> Predicted | None:
    """What a record says of the test examples; None for those of earlier versions."""
    if "values" in row:
        true, values = (_array(row[key], "<f4", row["count"]) for key in ("true", "values"))
        return Predicted(true, values, np.zeros(0))
    if "predicted" not in row:
        return None
    kind = "u1" if row["classes"] <= 256 else "<u2"
    true, predicted = (_array(row[key], kind, row["count"]) for key in ("true", "predicted"))
    return Predicted(true.astype(int), predicted.astype(int), _array(row["confidence"], "u1", row["count"]) / 255)


def _text(values: np.ndarray, kind: str) -> str:
    return compressed(values.astype(kind).tobytes())


@lru_cache(maxsize=1024)
def _array(text: str, kind: str, count: int) -> np.ndarray:
    return np.frombuffer(decompressed(text, count * np.dtype(kind).itemsize), kind)
