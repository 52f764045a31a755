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
from experiments.report.statistics import Mean, mean
from experiments.report.summary import Cell

ERRORS = {"training error": ("train_error", "#2563a8"), "test error": ("test_error", "#c2410c")}
STYLE = {
    "font.size": 10,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#1e293b",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "text.color": "#1e293b",
}

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
    panels = figure.subplots(1, len(ARMS), sharey=True)
    panels[0].set_ylabel("error")
    for axes, (arm, (title, *places)) in zip(panels, ARMS.items(), strict=True):
        cell = cells[arm]
        for name, (key, color) in ERRORS.items():
            epochs = [row["epoch"] for row in cell.histories[0]]
            middle, error = np.array([(value, se or 0.0) for value, se in curve(cell, key)]).T
            axes.plot(epochs, middle, color=color, linewidth=1.6, label=name)
            axes.fill_between(epochs, middle - error, middle + error, color=color, alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.set_ylim(0, 0.32)
        axes.set_xlabel("epoch")
        axes.set_xticks([0, 50, 100])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for place, (name, (key, color)) in zip(places, ERRORS.items(), strict=True):
            text = f"{name.removesuffix(' error')} {cell.mean(key).mean:.1%}"
            axes.annotate(text, place, ha="right", va="bottom", color=color)
    return figure


def curve(cell: Cell, key: str) -> list[Mean]:
    """The error after each epoch, averaged over the seeds."""
    return [mean([row[key] for row in rows]) for rows in zip(*cell.histories, strict=True)]


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw(Path(sys.argv[1])).savefig(Path(__file__).with_suffix(".png"))
