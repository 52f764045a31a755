"""The examples of a study: read from where they are, split, and normalized once."""

from .augment import Augmentation
from .examples import Examples, Split
from .loading import load
from .stream import Stream
from .tasks import Classes, Regression, Task

__all__ = ["Augmentation", "Classes", "Examples", "Regression", "Split", "Stream", "Task", "load"]
