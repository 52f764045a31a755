"""Which parameters of a model are penalized, for the tests of selection."""

from torch import nn

from torchreg import L2, Regularizer


def reasons(model: nn.Module, **options) -> dict[str, str | None]:
    return {entry.name: entry.reason for entry in Regularizer(model, L2(1.0), **options).entries}


def chosen(model: nn.Module, **options) -> set[str]:
    return {name for name, reason in reasons(model, **options).items() if reason is None}


def a_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(3, 2))
