"""The examples of a study: read from where they are, split, and normalized once."""

from experiments.training.data.augment import Augmentation
from experiments.training.data.examples import Examples, Split
from experiments.training.data.loading import load
from experiments.training.data.stream import Stream
from experiments.training.data.tasks import Classes, Regression, Task

__all__ = ["Augmentation", "Classes", "Examples", "Regression", "Split", "Stream", "Task", "load"]
