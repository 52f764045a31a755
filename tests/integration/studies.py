"""A study small enough to run in a second, as its TOML tree."""

from pathlib import Path
from typing import Any

import torch

from experiments.config import Study, resolve
from experiments.running.study import run_study
from experiments.training.record import Record, Row

CPU = torch.device("cpu")

TREE: dict[str, Any] = {
    "name": "small",
    "seeds": [0],
    "data": {"name": "digits", "train_size": 100, "valid_size": 100, "label_noise": 0.2},
    "model": {"name": "mlp", "hidden": [16]},
    "optimizer": {"name": "AdamW", "lr": 1e-2},
    "train": {"epochs": 4, "batch_size": 30},
    "arms": [{"name": "none"}],
}


def small(**changes: Any) -> Study:
    """The small study with some of its tables replaced."""
    return resolve({**TREE, **changes})


def arm(name: str = "arm", **changes: Any) -> Study:
    """The small study with one arm that differs in ``changes``."""
    return small(arms=[{"name": name, **changes}])


def outcome(study: Study, folder: Path) -> Row:
    """The result of a study's only run, without how long it took."""
    run_study(study, folder, CPU)
    result = Record(folder / "runs" / study.runs[0].folder).result
    return {key: value for key, value in result.items() if key != "seconds"}


def history(study: Study, folder: Path) -> list[Row]:
    """The history of a study's only run."""
    run_study(study, folder, CPU)
    return Record(folder / "runs" / study.runs[0].folder).history
