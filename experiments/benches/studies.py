"""The quickstart study, against the same runs as plain loops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import SHIPPED, config
from ..config import Run
from ..running.engines import Engine, Processes
from ..running.study import run_study
from ..training import data
from .timing import Clock, Table

OVERFIT = Path(__file__).parents[2] / "configs" / "mnist" / "overfit.toml"
QUICKSTART = SHIPPED / "quickstart.toml"


def tables(clock: Clock) -> Iterator[Table]:
    """The seconds of all runs without the start of the process and the report, and the ratio to plain loops."""
    yield from _quickstart(clock)
    if (root := os.environ.get("TORCHREG_DATA")) and Path(root).is_dir():  # else MNIST would be downloaded first
        yield from _overfit(clock)


def _quickstart(clock: Clock) -> Iterator[Table]:
    study = config.load(QUICKSTART)
    contenders: dict[str, Callable[[], object]] = {"plain loops": lambda: list(map(plain_loop, study.runs))}
    for name, stack in (("the study, in stacks", "true"), ("the study, one run after another", "false")):
        contenders[name] = partial(made, config.load(QUICKSTART, [f"train.stack={stack}"]))
    yield from clock.race(
        f"quickstart: {len(study.runs)} runs with the same steps and evaluations", contenders, 2, warmup=0
    )


def _overfit(clock: Clock) -> Iterator[Table]:
    """The study of MNIST, for fewer epochs, as it is, by two processes, and as it was made at first."""
    fewer = "train.epochs=10"
    study = config.load(OVERFIT, [fewer])
    contenders = {
        "evaluated every 5th epoch": partial(made, study),
        "the same, two at a time": partial(made, study, engine=Processes(2)),
        "one run after another, each epoch": partial(
            made, config.load(OVERFIT, [fewer, "train.stack=false", "train.evaluate_every=1"])
        ),
    }
    yield from clock.race(f"mnist/overfit.toml: {len(study.runs)} runs of 10 epochs", contenders, 1, warmup=0)


def made(study: config.Study, device: str = "cpu", engine: Engine | None = None) -> None:
    """Makes the runs of the study in a folder that is then removed, and prints nothing."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        run_study(study, Path(folder), torch.device(device), engine=engine)


def plain_loop(run: Run) -> list[float]:
    """The run as one would write it without torchreg: the penalty by hand in the loss; returns the last errors."""
    examples = data.load(run.data, torch.device("cpu"))
    torch.manual_seed(run.seed)
    rate = None if run.model.dropout is None else run.model.dropout.options["p"]
    layers: list[nn.Module] = [nn.Flatten()]
    widths = (64, *run.model.options["hidden"])
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([] if rate is None else [nn.Dropout(rate)])]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 10))
    decay = run.optimizer.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.optimizer.lr, weight_decay=decay)
    weights = [param for param in model.parameters() if param.ndim > 1]
    splits = (examples.train, examples.valid, examples.test)
    errors: list[float] = []
    for epoch in range(1, run.train.epochs + 1):
        model.train()
        for batch in torch.randperm(len(examples.train)).split(run.train.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(examples.train.x[batch]), examples.train.y[batch])
            for regularizer in run.regularizers:
                loss = loss + (regularizer.strength or 0.0) * _by_hand(regularizer.penalty or "", weights)
            loss.backward()
            optimizer.step()
        if epoch % run.train.evaluate_every and epoch < run.train.epochs:
            continue
        model.eval()
        with torch.no_grad():
            errors = [(model(split.x).argmax(1) != split.y).double().mean().item() for split in splits]
    return errors


def _by_hand(penalty: str, weights: Sequence[Tensor]) -> Tensor:
    if penalty == "L1":
        return torch.stack([w.abs().sum() for w in weights]).sum()
    return 0.5 * torch.stack([w.square().sum() for w in weights]).sum()
