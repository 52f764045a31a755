"""Draws docs/overfitting.png, the picture of README.md, from the records of the quickstart study.

Run it after the study: ``python docs/overfitting.py runs/quickstart``.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.report import summarize
from experiments.report.canvas import ERRORS, STYLE, band
from experiments.report.summary import Cell, mean

# Of each arm its title, and where the words "training" and "test" stand: beside their curves, not across them.
ARMS = {
    "none": ("no regularization", (58, 0.012), (98, 0.235)),
    "L1": ("L1 penalty", (98, 0.205), (98, 0.045)),
    "decoupled decay": ("decoupled weight decay", (98, 0.195), (98, 0.045)),
    "dropout": ("dropout", (98, 0.185), (98, 0.045)),
}


def draw(folder: Path) -> Figure:
    """The learning curves of four arms, side by side, with the errors at the end."""
    cells = {cell.arm: cell for cell in summarize(folder).chosen}
    figure = Figure(figsize=(11, 3.1), layout="constrained", dpi=160)
    for axes, (arm, (title, *places)) in zip(figure.subplots(1, len(ARMS), sharey=True), ARMS.items(), strict=True):
        cell = cells[arm]
        for name, (key, color) in ERRORS.items():
            band(axes, np.arange(1, 1 + len(cell.histories[0])), curve(cell, key), color, name)
        axes.set_title(title)
        axes.set_ylim(0, 0.32)
        axes.set_xlabel("epoch")
        axes.set_xticks([0, 50, 100])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for place, (name, (key, color)) in zip(places, ERRORS.items(), strict=True):
            text = f"{name.removesuffix(' error')} {cell.mean(key).mean:.1%}"
            axes.annotate(text, place, ha="right", va="bottom", color=color)
    return figure


def curve(cell: Cell, key: str) -> list:
    """The error after each epoch, averaged over the seeds."""
    return [mean([row[key] for row in rows]) for rows in zip(*cell.histories, strict=True)]


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw(Path(sys.argv[1])).savefig(Path(__file__).with_suffix(".png"))
