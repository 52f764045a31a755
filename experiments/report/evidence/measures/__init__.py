"""The measures: what is held against a paper's figures. Each is of the final models, and of no choice by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ....config import Published, Run, Study
from ....config.published import MEASURES
from ...cells import Cell
from ...summary import Summary
from ..found import Found
from .common import Arms
from .finals import of_finals
from .onset import check_onset, of_onset
from .peak import check_peak, of_peak
from .slope import check_slope, of_slope
from .tuned import check_tuned, of_tuned

__all__ = ["check_measures", "measured", "of_finals", "of_onset", "of_peak", "of_slope", "of_tuned"]

_BY_NAME: dict[str, Callable[[Any, Arms, str], Found]] = {
    "finals": of_finals,
    "peak": of_peak,
    "onset": of_onset,
    "slope": of_slope,
    "tuned": of_tuned,
}
_CHECKS: dict[str, Callable[[Any, Sequence[Run]], None]] = {
    "peak": check_peak,
    "onset": check_onset,
    "slope": check_slope,
    "tuned": check_tuned,
}


def check_measures(study: Study) -> None:
    """Finds before the runs what a measure could not be made of.

    Raises:
        UserError: a measure lacks an arm, or has one that it cannot be made of.
    """
    runs = [run for probe in study.probes for run in (probe, probe.average) if run is not None]
    for name, check in _CHECKS.items():
        if (measure := getattr(study.published, name)) is not None:
            check(measure, runs)


def measured(published: Published, summary: Summary, arms: Iterable[str]) -> list[Found]:
    """What each measure of a study finds.

    Args:
        published: names the measures.
        summary: of the runs that have ended.
        arms: the names of all arms.

    Raises:
        UserError: a measure lacks an arm, names a key of the study that is no number, or the study is a regression.
    """
    published.check_task("regression" if summary.is_regression else "classes")
    cells: dict[str, list[Cell]] = {name: [] for name in arms}
    for cell in summary.cells:
        cells[cell.arm].append(cell)
    given = {name: getattr(published, name) for name in MEASURES}
    return [_BY_NAME[name](own, cells, summary.metric) for name, own in given.items() if own is not None]
