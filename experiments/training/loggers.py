"""Runs in the loggers of others, beside their records: TensorBoard, MLflow, Weights & Biases, Trackio."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..config import Run
from ..errors import UserError, did_you_mean, oneline
from .storage import is_local

Numbers = Mapping[str, float]


class Start(NamedTuple):
    """What a logger is told when a run begins."""

    project: str
    run: Run
    folder: Path
    epoch: int  # those that a resumed run has made before

    @property
    def study(self) -> Path:
        """The study's folder: what is beside the records may hold symbolic links."""
        return self.folder.parents[len(Path(self.run.folder).parts)]

    @property
    def settings(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self.run.model_dump_json(by_alias=True, exclude_defaults=True))
        return tree


class Logger(Protocol):
    """One run in a logger, from its construction by a :class:`Start` to its end."""

    def row(self, figures: Numbers, epoch: int) -> None:
        """Takes the figures of an epoch."""

    def finish(self, status: str, figures: Numbers) -> None:
        """Takes the result: "done", "pruned", "diverged" or "failed"."""


class TensorBoard:
    """A folder ``tensorboard`` in each run's record; ``tensorboard --logdir`` finds them in the study's folder."""

    def __init__(self, start: Start) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(start.folder / "tensorboard"), purge_step=start.epoch + 1)
        self._writer.add_text("settings", f"```json\n{json.dumps(start.settings, indent=2)}\n```")

    def row(self, figures: Numbers, epoch: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)

    def finish(self, status: str, figures: Numbers) -> None:
        self._writer.add_text("status", status)
        for name, value in figures.items():
            self._writer.add_scalar(f"result/{name}", value)
        self._writer.close()


class MLflow:
    """A run of the experiment with the study's name, on the server that MLflow's own variables name."""

    def __init__(self, start: Start) -> None:
        mlflow = import_module("mlflow")
        experiment = mlflow.set_experiment(start.project)
        self._client = mlflow.MlflowClient()  # several runs may be under way
        self._run = self._client.create_run(experiment.experiment_id, run_name=start.run.folder).info.run_id
        for name, value in start.settings.items():
            self._client.log_param(self._run, name, json.dumps(value))

    def row(self, figures: Numbers, epoch: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, re.sub(r"[^\w./ -]", "_", name), value, step=epoch)

    def finish(self, status: str, figures: Numbers) -> None:
        self._client.set_tag(self._run, "status", status)
        for name, value in figures.items():
            self._client.log_metric(self._run, re.sub(r"[^\w./ -]", "_", f"result/{name}"), value)
        self._client.set_terminated(self._run, "FINISHED" if status in ("done", "pruned") else "FAILED")


class WeightsAndBiases:
    """A run of the project with the study's name."""

    def __init__(self, start: Start) -> None:
        init = partial(import_module("wandb").init, reinit="create_new")  # several runs may be under way
        self._run = init(project=start.project, name=start.run.folder, config=start.settings, dir=str(start.study))

    def row(self, figures: Numbers, epoch: int) -> None:
        self._run.log(dict(figures), step=epoch)

    def finish(self, status: str, figures: Numbers) -> None:
        self._run.summary.update({"status": status, **{f"result/{name}": value for name, value in figures.items()}})
        self._run.finish(exit_code=0 if status in ("done", "pruned") else 1)


class Trackio:
    """A run of the project with the study's name, in Trackio's own folder."""

    def __init__(self, start: Start) -> None:
        name = start.run.folder
        self._run = import_module("trackio").init(project=start.project, name=name, config=start.settings, embed=False)

    def row(self, figures: Numbers, epoch: int) -> None:
        self._run.log(dict(figures), step=epoch)

    def finish(self, status: str, figures: Numbers) -> None:
        self._run.log({"status": status, **{f"result/{name}": value for name, value in figures.items()}})
        self._run.finish()


LOGGERS: Mapping[str, tuple[Callable[[Start], Logger], str]] = {  # with the module that each of them needs
    "tensorboard": (TensorBoard, "torch.utils.tensorboard"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
    "trackio": (Trackio, "trackio"),
}

_chosen: tuple[str, str] | None = None


def choose(name: str | None, project: str, folder: Path | None = None) -> None:
    """Makes this process tell the named logger of all its runs from now on; None: no logger.

    Raises:
        UserError: there is no such logger, it is not installed, or it cannot write into the study's folder.
    """
    global _chosen
    _chosen = None
    if name is None:
        return
    if name not in LOGGERS:
        raise UserError(f"--log: unknown name {name!r}, {did_you_mean(name, LOGGERS)}")
    if folder is not None and not is_local(folder) and name in ("tensorboard", "wandb"):
        raise UserError(f"--log: {name} writes beside the records, which needs a local folder, got --out {folder}")
    try:
        import_module(LOGGERS[name][1])
    except Exception as error:  # one that is installed may still fail, for what it needs itself
        why = "which is not installed" if isinstance(error, ModuleNotFoundError) else oneline(error)
        raise UserError(f"--log: {name} needs the package {name}, {why}: pip install {name}") from None
    _chosen = name, project


def chosen() -> tuple[str | None, str]:
    """What :func:`choose` was given, for another process."""
    return _chosen or (None, "")


class Told:
    """What the chosen logger is told of one run; if it fails, a note says so, and the run goes on without it."""

    def __init__(self, run: Run | None = None, folder: Path = Path(), epoch: int = 0) -> None:
        self._logger: Logger | None = None
        if _chosen is not None and run is not None:
            name, project = _chosen
            self._try(lambda: setattr(self, "_logger", LOGGERS[name][0](Start(project, run, folder, epoch))))

    def row(self, figures: Mapping[str, Any]) -> None:
        if (logger := self._logger) is not None:
            numbers = flat({key: value for key, value in figures.items() if key != "epoch"})
            self._try(lambda: logger.row(numbers, figures["epoch"]))

    def finish(self, result: Mapping[str, Any]) -> None:
        if (logger := self._logger) is not None:
            self._try(lambda: logger.finish(result["status"], flat({**result, "histogram": None, "files": None})))
            self._logger = None

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._logger = None
            print(f"note: --log {chosen()[0]}: {oneline(error)}: the run goes on without it", file=sys.stderr)


def flat(tree: Mapping[str, Any], at: str = "") -> dict[str, float]:
    """The numbers in a tree of tables.

    Example:
        >>> flat({"test_loss": 0.5, "penalty": {"L1": 2.0}, "status": "done"})
        {'test_loss': 0.5, 'penalty/L1': 2.0}
    """
    found: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{at}{key}/")
        elif isinstance(value, (int, float)):
            found[at + key] = value
    return found
