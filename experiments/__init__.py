"""Overfitting studies from configuration files: ``python -m experiments run CONFIG``.

A wheel holds this package as ``torchreg.studies``, with the command ``torchreg``.
"""

from pathlib import Path

IS_INSTALLED = __name__ != "experiments"
COMMAND = "torchreg" if IS_INSTALLED else "python -m experiments"
SHIPPED = Path(__file__).parents[0 if IS_INSTALLED else 1] / "configs"  # the shipped studies
