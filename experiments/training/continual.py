"""What continual studies need beside the loop: the examples of each turn, and penalties towards earlier tasks.

After each task but the last one a quadratic penalty is added, with its weights as the reference; of elastic weight
consolidation (EWC) its Fisher information says how much each weight is held. The sum over tasks is one penalty:

    sum_k F_k (w - w_k)^2 = F (w - m)^2 + constant,  F = sum_k F_k,  m = sum_k F_k w_k / F.

Sources: J. Kirkpatrick et al., "Overcoming Catastrophic Forgetting in Neural Networks", 2017; F. Huszar, "Note on the
Quadratic Penalties in Elastic Weight Consolidation", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

import torchreg
from torchreg import Regularizer

from .. import config
from ..config import Run
from ..errors import UserError, oneline
from . import ranks
from .data import Examples, Split

_AT_ONCE = 256  # examples whose gradients are computed together


def check(run: Run) -> None:
    """Whether the run's settings fit its tasks, if it has some.

    Raises:
        UserError: they do not.
    """
    for i, regularizer in enumerate(run.regularizers):
        if regularizer.anchor == "tasks" and run.data.turns == 1:
            why = "has none" if run.data.tasks is None else "has them all at once"
            raise UserError(f"regularizers.{i}.anchor: 'tasks' needs tasks one after another, the study {why}")
    if run.data.tasks is not None and run.data.tasks.scenario == "task":
        told = "a network that is told the task has the cross-entropy of its classes"
        for key, given in {
            "train.loss": run.train.loss,
            "train.solve": run.train.solve,
            "data.mix": run.data.mix,
            "auto_strength": run.auto_strength,
        }.items():
            if given:
                raise UserError(f"{key}: {told}: remove it, or set data.tasks.scenario = 'domain'")
    if run.data.turns == 1:
        return
    if run.train.epochs % run.data.turns:
        raise UserError(
            f"train.epochs: must be a multiple of the {run.data.turns} tasks, which share them, got {run.train.epochs}"
        )
    if ranks.is_several():
        raise UserError("data.tasks: are for one process: run the study without torchrun, or set in_turn = false")
    for key, value in {
        "train.compile": run.train.compile,
        "train.early_stopping": run.train.early_stopping,
        "train.solve": run.train.solve,
        "auto_strength": run.auto_strength,
        "sparsity": run.sparsity,
    }.items():
        if value:
            raise UserError(f"{key}: is not for tasks one after another: remove it, or set data.tasks.in_turn = false")


def turns_of(run: Run, examples: Examples) -> list[Split]:
    """The examples to train on, turn by turn."""
    return [group.train for group in examples.groups] if run.data.turns > 1 else [examples.train]


def steps_of(turns: Sequence[Split], batch: int, epochs_of_turn: int, epochs: int) -> int:
    """The number of steps, each with so many examples, in the first epochs."""
    done, part = divmod(epochs, epochs_of_turn)
    each = [-(-len(turn) // batch) for turn in turns]
    return epochs_of_turn * sum(each[:done]) + (part * each[done] if part else 0)


@torch.no_grad()
def remember(
    regularizers: Sequence[Regularizer],
    each: Sequence[config.Regularizer | None],
    model: nn.Module,
    examples: Examples,
    learned: Split,
) -> None:
    """Adds the penalties towards the model's weights of now, after it has learned a task.

    Args:
        regularizers: as :mod:`experiments.training.build` makes them.
        each: their settings; those of ``anchor = "tasks"`` are meant.
        model: the model.
        examples: know the loss.
        learned: the examples of the task.

    Raises:
        UserError: the Fisher information cannot be computed.
    """
    information = None
    for i, (regularizer, settings) in enumerate(zip(regularizers, each, strict=True)):
        if settings is None or settings.anchor != "tasks":
            continue
        weights = {entry.name: entry.param.detach() for entry in regularizer.entries if entry.penalty is not None}
        if settings.weights == "fisher":
            information = information or _fisher(f"regularizers.{i}.weights", weights, model, examples, learned)
            _add(regularizer, weights, {name: information[name] for name in weights})
        else:
            _add(regularizer, weights, {name: torch.ones_like(w) for name, w in weights.items()})


def _add(regularizer: Regularizer, weights: Mapping[str, Tensor], added: Mapping[str, Tensor]) -> None:
    """Adds a penalty on the distance from the weights to the sum of those before."""
    state = regularizer.state_dict()
    sums = {name: before + added[name] for name, before in state["weights"].items()}
    middles = {
        name: before + torch.where(sums[name] > 0, added[name] / sums[name], 1.0) * (weights[name] - before)
        for name, before in state["references"].items()
    }
    regularizer.load_state_dict({**state, "weights": sums, "references": middles})


def _fisher(key: str, names: Iterable[str], model: nn.Module, examples: Examples, learned: Split) -> dict[str, Tensor]:
    task = examples.task

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return task.loss(task.limited(outputs, y), task.targets(y, outputs))

    try:
        found = torchreg.fisher(model, learned.in_order(_AT_ONCE), loss=loss)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {oneline(error)}") from error
    for name in names:
        if name not in found:
            raise UserError(f"{key}: 'fisher' is not known of {name}, which a layer computes: select other weights")
    return found
