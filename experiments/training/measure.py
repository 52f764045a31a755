"""Measurements of a model: errors on the examples, penalties, weights."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

import torchreg
from torchreg import Stacked

from . import build, ranks
from .data import Examples, Split, Task
from .metrics import Metrics
from .record import Row
from .setup import Setup

_EVALUATED_AT_ONCE = 4096  # examples; bounds the memory an evaluation takes
_HISTOGRAM_EDGES = torch.linspace(-6, 1, 71)  # of log10 |w|


def evaluate(model: nn.Module, examples: Examples, metrics: Metrics | None = None) -> list[Row]:
    """Mean loss and error on the training, validation and test examples, in evaluation mode, without penalties.

    The error is the share of wrong classes; of a regression it is the root mean squared error in units of the target.
    Metrics are those of the validation and test examples.

    Returns:
        A row for each member of a stack; one for another model.
    """
    splits = {"train": examples.train, "valid": examples.valid, "test": examples.test}
    measured, others = [], {}
    for name, split in splits.items():
        watched = metrics if name != "train" else None
        measured.append(_loss_and_error(model, split, examples.task, watched))
        if watched is not None:
            others[name] = watched.take()
    figures = torch.stack(measured, 1).tolist()  # read once
    rows: list[Row] = []
    for number, own in enumerate(figures):
        rows.append({})
        for name, (loss, error) in zip(splits, own, strict=True):
            rows[-1] |= {f"{name}_loss": loss, f"{name}_error": error}
        if others:
            rows[-1]["metrics"] = {name: each[number] for name, each in others.items()}
    return rows


@torch.no_grad()
def _loss_and_error(model: nn.Module, split: Split, task: Task, metrics: Metrics | None = None) -> Tensor:
    """Of each member, ``(members, 2)``."""
    model.eval()
    members = len(model) if isinstance(model, Stacked) else 1
    totals = torch.zeros(members, 2, dtype=torch.float64, device=split.y.device)
    size = max(1, _EVALUATED_AT_ONCE // members)
    for x, y in split.in_order(size):
        outputs = ranks.outputs(model, x)
        each = outputs if isinstance(model, Stacked) else outputs.unsqueeze(0)
        totals += task.totals(each, y)
        if metrics is not None:
            metrics.update(each, y)
    return task.figures(totals, split.y)


def measured(setup: Setup) -> list[Row]:
    """The figures of a history, for each member."""
    task = setup.examples.task
    chooser = setup.tuned if setup.ridge is None else setup.ridge
    strengths = {"strengths": chooser.strengths} if chooser is not None and chooser.strengths else {}
    rows = evaluate(setup.model, setup.examples, setup.metrics)
    by_task = tasks(setup.model, setup.examples) or [{} for _ in rows]
    return [
        {**figures, **task.mark, "penalty": penalty, **strengths, **own}
        for figures, penalty, own in zip(rows, penalties(setup), by_task, strict=True)
    ]


def tasks(model: nn.Module, examples: Examples) -> list[Row]:
    """The validation and test errors of each task of a continual study, for each member; empty of others."""
    if not examples.groups:
        return []
    valid, test = (
        torch.stack([_loss_and_error(model, split, examples.task)[:, 1] for split in splits], 1).tolist()
        for splits in zip(*((group.valid, group.test) for group in examples.groups), strict=True)
    )
    return [{"tasks": {"valid": one, "test": other}} for one, other in zip(valid, test, strict=True)]


@torch.no_grad()
def penalties(setup: Setup) -> list[dict[str, float]]:
    """The values of the penalties by kind, in every mode, for each member that has them.

    Those on activities are means over the steps since the last call.
    """
    totals: list[dict[str, float]] = [{} for _ in setup.shuffles]
    for activity in setup.activities:  # of the one network, as a stack has none
        totals[0] |= activity.read()
    for regularizer, settings in zip(setup.regularizers, setup.penalized, strict=True):
        if build.is_constraint(regularizer):
            continue
        for kind, values in regularizer.terms().items():
            for total, value, own in zip(totals, values.reshape(-1).tolist(), settings, strict=True):
                if own is not None:
                    total[kind] = total.get(kind, 0.0) + value
    return totals


def are_finite(figures: Row) -> bool:
    """Whether all figures are finite, those in tables too: a record cannot hold others."""
    numbers = (value for value in figures.values() if isinstance(value, float))
    tables = (value for value in figures.values() if isinstance(value, dict))
    return all(map(math.isfinite, numbers)) and all(map(are_finite, tables))


@torch.no_grad()
def describe(model: nn.Module, examples: Examples) -> Row:
    """The trained weights: norms, zeros, a histogram, and a digest of all bits; and the numbers of examples.

    Layers that learn what to drop are described as the ordinary ones that they have become.
    """
    model = torchreg.nn.pruned(model).cpu()  # many small questions, which a GPU would be asked one after another
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
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    for name, value in model.state_dict().items():
        if name in names and isinstance(value, Tensor):  # a model may have other entries, and generators have states
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
