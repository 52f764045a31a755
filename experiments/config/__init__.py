"""A study's TOML file as typed, frozen and strict settings."""

from .model import Model
from .penalties import Penalty, Regularizer
from .published import Published
from .sections import Component, Section
from .study import (
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
from .sweep import Dimension, Sweep
from .tasks import Tasks
from .train import Average, EarlyStopping, Metric, Train

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
    "Published",
    "Regularizer",
    "Run",
    "Scheduler",
    "Section",
    "Settings",
    "Sparsity",
    "Study",
    "Sweep",
    "Tasks",
    "Train",
    "load",
    "resolve",
    "tree_of",
]
