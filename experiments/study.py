"""A study: all its runs, one after another, into one folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm

from experiments import build, data
from experiments.config import Run, Study
from experiments.errors import UserError
from experiments.record import Record, Row, open_study
from experiments.train import train


def run_study(study: Study, folder: Path, device: torch.device, resume: bool = False) -> list[str]:
    """Makes every run that is not done yet; returns a line for each that diverged.

    Raises:
        UserError: a run cannot be built, or the folder is not free; nothing has been written then.
    """
    check(study)
    open_study(study, folder, resume)
    diverged = []
    with tqdm(study.runs, desc=study.name, unit="run", disable=None) as bar:
        for run in bar:
            record = Record(folder / "runs" / run.folder)
            done = record.result
            result = train(run, device, record) if done is None else done
            if result["status"] == "diverged":
                diverged.append(f"{run.folder}: {result['reason']}")
            if done is None:
                bar.write(f"{run.folder:<32} {_summary(result)}")
    return diverged


def check(study: Study) -> None:
    """Builds every arm once, on the CPU, so that a fault in the last one shows before the first has run."""
    for run in {(run.arm, run.strength): run for run in study.runs}.values():
        try:
            _build(run)
        except UserError as error:
            raise UserError("\n".join(f"arms[{run.arm}].{line}" for line in str(error).splitlines())) from None


def _build(run: Run) -> None:
    images = data.load(run.data, torch.device("cpu"))
    model = build.model(run.model, images)
    optimizer = build.optimizer(run.optimizer, model)
    build.scheduler(run.scheduler, optimizer)
    build.regularizers(run, model, optimizer)


def pick_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` stands for."""
    available = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not available:
        raise UserError(f"--device: cuda is not available here (torch {torch.__version__}): use cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _summary(result: Row) -> str:
    if result["status"] == "diverged":
        return f"diverged: {result['reason']}"
    return (
        f"train {100 * result['train_error']:5.1f} %   test {100 * result['test_error']:5.1f} %   "
        f"{result['epochs']} epochs in {result['seconds']:.1f} s"
    )
