"""A study small enough to run in a second, as its TOML tree."""

from typing import Any

from experiments.config import Study, resolve

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
