"""A study's TOML file as typed, frozen and strict settings."""

from experiments.config.sections import Component
from experiments.config.study import (
    AutoStrength,
    Data,
    EarlyStopping,
    Model,
    Optimizer,
    Penalty,
    Regularizer,
    Run,
    Scheduler,
    Settings,
    Sparsity,
    Study,
    Train,
    load,
    resolve,
    tree_of,
)
from experiments.config.sweep import Dimension, Sweep

__all__ = [
    "AutoStrength",
    "Component",
    "Data",
    "Dimension",
    "EarlyStopping",
    "Model",
    "Optimizer",
    "Penalty",
    "Regularizer",
    "Run",
    "Scheduler",
    "Settings",
    "Sparsity",
    "Study",
    "Sweep",
    "Train",
    "load",
    "resolve",
    "tree_of",
]
