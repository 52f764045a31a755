"""A study's TOML file as typed, frozen and strict settings."""

from experiments.config.model import Model
from experiments.config.penalties import Penalty, Regularizer
from experiments.config.sections import Component
from experiments.config.study import (
    AutoStrength,
    Data,
    Optimizer,
    Run,
    Scheduler,
    Settings,
    Sparsity,
    Study,
    load,
    resolve,
    tree_of,
)
from experiments.config.sweep import Dimension, Sweep
from experiments.config.train import Average, EarlyStopping, Metric, Train

__all__ = [
    "AutoStrength",
    "Average",
    "Component",
    "Data",
    "Dimension",
    "EarlyStopping",
    "Metric",
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
