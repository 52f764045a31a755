"""A study's TOML file as typed, frozen and strict settings."""

from experiments.config.model import Model
from experiments.config.penalties import Penalty, Regularizer
from experiments.config.sections import Component
from experiments.config.study import (
    AutoStrength,
    Data,
    EarlyStopping,
    Optimizer,
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
