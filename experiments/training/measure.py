"""Measurements of a model: errors on the examples, penalties, weights."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

import torchreg
from experiments.training.data import Examples, Split, Task
from experiments.training.record import Row

_EVALUATED_AT_ONCE = 4096  # examples; bounds the memory an evaluation takes
_HISTOGRAM_EDGES = torch.linspace(-6, 1, 71)  # of log10 |w|


def evaluate(model: nn.Module, examples: Examples) -> Row:
    """Mean loss and error on the training, validation and test examples, in evaluation mode, without penalties.

    The error is the share of wrong classes; of a regression it is the root mean squared error in units of the target.
    """
    splits = {"train": examples.train, "valid": examples.valid, "test": examples.test}
    figures = torch.stack([_loss_and_error(model, split, examples.task) for split in splits.values()]).tolist()
    row: Row = {}
    for name, (loss, error) in zip(splits, figures, strict=True):
        row |= {f"{name}_loss": loss, f"{name}_error": error}
    return row


@torch.no_grad()
def _loss_and_error(model: nn.Module, split: Split, task: Task) -> Tensor:
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=split.y.device)
    for x, y in zip(split.x.split(_EVALUATED_AT_ONCE), split.y.split(_EVALUATED_AT_ONCE), strict=True):
        totals += task.totals(model(x.clone()), y)  # a model that works in place must not alter the inputs
    return task.figures(totals / len(split))


@torch.no_grad()
def penalties(regularizers: list[torchreg.Regularizer]) -> dict[str, float]:
    """The values of the penalties by kind, in every mode."""
    totals: dict[str, float] = {}
    for regularizer in regularizers:
        for kind, value in regularizer.terms().items():
            totals[kind] = totals.get(kind, 0.0) + value.item()
    return totals


@torch.no_grad()
def describe(model: nn.Module, examples: Examples) -> Row:
    """The trained weights: norms, zeros, a histogram, and a digest of all bits; and the numbers of examples.

    Layers that learn what to drop are described as the ordinary ones that they have become.
    """
    model = torchreg.nn.pruned(model)
    weights = [w.abs().flatten().double().cpu() for w in torchreg.diagnostics.weights_of(model).values()]
    sizes = torch.cat(weights) if weights else torch.zeros(0)
    count, logs = max(len(sizes), 1), sizes[sizes > 0].log10()
    shares = torch.histogram(logs.float(), _HISTOGRAM_EDGES)[0] / count
    return {
        "norms": torchreg.diagnostics.norms(model),
        "sparsity": torchreg.diagnostics.sparsity(model),
        "compression": _finite(torchreg.diagnostics.compression(model)._asdict()),
        "zeros": (len(sizes) - len(logs)) / count,
        "histogram": {
            "edges": _HISTOGRAM_EDGES.tolist(),
            "shares": shares.tolist(),
            "below": (logs < _HISTOGRAM_EDGES[0]).sum().item() / count,
            "above": (logs > _HISTOGRAM_EDGES[-1]).sum().item() / count,
        },
        "sha256": _digest(model),
        "examples": examples.sizes,
    }


def _finite(ratios: dict[str, float | None]) -> dict[str, float | None]:
    """The ratios as JSON values: infinite ones, of models without weights, become None."""
    return {count: None if ratio is None or math.isinf(ratio) else ratio for count, ratio in ratios.items()}


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        if isinstance(value, Tensor):  # a model may have other entries
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
