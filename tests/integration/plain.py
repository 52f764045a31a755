"""Plain loops of torch with a study's data, first weights and order of the examples, to compare its runs with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from experiments.config import Run, Study
from experiments.running.study import run_study
from experiments.training import build
from experiments.training.data import Examples
from experiments.training.record import Record, Row, read_runs
from tests.integration.studies import CPU, small

Act = Callable[..., object]


def nothing(*_: object) -> None:
    pass


def parts(run: Run) -> tuple[Examples, nn.Module, torch.Generator]:
    """The data, the model with its first weights, and what the examples are shuffled by."""
    examples = build.examples(run, CPU)
    torch.manual_seed(run.seed)
    return examples, build.model(run.model, examples), torch.Generator().manual_seed(run.seed)


def trained(
    run: Run,
    criterion: Callable[[Tensor, Tensor], Tensor],
    clip: Act = nothing,
    begin: Act = nothing,
    after_step: Act = nothing,
    after_epoch: Act = nothing,
    net: nn.Module | None = None,
) -> nn.Module:
    """The run's model, trained by SGD in a loop that knows nothing of the studies.

    Args:
        run: gives the data, the weights, the order, and the length.
        criterion: of outputs and classes.
        clip: what happens to the model between the backward pass and the step.
        begin: what happens to the optimizer before the first step.
        after_step: what happens to the model and its optimizer after a step.
        after_epoch: the same after an epoch, with its number from 1.
        net: the model, if not that of :func:`parts`.
    """
    examples, fresh, shuffle = parts(run)
    net = net or fresh
    optimizer = SGD(net.parameters(), lr=run.optimizer.lr)
    split = examples.train
    begin(optimizer)
    for epoch in range(1, run.train.epochs + 1):
        net.train()
        for batch in torch.randperm(len(split), generator=shuffle).split(run.train.batch_size):
            optimizer.zero_grad()
            criterion(net(split.x[batch]), split.y[batch]).backward()
            clip(net)
            optimizer.step()
            after_step(net, optimizer)
        after_epoch(net, optimizer, epoch)
    return net


def sgd(arms: Sequence[Any] = ({"name": "arm"},), train: Any = None, **changes: Any) -> Study:
    """The small study with SGD."""
    length = {"epochs": 3, "batch_size": 30, "stack": False, "checkpoint_seconds": 0.0}
    return small(arms=list(arms), optimizer={"name": "SGD", "lr": 0.05}, train={**length, **(train or {})}, **changes)


def finished(study: Study, folder: Path, **options: Any) -> dict[str, tuple[list[Row], Row, dict[str, Tensor]]]:
    """Every reported run's history, result and last weights, by its folder."""
    assert run_study(study, folder, CPU, **options) == []
    found = {}
    for run in read_runs(study, folder):
        record = Record(folder / "runs" / run.folder, run)
        state = torch.load(record.folder / "checkpoint.pt", weights_only=True)["model"]
        result = {key: value for key, value in record.result.items() if key != "seconds"}
        weights = {name: value for name, value in state.items() if not name.endswith("generator")}
        found[run.folder] = record.history, result, weights
    return found


def only(study: Study, folder: Path) -> tuple[list[Row], Row, dict[str, Tensor]]:
    """The same of the only run."""
    (found,) = finished(study, folder).values()
    return found
